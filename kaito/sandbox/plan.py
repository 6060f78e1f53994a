"""What a starter tells its supervisor to run, and what it hears from it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kaito.sandbox.binaries import Binaries
from kaito.sandbox.processes import Identity

OPERATOR_LOG = "operator.log"
DATA = "data"
"""Folder, inside the sandbox's, of everything that is thrown away with it."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line to the starter: progress, or the end of the start in one of its two forms."""

    progress: str = ""
    ready: bool = False
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: an own control plane of ``programs``, or on the cluster of ``kubeconfig``.

    ``starter``: when it ends before we are ready, so do we; ``is_bound``: after that, too.
    ``operator``: flags to run ``kaito operator`` with, beside the rest; None runs none.
    """

    folder: Path
    starter: Identity
    programs: Binaries | None = None
    kubeconfig: Path | None = None
    is_bound: bool = False
    audit: bool = False
    operator: tuple[str, ...] | None = None

    def arguments(self) -> list[str]:
        """The command line that ``read_plan`` takes."""
        found = ["--dir", str(self.folder)]
        found += ["--starter", str(self.starter.pid), str(self.starter.started)]
        if self.programs is not None:
            paths = self.programs
            found += ["--programs", *map(str, (paths.etcd, paths.apiserver))]
            found += [*map(str, (paths.controller_manager, paths.scheduler, paths.kubectl))]
        if self.kubeconfig is not None:
            found += ["--kubeconfig", str(self.kubeconfig)]
        found += ["--bound"] * self.is_bound + ["--audit"] * self.audit
        return found if self.operator is None else [*found, "--operator", *self.operator]


def read_plan(arguments: Sequence[str]) -> Plan:
    """The plan of a command line."""
    parser = argparse.ArgumentParser(prog="kaito.sandbox.supervisor")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--starter", type=int, nargs=2, required=True)
    parser.add_argument("--programs", type=Path, nargs=5)
    parser.add_argument("--kubeconfig", type=Path)
    parser.add_argument("--bound", action="store_true")
    parser.add_argument("--audit", action="store_true")
    parser.add_argument("--operator", nargs=argparse.REMAINDER)  # takes all the rest
    found = parser.parse_args(arguments)
    return Plan(
        folder=found.dir,
        starter=Identity(*found.starter),
        programs=Binaries(*found.programs) if found.programs else None,
        kubeconfig=found.kubeconfig,
        is_bound=found.bound,
        audit=found.audit,
        operator=None if found.operator is None else tuple(found.operator),
    )
