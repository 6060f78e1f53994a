"""From a Node that is there to one fit for pods. Once True, it stays: Ready tells the rest."""

from __future__ import annotations

from typing import Final

from kaito import constants
from kaito.api.conditions import Condition
from kaito.api.views import Node, gpu_allocatable, is_ready
from kaito.catalog.quantities import parse_quantity
from kaito.reconcilers.actions import Patch
from kaito.reconcilers.chain import Step
from kaito.reconcilers.kinds import NODES
from kaito.reconcilers.machine.state import State
from kaito.reconcilers.machine.steps.registration import is_marked
from kaito.reconcilers.machine.words import INITIALIZED

_EPHEMERAL: Final = frozenset(
    {
        ("node.kubernetes.io/not-ready", "NoSchedule"),
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoSchedule"),
        ("node.cloudprovider.kubernetes.io/uninitialized", "NoSchedule"),
        ("karpenter.sh/unregistered", "NoExecute"),
    }
)
"""Taints that come and go by themselves while a Node starts (facts P1.8)."""


def initialization(state: State) -> Step:
    """Ready, startup taints gone, ephemeral taints gone, resources there; in this order (P1.6)."""
    if state.was_initialized:
        return Step(True, conditions=(Condition(INITIALIZED, "True", ""),))
    if not state.is_launched:
        return _not_yet("MachineNotLaunched", "Machine is not launched")
    node = state.node
    if node is None or not is_marked(state, node):
        return _not_yet("NodeNotFound", "Node not registered with cluster")
    if not is_ready(node):
        return _not_yet("NodeNotReady", "Node status is NotReady")
    if taint := _startup_taint(state, node):
        return _not_yet("StartupTaintsExist", f'StartupTaint "{taint}" still exists')
    for found in node.spec.taints:
        if (found.key, found.effect) in _EPHEMERAL:
            text = _text(found.key, found.value, found.effect)
            return _not_yet(
                "KnownEphemeralTaintsExist", f'KnownEphemeralTaint "{text}" still exists'
            )
    if resource := _missing_resource(state, node):
        return _not_yet(
            "ResourceNotRegistered", f'Resource "{resource}" was requested but not registered'
        )
    if node.metadata.labels.get(constants.LABEL_INITIALIZED) != "true":
        body = {"metadata": {"labels": {constants.LABEL_INITIALIZED: "true"}}}
        patch = Patch(NODES.ref(node), node.metadata.resource_version, body)
        step = _not_yet("NodeNotReady", "Node is not labelled initialized yet")
        # The echo of our own patch wakes nobody (rule G16).
        return Step(False, (patch,), step.conditions, requeue_after=0.0)
    return Step(True, conditions=(Condition(INITIALIZED, "True", ""),))


def _startup_taint(state: State, node: Node) -> str:
    on_node = {(t.key, t.effect) for t in node.spec.taints}
    for taint in state.claim.startup_taints:
        if (taint.key, taint.effect) in on_node:
            return _text(taint.key, taint.value, taint.effect)
    return ""


def _missing_resource(state: State, node: Node) -> str:
    """The first requested resource that is not allocatable; storage is the disk's (facts P1.9)."""
    for resource, wanted in sorted(state.claim.requests.items()):
        if resource == "storage" or not parse_quantity(str(wanted)):
            continue
        if not parse_quantity(node.status.allocatable.get(resource, "0")):
            return resource
    is_gpu_node = node.metadata.labels.get(constants.LABEL_MACHINE_TYPE) == "gpu"
    if state.settings.wait_for_gpu and is_gpu_node and not gpu_allocatable(node):
        return constants.RESOURCE_GPU
    return ""


def _text(key: str, value: str, effect: str) -> str:
    return f"{key}={value}:{effect}" if value else f"{key}:{effect}"


def _not_yet(reason: str, message: str) -> Step:
    return Step(False, conditions=(Condition(INITIALIZED, "False", reason, message),))
