"""The port between reconcilers and clouds: the words both sides share, and the Protocol.

A backend is a thin, stateless door: every call returns at once, none waits for a node. What became
of a call shows in a later ``list()`` (read by the inventory), never in its return value; a list may
be behind what ``get()`` and the calls themselves say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class InstanceState(StrEnum):
    """What a cloud says of an instance, reduced to what decisions need.

    CREATING: first creation under way. BUSY: any other running operation (an update, an upgrade, a
    cancellation, a state we do not know). READY: settled, the machine exists. FAILED: settled, the
    last operation failed or was cancelled; the machine may exist and be billed. DELETING: going.
    """

    CREATING = "Creating"
    BUSY = "Busy"
    READY = "Ready"
    FAILED = "Failed"
    DELETING = "Deleting"


class Word(StrEnum):
    """What a cloud says of one instance when asked for it live, as opposed to in a list.

    ABSENT: there is none. GOING: its deletion is accepted or under way. THERE: it exists.
    """

    ABSENT = "Absent"
    GOING = "Going"
    THERE = "There"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an instance failed, classified at the backend's door. Same words as errors.CloudError."""

    reason: str
    message: str
    remedy: str = ""
    code: str = ""
    terminal: bool = False
    waits: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance as the cloud lists it.

    ``name``: the claim's name. ``raw_state``: the cloud's own word, for messages. ``claim_uid``:
    the uid written on it at launch, None without. ``is_ours``: by our label or by the original's
    rule (facts P2.4); any other is never changed. ``launched_at``: server time of the accepted
    launch, seconds since the epoch, None when unknown. ``fault``: set in state FAILED when known.
    """

    name: str
    state: InstanceState
    raw_state: str
    instance_type: str
    is_ours: bool
    claim_uid: str | None = None
    launched_at: float | None = None
    image_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None
    version: str = ""
    """Opaque; changes whenever the instance does (an ETag)."""


@dataclass(frozen=True, slots=True)
class Taint:
    """A node taint."""

    key: str
    effect: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """Everything a backend needs to order one instance, already decided and validated.

    ``storage_bytes``: the claim's request for the OS disk, 0 = the cloud's default.
    ``labels``: what the Node is to carry (the caller's and ours; the backend adds its own marks).
    ``launched_at``: server time, seconds since the epoch; written on the instance (rule G10).
    """

    name: str
    claim_uid: str
    instance_type: str
    storage_bytes: int
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    claim_created_at: float
    launched_at: float
    image_family: str = ""


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """The cluster that instances join. ``is_settled``: running and in no operation of its own."""

    location: str
    node_resource_group: str
    is_settled: bool
    state: str


class NodeBackend(Protocol):
    """A place that nodes come from. Every method may raise errors.CloudError, and only that."""

    async def launch(self, request: LaunchRequest) -> None:
        """Order one instance under ``request.name``; return when the cloud has accepted it.

        Never changes an instance that has the name already: that raises CloudError with reason
        ``NameTaken`` when it is a stranger's, and is success when it carries ``claim_uid``. An
        answer that was lost is an error with ``may_be_done``: the next list tells.
        """
        ...

    async def terminate(self, name: str) -> Word:
        """Ask for deletion by name. GOING when accepted; ABSENT when there is nothing to delete."""
        ...

    async def abort(self, name: str) -> None:
        """Ask the cloud to stop the instance's running operation; absent or idle is success."""
        ...

    async def get(self, name: str) -> Instance | None:
        """One instance, live; None only on the cloud's word that this instance does not exist."""
        ...

    async def list(self) -> tuple[Instance, ...]:
        """Every instance of the cluster, complete or CloudError: never a part."""
        ...

    async def cluster(self) -> ClusterInfo:
        """The cluster, live. Also proves that the credentials work."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...
