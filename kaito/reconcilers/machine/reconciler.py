"""The shell for one claim: observe once, decide once, act in order, report once.

The cloud is read from the inventory only. A refused launch is no error of the pass: it is written
on the claim (the gate) and told, and the gate says when the next is due.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from kaito import constants
from kaito.api.claim import Claim, condition
from kaito.api.conditions import Condition
from kaito.api.machine import Machine
from kaito.api.meta import ConditionView, Key, ObjectRef, Undecodable
from kaito.api.views import Node, Pod
from kaito.clock import Clock, parse_rfc3339, rfc3339
from kaito.controller.result import Result
from kaito.errors import After, CloudError, KaitoError, NotFound
from kaito.informers.lister import Lister
from kaito.kube.client import KubeClient
from kaito.metrics import CLAIM_PHASE_SECONDS, CLAIMS, LAUNCH_FAILURES
from kaito.provisioner.inventory import Inventory
from kaito.reconcilers.act import Actor, Failure, Outcome
from kaito.reconcilers.actions import Action, Event, Launch, RemoveFinalizer, Terminate
from kaito.reconcilers.chain import Plan, decide
from kaito.reconcilers.kinds import MACHINES, PODS
from kaito.reconcilers.machine import gate as gates
from kaito.reconcilers.machine.state import MachineSettings, State
from kaito.reconcilers.machine.steps import launch
from kaito.reconcilers.machine.steps.chains import LIFE, TERMINATION
from kaito.reconcilers.machine.steps.registration import status_fields
from kaito.reconcilers.machine.summary import (
    milestones,
    on_wire,
    phase,
    settle,
    transition_events,
)
from kaito.reconcilers.machine.words import DIAGNOSIS, INITIALIZED, LAUNCHED, READY, REGISTERED

log = structlog.get_logger()

BY_AGENTPOOL: Final = "agentpool"
"""Index of Nodes by the pool they belong to."""

_PHASES: Final = {
    LAUNCHED: ("launch", None),
    REGISTERED: ("register", LAUNCHED),
    INITIALIZED: ("initialize", REGISTERED),
}


def spread() -> float:
    """A factor of 0.8 to 1.2 on a wait (facts P6.3)."""
    return random.uniform(0.8, 1.2)  # noqa: S311 - not a secret


class MachineReconciler:
    """Key: ``("", name)`` of a Machine. Keeps nothing that a restart would miss.

    ``nodes`` has the index ``BY_AGENTPOOL``.
    """

    def __init__(
        self,
        *,
        client: KubeClient,
        actor: Actor,
        clock: Clock,
        inventory: Inventory,
        machines: Lister[Machine | Undecodable],
        nodes: Lister[Node],
        settings: MachineSettings | None = None,
        jitter: Callable[[], float] = spread,
    ) -> None:
        self._client = client
        self._actor = actor
        self._clock = clock
        self._inventory = inventory
        self._machines = machines
        self._nodes = nodes
        self._settings = settings or MachineSettings()
        self._jitter = jitter
        self._phases: dict[str, str] = {}  # for the metric only

    async def reconcile(self, key: Key) -> Result:
        """One pass."""
        _, name = key
        found = self._machines.get("", name)
        if found is None:
            self._count(name, None)
            return Result()
        state = await self._observe(_readable(found))
        if not state.is_ours:
            return Result()
        if isinstance(found, Undecodable) and not found.metadata.is_deleting:
            told = (Condition(READY, "False", "Undecodable", found.error),)
            await self._report(state, Plan(conditions=told), Outcome())
            return Result()
        plan = decide(TERMINATION if found.metadata.is_deleting else LIFE, state)
        try:
            outcome = await self._actor.act(state.ref, plan.actions)
        except BaseException:
            self._inventory.wake_after(name)  # cut off: a call to the cloud may have been run
            raise
        self._look_after(state, plan, outcome)
        plan, outcome = await self._tell_refusal(state, plan, outcome)
        errors = [f.error for f in outcome.failures]
        if not _let_go(state, plan, outcome):
            try:
                await self._report(state, plan, outcome)
            except KaitoError as err:
                errors.append(err)
        return self._result(plan, errors)

    async def _observe(self, claim: Claim) -> State:
        name, now = claim.metadata.name, self._clock.now()
        snapshot, failure = self._inventory.latest, self._inventory.failure
        nodes = tuple(
            node
            for node in self._nodes.by_index(BY_AGENTPOOL, name)
            if node.metadata.labels.get(constants.LABEL_CLAIM_UID, claim.metadata.uid)
            == claim.metadata.uid
        )
        return State(
            claim=claim,
            ref=_ref(claim),
            settings=self._settings,
            now=now,
            jitter=self._jitter(),
            instance=None if snapshot is None else snapshot.instances.get(name),
            listed_at=None
            if snapshot is None
            else now - (self._clock.monotonic() - snapshot.started),
            is_awaited=self._inventory.is_awaited(name),
            cloud_trouble="" if failure is None else f"{failure} ({failure.remedy})",
            gate=gates.read(claim.metadata),
            nodes=nodes,
            pods=await self._pods(nodes) if claim.metadata.is_deleting else (),
        )

    async def _pods(self, nodes: tuple[Node, ...]) -> tuple[Pod, ...]:
        """Read live and only while draining: a cache of all pods would cost far more (W30)."""
        pods: list[Pod] = []
        for node in nodes:
            selector = f"spec.nodeName={node.metadata.name}"
            pods += await self._client.list(PODS, field_selector=selector)
        return tuple(pods)

    def _look_after(self, state: State, plan: Plan, outcome: Outcome) -> None:
        """After a call to the cloud the next list is what tells; it wakes this claim (rule G16)."""
        name = state.ref.name
        failed = {id(f.action): f.error for f in outcome.failures}
        for action in plan.actions:
            if not isinstance(action, Launch | Terminate):
                continue
            error = failed.get(id(action))
            if error is None or error.reason == "CloudUnavailable":
                self._inventory.wake_after(name)
            if error is None:
                self._inventory.look_soon()
                log.info("asked the cloud", call=type(action).__name__.lower(), claim=name)
                self._observe_drain(state, action)
        if state.wants_list and not self._inventory.is_awaited(name):
            self._inventory.wake_after(name)
            self._inventory.look_soon()

    async def _tell_refusal(
        self, state: State, plan: Plan, outcome: Outcome
    ) -> tuple[Plan, Outcome]:
        """A refused launch: written on the claim in the same pass, and told in the same report."""
        refused = _refused_launch(outcome)
        if refused is None:
            return plan, outcome
        failure, error = refused
        log.warning("launch refused", claim=state.ref.name, reason=error.reason, error=str(error))
        gate = launch.refusal(state, error)
        actions: list[Action] = [launch.gate_patch(state, gate)]
        if launch.is_failure(gate.reason):
            actions.append(launch.failure_event(gate))
        written = await self._actor.act(state.ref, actions)
        others = tuple(f for f in outcome.failures if f is not failure)
        told = launch.told(gate)
        spoken = {c.type for c in told}
        conditions = (*(c for c in plan.conditions if c.type not in spoken), *told)
        return (
            replace(
                plan,
                actions=(*plan.actions, *actions),
                conditions=conditions,
                requeue_after=None if gate.next is None else gate.next - state.now,
            ),
            Outcome(
                (*others, *written.failures),
                written.resource_version or outcome.resource_version,
            ),
        )

    async def _report(self, state: State, plan: Plan, outcome: Outcome) -> None:
        """One status patch, if it says anything new; then Events and metrics of transitions."""
        before = state.claim.conditions
        after = settle(state, plan.conditions, now=rfc3339(state.now), drops=plan.drops)
        status: dict[str, Any] = {} if after == before else {"conditions": on_wire(after)}
        status |= _changed_fields(state)
        if status:
            version = outcome.resource_version or state.claim.metadata.resource_version
            body = {"metadata": {"resourceVersion": version}, "status": status}
            try:
                await self._client.merge_patch(
                    MACHINES, "", state.ref.name, body, subresource="status"
                )
            except NotFound:  # it went while we worked
                return
        await self._actor.act(state.ref, transition_events(before, after))
        if any(isinstance(a, Event) and a.reason == "LaunchFailed" for a in plan.actions):
            cause = next(c.reason for c in after if c.type == DIAGNOSIS)
            LAUNCH_FAILURES.labels(cause).inc()
        self._observe_phases(state, after)
        self._count(state.ref.name, phase(state, after))

    def _observe_phases(self, state: State, after: tuple[ConditionView, ...]) -> None:
        for type_ in milestones(state.claim.conditions, after):
            name, previous = _PHASES[type_]
            since = condition(state.claim, previous) if previous else None
            began = since.last_transition_time if since is not None else ""
            start = parse_rfc3339(began or state.claim.metadata.creation_timestamp)
            CLAIM_PHASE_SECONDS.labels(name).observe(max(0.0, state.now - start))
            log.info("claim reached a phase", claim=state.ref.name, condition=type_)

    def _observe_drain(self, state: State, action: Action) -> None:
        if isinstance(action, Terminate) and state.claim.metadata.is_deleting and state.nodes:
            seconds = max(0.0, state.now - state.deletion_time)
            CLAIM_PHASE_SECONDS.labels("drain").observe(seconds)

    def _count(self, name: str, now_in: str | None) -> None:
        """Moves the claim from one phase's count to another's; None takes it out."""
        touched = {self._phases.pop(name, None), now_in}
        if now_in is not None:
            self._phases[name] = now_in
        totals = Counter(self._phases.values())
        for each in touched:
            if each is not None:
                CLAIMS.labels(each).set(totals[each])

    def _result(self, plan: Plan, errors: Sequence[KaitoError]) -> Result:
        """A refusal to terminate is tried again on the cloud's own time; others are failures."""
        waits = [] if plan.requeue_after is None else [plan.requeue_after]
        failure: KaitoError | None = None
        for error in errors:
            if isinstance(error, CloudError):
                log.warning("cloud refused", reason=error.reason, error=str(error))
                waits.append(self._cloud_wait(error))
            else:
                failure = failure or error
        if failure is not None:  # "again at once" is for a pass that worked: here it would storm
            waits = [wait for wait in waits if wait > 0]
        return Result(min(waits, default=None), failure)

    def _cloud_wait(self, error: CloudError) -> float:
        wait = error.retry.seconds if isinstance(error.retry, After) else 600.0
        longest = self._settings.launch_retry_max
        return wait if longest is None else min(wait, longest)


