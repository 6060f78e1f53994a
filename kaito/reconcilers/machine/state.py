"""The frozen snapshot that the steps of one claim decide on, and what can be read off it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kaito import constants
from kaito.api.claim import Claim, condition
from kaito.api.meta import ObjectRef
from kaito.api.views import Node, Pod
from kaito.clock import parse_rfc3339
from kaito.provisioner.interface import Instance, InstanceState
from kaito.reconcilers.machine.gate import Gate
from kaito.reconcilers.machine.words import INITIALIZED, LAUNCHED, REGISTERED

_TIMESTAMP_STEP = 1.0
"""Times on objects are whole seconds: the moment itself is up to this much later."""


@dataclass(frozen=True, slots=True)
class MachineSettings:
    """Seconds. ``launch_retry_max`` caps every wait between launches, None: the table's waits.

    ``wait_for_gpu``: a GPU size is initialized only with allocatable GPUs (facts P1.9).
    """

    launch_retry_max: float | None = None
    drain_seconds: float = 1800.0
    wait_for_gpu: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """All that a step may look at.

    ``instance``: the claim's in the last complete list; ``listed_at``: server time at which that
    list began, None before the first. ``is_awaited``: a call of ours that no list reflects yet.
    ``cloud_trouble``: why the last list failed, empty when it did not. ``nodes``: of this claim's
    instance, those being deleted included. ``pods``: on these nodes, read while draining only.
    ``jitter``: factor for a wait that this pass may set.
    """

    claim: Claim
    ref: ObjectRef
    settings: MachineSettings
    now: float
    jitter: float = 1.0
    instance: Instance | None = None
    listed_at: float | None = None
    is_awaited: bool = False
    cloud_trouble: str = ""
    gate: Gate | None = None
    nodes: tuple[Node, ...] = ()
    pods: tuple[Pod, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Ours to handle (facts P1.21, rule G7): by label, or by a mark that we left."""
        meta = self.claim.metadata
        if constants.LABEL_WORKSPACE in meta.labels or constants.LABEL_RAGENGINE in meta.labels:
            return True
        if constants.ANNOTATION_LAUNCH_GATE in meta.annotations:
            return True
        return self.instance is not None and self.instance.claim_uid == self.ref.uid

    @property
    def owns_instance(self) -> bool:
        """The instance carries this claim's uid, or was made for it by the original (P2.4)."""
        instance = self.instance
        return (
            instance is not None and instance.is_ours and instance.claim_uid in (None, self.ref.uid)
        )

    @property
    def joined(self) -> tuple[Node, ...]:
        """Nodes that count: not being deleted, and known to the cloud (facts P4.10, P7.1)."""
        return tuple(n for n in self.nodes if not n.metadata.is_deleting and n.spec.provider_id)

    @property
    def node(self) -> Node | None:
        """The claim's Node; None without one, and with more than one."""
        joined = self.joined
        return joined[0] if len(joined) == 1 else None

    @property
    def is_launched(self) -> bool:
        """The machine exists: the cloud says so, or its Node is there already (facts P7.1)."""
        if self.joined or self.was_registered:
            return True
        if self.listed_at is None:  # just started: what was told still stands
            return self._is_true(LAUNCHED)
        return (
            self.owns_instance
            and self.instance is not None
            and self.instance.state is InstanceState.READY
        )

    @property
    def was_registered(self) -> bool:
        """A Node has been bound to this claim; no second machine is ever launched for it."""
        return bool(self.claim.node_name) and self._is_true(REGISTERED)

    @property
    def was_initialized(self) -> bool:
        """The Node has once been fit for pods."""
        return self._is_true(INITIALIZED)

    @property
    def deletion_time(self) -> float:
        """When deletion was asked for; infinity while it was not."""
        deleted = self.claim.metadata.deletion_timestamp
        return float("inf") if deleted is None else parse_rfc3339(deleted)

    @property
    def absence_provable_in(self) -> float:
        """Seconds until a list that begins then proves something about a claim being deleted."""
        return max(0.0, self.deletion_time + _TIMESTAMP_STEP - self.now)

    @property
    def is_absence_proven(self) -> bool:
        """No instance, by a list that began after every call of ours and after the deletion."""
        return (
            self.instance is None
            and self.listed_at is not None
            and not self.is_awaited
            and self.listed_at >= self.deletion_time + _TIMESTAMP_STEP
        )

    @property
    def wants_list(self) -> bool:
        """Nothing goes on before another list, and none of our own calls has asked for one."""
        if self.is_awaited:
            return False
        if self.listed_at is None:
            return True
        if self.claim.metadata.is_deleting:
            is_old = self.listed_at < self.deletion_time + _TIMESTAMP_STEP
            return self.instance is None and is_old and self.absence_provable_in == 0
        return not self.is_list_newer_than_failure and self._gate_is_open

    @property
    def is_list_newer_than_failure(self) -> bool:
        """The list began after the last launch failed: that one may have been run all the same."""
        if self.gate is None or self.listed_at is None:
            return self.listed_at is not None
        return self.listed_at > self.gate.at

    @property
    def _gate_is_open(self) -> bool:
        return self.gate is None or (
            self.gate.opens_in(self.now, self.claim.metadata.generation) == 0
        )

    def _is_true(self, type_: str) -> bool:
        found = condition(self.claim, type_)
        return found is not None and found.status == "True"
