"""What ``kaito sandbox up`` leaves in its folder so that ``down`` and the next ``up`` find it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from kaito.sandbox.pki import write_private
from kaito.sandbox.processes import Identity, is_alive

_FILE = "state.json"


class State(msgspec.Struct, frozen=True):
    """The supervisor of a sandbox, and what to tell its users.

    ``exports``: environment for kubectl and the operator; empty until everything is ready.
    """

    supervisor: Identity
    exports: dict[str, str] = {}

    @property
    def is_running(self) -> bool:
        """The supervisor lives. False: this is a leftover of one that was killed."""
        return is_alive(self.supervisor)

    @property
    def is_ready(self) -> bool:
        """It lives and everything is up."""
        return self.is_running and bool(self.exports)


def read_state(folder: Path) -> State | None:
    """The state in this folder; None without one, or when it is not of this version."""
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=State)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_state(folder: Path, state: State) -> None:
    """Replace the state in one step: readers see the old one or the new one."""
    draft = folder / f".{_FILE}.{os.getpid()}"
    write_private(draft, msgspec.json.encode(state))
    draft.rename(folder / _FILE)


def clear_state(folder: Path) -> None:
    """Forget the sandbox; harmless without one."""
    (folder / _FILE).unlink(missing_ok=True)
