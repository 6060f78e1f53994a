"""Everything the Workspace's steps may look at, frozen. ``observe`` of the shell fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kaito.api.meta import ConditionView, ObjectMeta, ObjectRef, Owned
from kaito.api.validation import Fault
from kaito.api.views import Node
from kaito.api.workspace import PresetSpec, ResourceSpec, Workspace
from kaito.catalog.presets import Preset
from kaito.catalog.skus import Provider


@dataclass(frozen=True, slots=True)
class Options:
    """Settings that shape what is written. ``registry``: where public presets' images are."""

    registry: str
    provider: Provider = "azure"


@dataclass(frozen=True, slots=True)
class OwnClaim:
    """A claim of this Workspace, of either kind, readable or not."""

    ref: ObjectRef
    metadata: ObjectMeta
    node_name: str = ""
    conditions: tuple[ConditionView, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """One Workspace and all that belongs to it, as the caches show it at one moment.

    ``preset``: the inference preset, None when unknown or none is named. ``nodes``: by name, those
    of the claims and those that carry this Workspace's uid. ``now``: server time, seconds since
    the epoch.
    """

    workspace: Workspace
    options: Options
    preset: Preset | None
    now: float
    faults: tuple[Fault, ...] = ()
    claims: tuple[OwnClaim, ...] = ()
    nodes: Mapping[str, Node] = field(default_factory=dict)
    deployment: Owned | None = None
    service: Owned | None = None

    @property
    def uid(self) -> str:
        """The Workspace's uid."""
        return self.workspace.metadata.uid

    @property
    def resource(self) -> ResourceSpec:
        """``resource``, with the schema's defaults where it is absent."""
        return self.workspace.resource or ResourceSpec()

    @property
    def served(self) -> PresetSpec | None:
        """The preset to serve, as the user wrote it; None for tuning and pod templates."""
        return self.workspace.inference.preset if self.workspace.inference else None

    @property
    def is_refused(self) -> bool:
        """Nothing may be bought or made: there are faults, and nothing exists yet (rule G19)."""
        return bool(self.faults) and not self.claims and self.deployment is None


@dataclass(frozen=True, slots=True)
class Orphaned:
    """Claims that name a Workspace by namespace and name, and what a live read of it showed.

    ``live_uid``: uid of the Workspace that has the name now, None when there is none. ``count``:
    its slots.
    """

    claims: tuple[OwnClaim, ...]
    live_uid: str | None
    count: int = 0
