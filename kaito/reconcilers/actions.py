"""The few effects a plan may ask for. Values only: ``act.py`` is what carries them out.

Order within a plan is order of sending; actions on different objects are independent (rule G15).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kaito.api.meta import ObjectRef
from kaito.provisioner.interface import LaunchRequest


@dataclass(frozen=True, slots=True)
class Create:
    """POST this manifest. AlreadyExists is settled by one live read (rule G13).

    ``owner_uid``: the uid that shows that a present object is ours: a controlling owner reference,
    or the label ``kaito.sh/workspace-uid``. A stranger's object raises NameTaken and is left alone.
    """

    manifest: Mapping[str, Any]
    owner_uid: str


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply to the very object and version that was looked at.

    One that is gone, is another or has changed since answers Conflict: look again, never revive.
    The version also keeps echoes honest: an apply that changes nothing answers with a version that
    someone else wrote, which must not pass for our own (rule G16).
    """

    manifest: Mapping[str, Any]
    uid: str
    resource_version: str


@dataclass(frozen=True, slots=True)
class Patch:
    """JSON merge patch with the resourceVersion of the snapshot in it (rule G12)."""

    ref: ObjectRef
    resource_version: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RemoveFinalizer:
    """JSON Patch: test uid and the finalizer at ``index``, remove it. Other finalizers survive."""

    ref: ObjectRef
    finalizer: str
    index: int


@dataclass(frozen=True, slots=True)
class Delete:
    """DELETE with the uid as precondition. Absent, or another object by now, is done."""

    ref: ObjectRef
    propagation: Literal["Background", "Foreground"] = "Background"


@dataclass(frozen=True, slots=True)
class Evict:
    """Ask for a pod's eviction, with its uid as precondition. Gone already is done.

    A refusal by a disruption budget is no failure: the plan that still sees the pod asks again.
    """

    ref: ObjectRef


@dataclass(frozen=True, slots=True)
class Event:
    """Tell the user, in ``kubectl describe``. Never fails and never waits."""

    type: Literal["Normal", "Warning"]
    reason: str
    note: str
    action: str = "Reconcile"


@dataclass(frozen=True, slots=True)
class Launch:
    """Ask the cloud for the instance of this claim, after a live read of it (rule G6)."""

    claim: ObjectRef
    request: LaunchRequest


@dataclass(frozen=True, slots=True)
class Terminate:
    """Delete the instance of this claim, after a live read of the claim (rule G6).

    ``instance_claim_uid``: the uid that the snapshot's instance carries, None when it carries none.
    ``abort``: the instance is busy; stop its running operation first, and go on whatever that says.
    """

    claim: ObjectRef
    instance_claim_uid: str | None
    abort: bool = False


Action = Create | Apply | Patch | RemoveFinalizer | Delete | Evict | Event | Launch | Terminate
