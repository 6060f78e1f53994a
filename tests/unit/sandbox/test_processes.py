"""Children end with their parent, and nobody else's process is ever signalled."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kaito.sandbox.errors import ProgramFailed
from kaito.sandbox.processes import (
    Identity,
    Program,
    gone,
    identity,
    is_alive,
    last_lines,
    send,
    wait_gone,
)

FOR_EVER = ["/bin/sh", "-c", "echo started; exec sleep 600"]
STUBBORN = ["/bin/sh", "-c", "trap '' TERM; echo armed; while :; do sleep 600; done"]

PARENT = """
import sys, signal
from pathlib import Path
from kaito.sandbox.processes import Program
child = Program("child", ["/bin/sleep", "600"], log=Path(sys.argv[1]), environ={})
child.start()
print(child.pid, flush=True)
signal.pause()
"""

GRANDPARENT = """
import os
from kaito.sandbox.processes import bind_to_parent
bind = bind_to_parent()
child = os.fork()
if child == 0:
    if os.fork() == 0:
        bind()
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def program(tmp_path: Path, *command: str) -> Program:
    return Program("fake", command, log=tmp_path / "fake.log", environ={"PATH": "/usr/bin:/bin"})


def known(pid: int | None) -> Identity:
    assert pid is not None
    found = identity(pid)
    assert found is not None
    return found


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_ends_with_its_parent_however_that_ends(signum: int, tmp_path: Path) -> None:
    """Issue 10: no orphan after SIGTERM or SIGKILL of the parent."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = known(int(parent.stdout.readline()))
        parent.send_signal(signum)
        parent.wait()
        assert wait_gone(child, 10)


def test_a_child_whose_parent_is_gone_already_does_not_start() -> None:
    """Between fork and prctl the parent may end: nobody would send the signal any more."""
    ended = subprocess.run([sys.executable, "-c", GRANDPARENT], capture_output=True, text=True)
    assert ended.stdout == "127\n"


def test_a_process_is_its_pid_and_its_start_time() -> None:
    me = known(os.getpid())
    assert is_alive(me)
    assert not is_alive(Identity(me.pid, me.started - 1))


def test_a_reused_pid_is_not_signalled() -> None:
    me = known(os.getpid())
    assert not send(Identity(me.pid, me.started - 1), signal.SIGKILL)
    assert wait_gone(Identity(me.pid, me.started - 1), 0)


def test_nobody_has_the_pid_of_a_process_that_ended() -> None:
    with subprocess.Popen(["/bin/true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert identity(child.pid) is None, "a zombie is nobody"
    assert identity(child.pid) is None


async def test_what_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    child = program(tmp_path, *FOR_EVER)
    child.start()
    me = known(child.pid)
    child.kill()
    assert not send(me, signal.SIGTERM)
    assert wait_gone(me, 0)
    await gone(me)


async def test_stop_asks_first(tmp_path: Path) -> None:
    child = program(tmp_path, *FOR_EVER)
    child.start()
    me = known(child.pid)
    await child.stop(grace_seconds=30)
    assert not is_alive(me)
    assert child.pid is None


async def test_stop_kills_what_does_not_listen(tmp_path: Path) -> None:
    child = program(tmp_path, *STUBBORN)
    child.start()
    me = known(child.pid)
    await child.stop(grace_seconds=0.05)
    assert not is_alive(me)


async def test_stopping_twice_or_before_the_start_is_harmless(tmp_path: Path) -> None:
    child = program(tmp_path, *FOR_EVER)
    await child.stop(grace_seconds=1)
    child.start()
    await child.stop(grace_seconds=0)
    await child.stop(grace_seconds=1)


async def test_wait_returns_when_the_program_ends_by_itself(tmp_path: Path) -> None:
    child = program(tmp_path, "/bin/sh", "-c", "exit 3")
    child.start()
    async with asyncio.timeout(10):
        await child.wait()
    assert not child.is_running


async def test_a_wait_that_is_cancelled_leaves_the_program_alone(tmp_path: Path) -> None:
    child = program(tmp_path, *FOR_EVER)
    child.start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await child.wait()
    assert child.is_running
    child.kill()


async def test_the_error_names_the_program_and_shows_its_last_lines(tmp_path: Path) -> None:
    child = program(tmp_path, "/bin/sh", "-c", "echo no such port >&2; exit 3")
    child.start()
    await child.wait()
    with pytest.raises(ProgramFailed, match=r"(?s)fake ended \(exit code 3\).*no such port"):
        child.require_running()


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match="cannot run fake"):
        program(tmp_path, "/no/such/program").start()


def test_a_log_that_was_never_written_is_no_second_failure(tmp_path: Path) -> None:
    assert "nothing.log" in last_lines(tmp_path / "nothing.log")


async def test_a_program_has_a_process_group_of_its_own(tmp_path: Path) -> None:
    """Ctrl-C at the terminal is for us: we stop programs in order."""
    child = program(tmp_path, *FOR_EVER)
    child.start()
    assert child.pid is not None
    assert os.getpgid(child.pid) == child.pid
    child.kill()
