"""``up``, ``down`` and ``status`` of the sandbox, for the command line and the demo.

The sandbox itself is a background process (``supervisor.py``); here it is started, waited for and
stopped. One folder is one sandbox: a lock in it lets one of these functions act at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

import kaito
from kaito.sandbox.binaries import Progress, ensure
from kaito.sandbox.errors import SandboxError
from kaito.sandbox.plan import DATA, OPERATOR_LOG, Message, Plan
from kaito.sandbox.processes import Identity, identity, last_lines, send, wait_gone
from kaito.sandbox.state import State, clear_state, read_state

__all__ = ["SandboxError", "default_folder", "down", "status", "up"]

_LOG = "supervisor.log"
_BIN = "bin"
_LOCK = "lock"
_MARK = ".kaito-sandbox"
_STOP_SECONDS = 40.0
_KILL_SECONDS = 5.0


def default_folder() -> Path:
    """One sandbox per user, where temporary files go."""
    return Path(tempfile.gettempdir()) / f"kaito-sandbox-{os.getuid()}"


def up(
    folder: Path | None = None,
    *,
    environ: Mapping[str, str],
    kubeconfig: Path | None = None,
    parent_bound: bool = False,
    audit: bool = False,
    operator: Sequence[str] | None = None,
    progress: Progress,
) -> Mapping[str, str]:
    """Start the sandbox, or find it running; the environment for kubectl and the operator.

    ``kubeconfig``: use this cluster instead of an own control plane. ``parent_bound``: the sandbox
    ends with the calling process, whatever ends that. ``operator``: flags of an operator to run in
    it, with ``operator.log`` in the folder; the sandbox ends when that does. When this call is
    interrupted, everything that it started is stopped.

    Raises:
        SandboxError: it could not be started; the message says why and shows the log.
    """
    folder = (folder or default_folder()).absolute()
    _claim(folder)
    with _locked(folder):
        if (state := status(folder)) is not None and state.is_ready:
            return _with_kubectl(state.exports, folder, environ)
        _clean(folder, state)
        me = identity(os.getpid())
        assert me is not None, "this process runs"
        plan = Plan(
            folder,
            starter=me,
            programs=ensure(environ, progress=progress) if kubeconfig is None else None,
            kubeconfig=kubeconfig.absolute() if kubeconfig is not None else None,
            is_bound=parent_bound,
            audit=audit,
            operator=None if operator is None else tuple(operator),
        )
        _start(plan, environ, progress)
        _offer_kubectl(plan, environ)
        state = read_state(folder)
        if state is None:
            raise SandboxError(f"the sandbox ended at once. {last_lines(folder / _LOG)}")
        return _with_kubectl(state.exports, folder, environ)


def down(folder: Path | None = None, *, keep_logs: bool = True) -> bool:
    """Stop the sandbox and remove its data; False when none was running.

    ``keep_logs`` false: the logs go too, and so does the folder unless others use it.

    Raises:
        SandboxError: the folder is not a sandbox's.
    """
    folder = (folder or default_folder()).absolute()
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    _claim(folder)
    with _locked(folder):
        state = status(folder)
        _clean(folder, state)
        if not keep_logs:
            for name in (_LOG, OPERATOR_LOG, _LOCK, _MARK):
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others keep something here
                folder.rmdir()
        return state is not None


def status(folder: Path | None = None) -> State | None:
    """The sandbox that runs from this folder; None without one, whatever a file may say."""
    state = read_state(folder or default_folder())
    return state if state is not None and state.is_running else None


def _offer_kubectl(plan: Plan, environ: Mapping[str, str]) -> None:
    """Where PATH has no kubectl that fits, ours goes into a folder of its own."""
    if plan.programs is None or str(plan.programs.kubectl) == shutil.which(
        "kubectl", path=environ.get("PATH", "")
    ):
        return
    (plan.folder / _BIN).mkdir()
    (plan.folder / _BIN / "kubectl").symlink_to(plan.programs.kubectl)


def _with_kubectl(
    exports: Mapping[str, str], folder: Path, environ: Mapping[str, str]
) -> Mapping[str, str]:
    ours, path = str(folder / _BIN), environ.get("PATH", "")
    if not Path(ours).is_dir() or not path or ours in path.split(os.pathsep):
        return exports
    return {**exports, "PATH": f"{ours}{os.pathsep}{path}"}


def _claim(folder: Path) -> None:
    """Mark a new or empty folder as a sandbox's; only in a marked one is anything ever removed.

    It holds keys of a cluster, so it must be this user's, too. The default one is a sandbox's by
    its name, whatever an earlier version has left in it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat(follow_symlinks=False).st_uid != os.getuid():
            raise SandboxError(f"{folder} belongs to another user: choose another with --dir")
        is_marked = (folder / _MARK).is_file() or folder == default_folder()
        if any(folder.iterdir()) and not is_marked:
            raise SandboxError(
                f"{folder} holds something that is no sandbox's: choose a new or empty folder "
                "with --dir"
            )
        (folder / _MARK).touch(mode=0o600)
    except OSError as err:
        raise SandboxError(f"{folder} cannot be a sandbox's folder: {err}") from err


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clean(folder: Path, running: State | None) -> None:
    """Stop what runs, and remove what it, or one that was killed, has left."""
    if running is not None:
        _stop(running.supervisor)
    clear_state(folder)
    for name in (DATA, _BIN):
        shutil.rmtree(folder / name, ignore_errors=True)


def _stop(supervisor: Identity) -> None:
    if send(supervisor, signal.SIGTERM) and not wait_gone(supervisor, _STOP_SECONDS):
        send(supervisor, signal.SIGKILL)  # the kernel kills its programs with it
        wait_gone(supervisor, _KILL_SECONDS)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(supervisor.pid, 0)  # when it is this process that started it


def _start(plan: Plan, environ: Mapping[str, str], progress: Progress) -> None:
    """Start a supervisor and return when it is ready; on any other way out it is stopped."""
    reading, writing = os.pipe()
    with open(reading, "rb") as lines:
        try:
            pid = _spawn(plan, environ, writing)
        finally:
            os.close(writing)
        supervisor = identity(pid) or Identity(pid, 0)  # ended at once: matches nobody
        try:
            _await_ready(lines, progress, plan.folder / _LOG)
        except BaseException:
            _stop(supervisor)
            raise


def _spawn(plan: Plan, environ: Mapping[str, str], output: int) -> int:
    # posix_spawn and not Popen: nobody here outlives it to wait for it. A session of its own, so
    # that neither Ctrl-C nor a closed terminal reaches it.
    package_root = Path(kaito.__file__).parents[1]
    paths = [str(package_root), *filter(None, [environ.get("PYTHONPATH")])]
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "kaito.sandbox.supervisor", *plan.arguments()],
        {**environ, "PYTHONPATH": os.pathsep.join(paths)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (
                os.POSIX_SPAWN_OPEN,
                2,
                str(plan.folder / _LOG),
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
                0o600,
            ),
        ],
        setsid=True,
    )


def _await_ready(lines: Iterable[bytes], progress: Progress, log: Path) -> None:
    failed = ""
    for line in lines:
        message = msgspec.json.decode(line, type=Message)
        if message.ready:
            return
        if message.progress:
            progress(message.progress)
        failed = message.failed or failed
    raise SandboxError(failed or f"the sandbox ended before it was ready. {last_lines(log)}")
