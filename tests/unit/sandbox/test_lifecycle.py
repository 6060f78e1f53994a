"""``up`` and ``down`` where it goes wrong: failed programs, interruptions, leftovers, strangers.

The supervisor here is the real one; its programs are shell scripts. The way that goes well is in
tests/component/test_sandbox.py.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kaito.sandbox import lifecycle
from kaito.sandbox.binaries import PROGRAMS, Binaries
from kaito.sandbox.plan import DATA, Plan, read_plan
from kaito.sandbox.processes import Identity, identity, is_alive, send, wait_gone
from kaito.sandbox.state import State, clear_state, read_state, write_state

MARK = ".kaito-sandbox"
STARTER = """
import os, sys
from pathlib import Path
from kaito.sandbox import lifecycle
lifecycle.up(Path(sys.argv[1]), environ=os.environ, progress=lambda text: None)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sandbox"


class Assets:
    """Programs that are shell scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.environ = {**os.environ, "KUBEBUILDER_ASSETS": str(folder)}
        for name in PROGRAMS:
            self.script(name, "exit 0")

    def script(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def assets(tmp_path: Path) -> Assets:
    return Assets(tmp_path / "assets")


@pytest.fixture
def pids(tmp_path: Path, assets: Assets) -> Path:
    """etcd says its pid into this pipe and is never ready."""
    pipe = tmp_path / "pids"
    os.mkfifo(pipe)
    assets.script("etcd", f"echo $$ > {pipe}; exec sleep 600")
    return pipe


def known(pid: int) -> Identity:
    found = identity(pid)
    assert found is not None
    return found


def test_a_program_that_fails_is_named_and_nothing_is_left(folder: Path, assets: Assets) -> None:
    assets.script("etcd", "echo disk full >&2; exit 3")
    said: list[str] = []
    with pytest.raises(lifecycle.SandboxError, match=r"(?s)etcd ended \(exit code 3\).*disk full"):
        lifecycle.up(folder, environ=assets.environ, progress=said.append)
    assert said == ["starting etcd and the Kubernetes control plane"]
    assert lifecycle.status(folder) is None
    assert {path.name for path in folder.iterdir()} == {MARK, "lock", "supervisor.log"}


def test_an_interrupted_up_stops_all_it_started(folder: Path, assets: Assets, pids: Path) -> None:
    """Issue 10: Ctrl-C at any time leaves no process behind."""
    started: list[Identity] = []

    def interrupt(_: str) -> None:
        started.append(known(int(pids.read_text())))
        state = read_state(folder)
        assert state is not None
        assert not state.is_ready
        started.append(state.supervisor)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lifecycle.up(folder, environ=assets.environ, progress=interrupt)
    assert [is_alive(process) for process in started] == [False, False]
    assert not (folder / DATA).exists()


def test_a_supervisor_that_is_killed_while_it_starts_is_an_error(
    folder: Path, assets: Assets, pids: Path
) -> None:
    etcd: list[Identity] = []

    def kill(_: str) -> None:
        etcd.append(known(int(pids.read_text())))
        state = read_state(folder)
        assert state is not None
        assert send(state.supervisor, signal.SIGKILL)

    with pytest.raises(lifecycle.SandboxError, match="ended before it was ready"):
        lifecycle.up(folder, environ=assets.environ, progress=kill)
    assert wait_gone(etcd[0], 10)
    assert lifecycle.status(folder) is None


def test_a_killed_up_takes_all_it_started_with_it(folder: Path, assets: Assets, pids: Path) -> None:
    """Issue 10: no orphan after SIGKILL of the parent."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder)], env=assets.environ
    ) as starter:
        etcd = known(int(pids.read_text()))
        state = read_state(folder)
        assert state is not None
        starter.kill()
    assert wait_gone(etcd, 20)
    assert wait_gone(state.supervisor, 20)
    assert read_state(folder) is None


