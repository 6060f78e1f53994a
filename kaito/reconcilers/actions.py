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
    """JSON Patch: test uid and the finalizer at ``index``, remove it. Other finalizers survive.

    ``left_by``: the claim that put it there; it goes only if a live read of both kinds by that name
    shows no claim of that uid (rule G6).
    """

    ref: ObjectRef
    finalizer: str
    index: int
    left_by: ObjectRef | None = None


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
    """Ask the cloud for the instance of this claim, after a live read of it (rule G6).

    ``generation``: of the claim that the request was made from. An edited claim, and one without
    our finalizer, gets nothing.
    """

    claim: ObjectRef
    request: LaunchRequest
    generation: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """Delete the instance of this claim, after a live read of the claim (rule G6).

    ``instance_claim_uid``: the uid that the list's instance carries, None when it carries none.
    ``is_settled``: the list says that nothing runs on the instance. That and its uid spare a claim
    that is going the live look; all else is looked at first, as a list may be behind: what runs is
    stopped, and what is a stranger's, or of a claim that stays and well by now, is left alone.
    """

    claim: ObjectRef
    instance_claim_uid: str | None
    is_settled: bool = True


@dataclass(frozen=True, slots=True)
class Prove:
    """Look at the instance of this claim live: one list without it proves nothing (rule G8)."""

    claim: ObjectRef


Action = (
    Create | Apply | Patch | RemoveFinalizer | Delete | Evict | Event | Launch | Terminate | Prove
)
