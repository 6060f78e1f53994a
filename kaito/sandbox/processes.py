"""Programs as children that never outlive us, and processes known by more than a number.

A process is its pid *and* the kernel's start time of it, so that a reused pid is never signalled.
Signals go through a pidfd: between the check and the signal the pid cannot change hands.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kaito.sandbox.errors import ProgramFailed

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: a child must not import
_LOG_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for ever. ``started``: clock ticks since boot (field 22 of /proc/<pid>/stat)."""

    pid: int
    started: int


def identity(pid: int) -> Identity | None:
    """Who has this pid now; None when nobody does, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in brackets and may itself hold brackets and spaces.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else Identity(pid, int(fields[19]))


def is_alive(process: Identity) -> bool:
    """Whether exactly this process still runs."""
    return identity(process.pid) == process


def send(process: Identity, signum: int) -> bool:
    """Signal exactly this process; False when it is gone."""
    with contextlib.suppress(ProcessLookupError), _pidfd(process.pid) as handle:
        if is_alive(process):
            signal.pidfd_send_signal(handle, signum)
            return True
    return False


def wait_gone(process: Identity, seconds: float) -> bool:
    """Block until this process has ended; False when it has not within the time."""
    with contextlib.suppress(ProcessLookupError), _pidfd(process.pid) as handle:
        if is_alive(process):
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
    return True


async def gone(process: Identity) -> None:
    """Return when this process has ended. Waits on the kernel, without a thread or a poll."""
    with contextlib.suppress(ProcessLookupError), _pidfd(process.pid) as handle:
        if not is_alive(process):
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(handle, _resolve, ended)
        try:
            await ended
        finally:
            loop.remove_reader(handle)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    handle = os.pidfd_open(pid)
    try:
        yield handle
    finally:
        os.close(handle)


def bind_to_parent(signum: int = signal.SIGKILL) -> Callable[[], None]:
    """A ``preexec_fn`` after which the child gets ``signum`` when the thread that forks it ends.

    That covers every end of ours, SIGKILL included. Call from a thread that lives as long as the
    process does: the main thread.
    """
    parent = os.getpid()

    def bind() -> None:
        if _LIBC.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(127)  # the parent ended between fork and prctl: nobody will send the signal

    return bind


def last_lines(log: Path) -> str:
    """The tail of a log file, for an error message."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    except FileNotFoundError:
        lines = []
    return f"Last lines of {log}:\n" + "\n".join(f"  {line}" for line in lines)


class Program:
    """One child: its command, its log file, its end. Belongs to no event loop."""

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, environ: Mapping[str, str]
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.log = log
        self._environ = dict(environ)
        self._child: subprocess.Popen[bytes] | None = None
        self._identity: Identity | None = None

    @property
    def pid(self) -> int | None:
        """The pid while it runs, None otherwise."""
        return self._child.pid if self._child is not None and self.is_running else None

    @property
    def is_running(self) -> bool:
        """Started, and not ended since. Reaps the child when it has."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start it, in a process group of its own: Ctrl-C is for us, who stop things in order.

        Raises:
            ProgramFailed: it cannot be executed.
        """
        with self.log.open("ab") as output:
            try:
                self._child = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environ,
                    process_group=0,
                    preexec_fn=bind_to_parent(),  # noqa: PLW1509 - libc is loaded, one call
                )
            except (OSError, subprocess.SubprocessError) as err:
                raise ProgramFailed(f"cannot run {self.name} ({self.command[0]}): {err}") from err
        self._identity = identity(self._child.pid)

    def require_running(self) -> None:
        """Check that it has not ended.

        Raises:
            ProgramFailed: it has; the message ends with the last lines of its log.
        """
        if not self.is_running:
            code = self._child.returncode if self._child is not None else None
            raise ProgramFailed(f"{self.name} ended (exit code {code}). {last_lines(self.log)}")

    async def wait(self) -> None:
        """Return when it has ended."""
        if self._identity is not None:
            await gone(self._identity)
        if self._child is not None:
            self._child.wait()  # it has ended: this only reaps

    async def stop(self, *, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL after the grace; returns when it has ended. 0: SIGKILL at once."""
        if self.is_running and grace_seconds > 0:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self.wait()
        self.kill()

    def kill(self) -> None:
        """SIGKILL and reap, without a loop: the last resort of every clean-up path."""
        self._signal(signal.SIGKILL)
        if self._child is not None:
            self._child.wait()

    def _signal(self, signum: int) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signum)
