"""The frozen snapshot that the steps of one claim decide on, and what can be read off it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from kaito import constants
from kaito.api.claim import Claim, condition
from kaito.api.meta import ObjectRef
from kaito.api.views import Node, Pod
from kaito.clock import parse_rfc3339
from kaito.provisioner.asks import Call, Farewell
from kaito.provisioner.interface import Instance, InstanceState
from kaito.reconcilers.machine.gate import Gate
from kaito.reconcilers.machine.words import INITIALIZED, LAUNCHED, REGISTERED

LANDING_SECONDS: Final = 30.0
"""Longer than a cloud takes to accept an order whose sender is gone."""


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
    list began, None before the first. ``is_awaited``: no list has begun and ended since our last
    call. ``unshown``: calls of ours that no list shows the effect of, with the seconds until each
    may be repeated. ``farewell``: the cloud's live words since the claim is being deleted.
    ``works_since``: server time of this process's first pass over any claim.
    ``cloud_trouble``: why the last list failed, empty when it did not. ``nodes``: of this claim's
    instance, those being deleted included. ``strays``: Nodes under the claim's name that a claim of
    another uid left there. ``pods``: on ``nodes``, read while draining only; None when that failed,
    and ``pods_trouble`` says why.
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
    unshown: Mapping[Call, float] = field(default_factory=dict)
    farewell: Farewell = field(default_factory=Farewell)
    works_since: float = 0.0
    cloud_trouble: str = ""
    gate: Gate | None = None
    nodes: tuple[Node, ...] = ()
    strays: tuple[Node, ...] = ()
    pods: tuple[Pod, ...] | None = ()
    pods_trouble: str = ""

    @property
    def is_ours(self) -> bool:
        """Ours to handle (facts P1.21, rule G7): by label, or by a mark that we left.

        Labels can be taken off. A claim being deleted is then known by what else we put on it.
        """
        meta = self.claim.metadata
        if constants.LABEL_WORKSPACE in meta.labels or constants.LABEL_RAGENGINE in meta.labels:
            return True
        if constants.ANNOTATION_LAUNCH_GATE in meta.annotations:
            return True
        if self.instance is not None and self.instance.claim_uid == self.ref.uid:
            return True
        if not meta.is_deleting or constants.TERMINATION_FINALIZER not in meta.finalizers:
            return False
        return constants.LABEL_WORKSPACE_UID in meta.labels or any(
            node.metadata.labels.get(constants.LABEL_CLAIM_UID) == self.ref.uid
            for node in self.nodes
        )

    @property
    def owns_instance(self) -> bool:
        """The instance carries this claim's uid, or was made for it by the original (P2.4)."""
        instance = self.instance
        return (
            instance is not None and instance.is_ours and instance.claim_uid in (None, self.ref.uid)
        )

    @property
    def joined(self) -> tuple[Node, ...]:
        """Nodes that count: not being deleted, and known to the cloud (facts P4.10, P7.1).

        Before registration only beside a pool that is ours and stays: the first would otherwise be
        bound to a machine that goes, and none is launched for a bound claim (rule G8).
        """
        is_bound = self._is_true(REGISTERED)
        if not is_bound and (not self.owns_instance or self._is_instance_going):
            return ()
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
    def is_listed(self) -> bool:
        """The list has an instance of the claim's name that may be the claim's."""
        return self.instance is not None and self.instance.is_ours

    @property
    def may_have_launched(self) -> bool:
        """A PUT may have been sent. Our finalizer is there before the first: it says so too."""
        meta = self.claim.metadata
        return (
            constants.TERMINATION_FINALIZER in meta.finalizers
            or bool(self.claim.provider_id)
            or self.gate is not None
            or self._is_true(LAUNCHED)
        )

    @property
    def is_vouched_absent(self) -> bool:
        """The cloud said live that there is no instance, and so does a list that began after."""
        return (
            self.farewell.is_absent
            and not self.is_listed
            and self.listed_at is not None
            and not self.is_awaited
        )

    @property
    def landing_seconds(self) -> float:
        """How long an order by the process before this one may still be on its way; 0: none is.

        A process that was killed takes nothing back that it had put on the wire: soon after, "there
        is none" may be true only because the order has not landed yet.
        """
        created = parse_rfc3339(self.claim.metadata.creation_timestamp)
        if self.farewell.was_there or created >= self.works_since:
            return 0.0
        return max(0.0, self.works_since + LANDING_SECONDS - self.now)

    @property
    def wants_proof(self) -> bool:
        """The list shows no instance, and it is time to ask the cloud itself."""
        if self.is_listed or self.listed_at is None or self.is_awaited:
            return False
        return not self.unshown.get(Call.PROVE)

    @property
    def is_absence_proven(self) -> bool:
        """Nothing is left to be paid for: no launch, or a deletion answered and absence vouched."""
        if not self.may_have_launched:
            return not self.is_listed
        return self.is_vouched_absent and self.farewell.is_answered

    @property
    def wants_list(self) -> bool:
        """Nothing goes on before another list, and none of our own calls has asked for one."""
        if self.is_awaited:
            return False
        if self.listed_at is None:
            return True
        if self.claim.metadata.is_deleting:
            return False
        return not self.is_list_newer_than_failure and self._gate_is_open

    @property
    def is_list_newer_than_failure(self) -> bool:
        """The list began after the last launch failed: that one may have been run all the same."""
        if self.gate is None or self.listed_at is None:
            return self.listed_at is not None
        return self.listed_at > self.gate.at

    @property
    def _is_instance_going(self) -> bool:
        return self.instance is not None and self.instance.state is InstanceState.DELETING

    @property
    def _gate_is_open(self) -> bool:
        return self.gate is None or (
            self.gate.opens_in(self.now, self.claim.metadata.generation) == 0
        )

    def _is_true(self, type_: str) -> bool:
        found = condition(self.claim, type_)
        return found is not None and found.status == "True"


def nodes_of(
    claim_uid: str, candidates: Iterable[Node], instance: Instance | None
) -> tuple[Node, ...]:
    """Of the Nodes in the pool of a claim's name, the claim's own (rule G7, facts P2.4).

    A Node bears the uid by its pool's label or by our mark. One that bears none is taken only in a
    listed pool that bears none either and was made by the original; any other may be a stranger's.
    """
    is_originals = instance is not None and instance.is_ours and instance.claim_uid is None
    return tuple(
        node
        for node in candidates
        if claim_uid in (owners := _claim_uids(node)) or (not owners and is_originals)
    )


def strays(claim_uid: str, candidates: Iterable[Node]) -> tuple[Node, ...]:
    """Of the same Nodes, those whose pool bore another claim's uid."""
    return tuple(
        node
        for node in candidates
        if node.metadata.labels.get(constants.LABEL_CLAIM_UID, claim_uid) != claim_uid
    )


def _claim_uids(node: Node) -> tuple[str, ...]:
    label = node.metadata.labels.get(constants.LABEL_CLAIM_UID)
    if label is not None:
        return (label,)
    return tuple(owner.uid for owner in node.metadata.owner_references)
