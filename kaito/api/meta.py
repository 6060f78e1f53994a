"""Words of metav1 that every kind shares: metadata, references, conditions as they are read.

Frozen msgspec structs: decoded straight from bytes, only the fields we read. ``ApiObject`` is all
that the framework asks of an object in memory; what else it holds is its decoder's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

Key = tuple[str, str]
"""(namespace, name); namespace is ``""`` for cluster-scoped objects."""


class View(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """Base of all read-only views. ``gc=False``: JSON has no cycles."""


class OwnerReference(View, frozen=True):
    """An entry of ``metadata.ownerReferences``."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(View, frozen=True):
    """``metadata`` without managedFields. Times stay RFC 3339 strings until someone needs them."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def key(self) -> Key:
        """The store's key of this object."""
        return (self.namespace, self.name)

    @property
    def is_deleting(self) -> bool:
        """Deletion was asked for; finalizers hold the object."""
        return self.deletion_timestamp is not None

    def controller_uid(self) -> str | None:
        """UID of the controlling owner, None without one."""
        return next((o.uid for o in self.owner_references if o.controller), None)


class ApiObject(Protocol):
    """What the framework knows of an object in memory."""

    @property
    def metadata(self) -> ObjectMeta:
        """Name, uid, resourceVersion and the rest of ``metadata``."""
        ...


class ConditionView(View, frozen=True):
    """A ``metav1.Condition`` (or a kind's older form of it) as found on an object."""

    type: str = ""
    status: str = "Unknown"
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int = 0
    severity: str = ""
    """Machines only (facts P1.7)."""


class Undecodable(View, frozen=True):
    """Stands in the cache for an object of ours that could not be read: what is known, and why.

    ``error``: one sentence naming the field. Reported as a condition by the object's reconciler.
    ``conditions``: those on the object, none when they are what cannot be read.
    """

    metadata: ObjectMeta
    error: str
    conditions: tuple[ConditionView, ...] = ()


class Owned(View, frozen=True):
    """An object of a kind we write: metadata typed, the rest as the server sent it.

    ``body``: the whole object without ``metadata.managedFields``; never changed after decoding, so
    that "the live object already contains what we want" can be answered without a request.
    """

    metadata: ObjectMeta
    body: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """Names one object for an action, an Event or a log line. ``uid`` guards writes (rule G12)."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {where}"