def _readable(found: Machine | Undecodable) -> Machine:
    """A claim that cannot be read can still be deleted: its name is all that takes."""
    return Machine(metadata=found.metadata) if isinstance(found, Undecodable) else found


def _ref(claim: Claim) -> ObjectRef:
    return MACHINES.ref(claim)


def _refused_launch(outcome: Outcome) -> tuple[Failure, CloudError] | None:
    for failure in outcome.failures:
        if isinstance(failure.action, Launch) and isinstance(failure.error, CloudError):
            return failure, failure.error
    return None


def _let_go(state: State, plan: Plan, outcome: Outcome) -> bool:
    """Our finalizer went off in this pass: there may be no object left to report on."""
    failed = {id(f.action) for f in outcome.failures}
    removed = any(
        isinstance(a, RemoveFinalizer) and a.ref == state.ref and id(a) not in failed
        for a in plan.actions
    )
    if removed:
        seconds = max(0.0, state.now - state.deletion_time)
        CLAIM_PHASE_SECONDS.labels("terminate").observe(seconds)
        log.info("claim finalized", claim=state.ref.name, seconds=round(seconds, 1))
    return removed


def _changed_fields(state: State) -> dict[str, Any]:
    """Status fields copied from the Node that are not on the claim yet."""
    claim = state.claim
    assert isinstance(claim, Machine)
    found = {
        "nodeName": claim.node_name,
        "providerID": claim.provider_id,
        "capacity": dict(claim.status.capacity),
        "allocatable": dict(claim.status.allocatable),
    }
    return {k: v for k, v in status_fields(state).items() if found[k] != v}