def test_what_a_killed_sandbox_left_is_no_sandbox_and_is_removed(
    folder: Path, assets: Assets
) -> None:
    """The pid in the file may be another process's by now: it is never signalled."""
    (folder / DATA / "etcd").mkdir(parents=True)
    (folder / MARK).touch()
    me = known(os.getpid())
    write_state(folder, State(Identity(me.pid, me.started - 1), {"KUBECONFIG": "/gone"}))
    assert lifecycle.status(folder) is None
    assert lifecycle.down(folder) is False
    assert not (folder / DATA).exists()
    assert read_state(folder) is None


def test_every_user_has_a_folder_by_default() -> None:
    assert lifecycle.default_folder().name == f"kaito-sandbox-{os.getuid()}"


def test_down_without_a_sandbox_makes_no_folder(folder: Path) -> None:
    assert lifecycle.down(folder) is False
    assert not folder.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    """It would hold an administrator's key."""
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(lifecycle.SandboxError, match="another user"):
        lifecycle.up(folder, environ={}, progress=print)


@pytest.mark.parametrize("verb", ["up", "down"])
def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(
    folder: Path, verb: str
) -> None:
    """``sandbox down --dir ~`` once removed the user's own ``bin`` and ``data``."""
    for name in ("data", "bin"):
        (folder / name).mkdir(parents=True)
        (folder / name / "precious").touch()
    call = {"up": lambda: lifecycle.up(folder, environ={}, progress=print)}
    with pytest.raises(lifecycle.SandboxError, match="--dir"):
        call.get(verb, lambda: lifecycle.down(folder))()
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert left == ["bin", "bin/precious", "data", "data/precious"]


def test_what_an_earlier_version_left_in_the_default_folder_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the mark that we leave now, the next demo once refused to start."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lifecycle.default_folder().mkdir(mode=0o700)
    (lifecycle.default_folder() / "supervisor.log").touch()
    assert lifecycle.down() is False
    assert (lifecycle.default_folder() / MARK).is_file()


def test_a_folder_that_cannot_be_one_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for impossible in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(lifecycle.SandboxError, match="cannot be a sandbox's folder"):
            lifecycle.up(impossible, environ={}, progress=print)


def test_logs_go_with_the_folder_when_nobody_needs_them(folder: Path, assets: Assets) -> None:
    assets.script("etcd", "exit 1")
    with pytest.raises(lifecycle.SandboxError):
        lifecycle.up(folder, environ=assets.environ, progress=lambda _: None)
    assert lifecycle.down(folder, keep_logs=False) is False
    assert not folder.exists()


def test_the_folder_is_closed_to_others(folder: Path, assets: Assets) -> None:
    assets.script("etcd", "exit 1")
    with pytest.raises(lifecycle.SandboxError):
        lifecycle.up(folder, environ=assets.environ, progress=lambda _: None)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_cluster_that_cannot_be_reached_is_an_error_in_words(
    folder: Path, assets: Assets, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        '{"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],'
        ' "users": [{"name": "u", "user": {"token": "t"}}],'
        ' "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],'
        ' "current-context": "x"}'
    )
    with pytest.raises(lifecycle.SandboxError, match=r"127\.0\.0\.1"):
        lifecycle.up(folder, environ=assets.environ, kubeconfig=kubeconfig, progress=lambda _: None)


@pytest.mark.parametrize("is_bound", [False, True])
def test_a_plan_survives_the_command_line(tmp_path: Path, is_bound: bool) -> None:
    own = Plan(
        tmp_path,
        Identity(7, 99),
        programs=Binaries(*(tmp_path / name for name in PROGRAMS)),
        is_bound=is_bound,
        audit=is_bound,
    )
    assert read_plan(own.arguments()) == own
    there = Plan(tmp_path, Identity(7, 99), kubeconfig=tmp_path / "config")
    assert read_plan(there.arguments()) == there


def test_a_state_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    (tmp_path / "state.json").write_text('{"version": 0}')
    assert read_state(tmp_path) is None
    clear_state(tmp_path)
    clear_state(tmp_path)


def test_a_state_comes_back_as_it_was_written_and_is_private(tmp_path: Path) -> None:
    state = State(known(os.getpid()), {"KUBECONFIG": "/k"})
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert state.is_ready
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600]
