"""Before a machine goes: no new pods on its Node, and the ones there asked to leave."""

from __future__ import annotations

from typing import Final

from kaito import constants
from kaito.api.meta import ObjectRef
from kaito.api.views import Node, Pod
from kaito.clock import parse_rfc3339
from kaito.provisioner.interface import InstanceState
from kaito.reconcilers.actions import Action, Delete, Event, Evict, Patch, Prove
from kaito.reconcilers.chain import Step
from kaito.reconcilers.kinds import NODES, PODS
from kaito.reconcilers.machine.state import State

_UNSCHEDULABLE: Final = "node.kubernetes.io/unschedulable"
_MIRROR: Final = "kubernetes.io/config.mirror"
_CRITICAL: Final = frozenset({"system-cluster-critical", "system-node-critical"})
_LOOK_AGAIN_SECONDS: Final = 5.0  # pods are not watched (weak point W30)
_STUCK_SECONDS: Final = 60.0


def drain(state: State) -> Step:
    """Cordon, evict; at the deadline delete and go on. Nothing to do once the machine is gone."""
    if not state.nodes or state.is_absence_proven or state.is_vouched_absent:
        return Step(True)
    if state.wants_proof:  # a machine that is gone has no pods to wait for
        return Step(False, (Prove(state.ref),), requeue_after=0.0)
    if cordons := tuple(_cordon(n) for n in state.nodes if not _is_cordoned(n)):
        names = ", ".join(n.metadata.name for n in state.nodes)
        event = Event("Normal", "Draining", f"drains node {names}", action="Drain")
        return Step(False, (event, *cordons), requeue_after=0.0)
    left = state.deletion_time + state.settings.drain_seconds - state.now
    if state.pods is None:  # unknown: hold like any drain, and no longer
        if left > 0:
            return Step(False, requeue_after=min(_LOOK_AGAIN_SECONDS, left))
        return Step(True, _unseen(state))
    leaving = [pod for pod in state.pods if _has_to_leave(pod, state.now)]
    if not leaving:
        return Step(True)
    if left <= 0:
        return Step(True, _forced(leaving))
    return Step(False, _evictions(leaving), requeue_after=min(_LOOK_AGAIN_SECONDS, left))


def _is_cordoned(node: Node) -> bool:
    return node.spec.unschedulable and constants.LABEL_EXCLUDE_FROM_LB in node.metadata.labels


def _cordon(node: Node) -> Patch:
    body = {
        "metadata": {"labels": {constants.LABEL_EXCLUDE_FROM_LB: "karpenter"}},
        "spec": {"unschedulable": True},
    }
    return Patch(NODES.ref(node), node.metadata.resource_version, body)


def _has_to_leave(pod: Pod, now: float) -> bool:
    """Not what belongs to the node, has ended, or no kubelet will ever end (facts P3.11)."""
    if _MIRROR in pod.metadata.annotations or pod.is_terminal:
        return False
    if any(o.controller and o.kind == "DaemonSet" for o in pod.metadata.owner_references):
        return False
    if any(
        t.key == _UNSCHEDULABLE or (not t.key and t.operator == "Exists")
        for t in pod.spec.tolerations
    ):
        return False
    deleted = pod.metadata.deletion_timestamp
    return deleted is None or now <= parse_rfc3339(deleted) + _STUCK_SECONDS


def _evictions(pods: list[Pod]) -> tuple[Action, ...]:
    """Critical pods leave last, as others may need them to end well."""
    ordinary = [pod for pod in pods if pod.spec.priority_class_name not in _CRITICAL]
    return tuple(Evict(_ref(pod)) for pod in ordinary or pods if not pod.metadata.is_deleting)


def _forced(pods: list[Pod]) -> tuple[Action, ...]:
    names = ", ".join(sorted(f"{p.metadata.namespace}/{p.metadata.name}" for p in pods))
    note = f"pods that did not leave in time are deleted: {names}"
    deletes = tuple(Delete(_ref(pod)) for pod in pods if not pod.metadata.is_deleting)
    return (Event("Warning", "FailedDraining", note, action="Drain"), *deletes) if deletes else ()


def _unseen(state: State) -> tuple[Action, ...]:
    instance = state.instance
    if instance is None or instance.state is InstanceState.DELETING:
        return ()  # told before the machine was given back
    note = f"its pods could not be listed in time and go with it: {state.pods_trouble}"
    return (Event("Warning", "FailedDraining", note, action="Drain"),)


def _ref(pod: Pod) -> ObjectRef:
    return PODS.ref(pod)
