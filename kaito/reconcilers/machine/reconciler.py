"""The shell for one claim: observe once, decide once, act in order, report once.

The cloud is read from the inventory only. A refused launch is no error of the pass: it is written
on the claim (the gate) and told, and the gate says when the next is due.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from kaito.api import reasons
from kaito.api.claim import Claim, condition
from kaito.api.conditions import Condition
from kaito.api.machine import Machine, MachineStatus
from kaito.api.meta import ConditionView, Key, ObjectRef, Undecodable
from kaito.api.views import Node, Pod
from kaito.clock import Clock, parse_rfc3339, rfc3339
from kaito.controller.result import Result
from kaito.errors import After, CloudError, KaitoError, NameTaken, NotFound
from kaito.informers.lister import Lister
from kaito.kube.client import KubeClient
from kaito.metrics import CLAIM_PHASE_SECONDS, CLAIMS, LAUNCH_FAILURES
from kaito.provisioner.asks import Call
from kaito.provisioner.inventory import Inventory
from kaito.reconcilers.act import Actor, Failure, Outcome
from kaito.reconcilers.actions import Action, Event, Launch, Prove, RemoveFinalizer, Terminate
from kaito.reconcilers.chain import Plan, decide
from kaito.reconcilers.kinds import MACHINES, PODS
from kaito.reconcilers.machine import gate as gates
from kaito.reconcilers.machine import refusals
from kaito.reconcilers.machine.state import MachineSettings, State, nodes_of, strays
from kaito.reconcilers.machine.steps import launch
from kaito.reconcilers.machine.steps.chains import LIFE, TERMINATION
from kaito.reconcilers.machine.steps.registration import status_fields
from kaito.reconcilers.machine.summary import milestones, on_wire, phase, settle, transition_events
from kaito.reconcilers.machine.words import DIAGNOSIS, INITIALIZED, LAUNCHED, READY, REGISTERED

log = structlog.get_logger()

BY_AGENTPOOL: Final = "agentpool"
"""Index of Nodes by the pool they belong to."""

_CALLS: Final[Mapping[type[Action], Call]] = {
    Launch: Call.LAUNCH,
    Terminate: Call.TERMINATE,
    Prove: Call.PROVE,
}
_LEAST_WAIT_SECONDS: Final = 1.0
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
        self._works_since = math.inf

    async def reconcile(self, key: Key) -> Result:
        """One pass."""
        _, name = key
        self._works_since = min(self._works_since, self._clock.now())
        found = self._machines.get("", name)
        if found is None:
            self._inventory.asks.forget(name)
            self._count(name, None)
            return Result()
        state = await self._observe(_readable(found))
        if not state.is_ours:
            return Result()
        if isinstance(found, Undecodable) and not found.metadata.is_deleting:
            text = f"{found.error}. {reasons.remedy('Undecodable')}"
            told = (Condition(READY, "False", "Undecodable", text),)
            # No Nodes: what is copied from them cannot be compared with what the claim has.
            await self._report(replace(state, nodes=()), Plan(conditions=told), Outcome())
            return Result()
        plan = decide(TERMINATION if found.metadata.is_deleting else LIFE, state)
        try:
            outcome = await self._actor.act(state.ref, plan.actions)
        except BaseException:
            self._inventory.wake_after(name)  # cut off: a call to the cloud may have been run
            raise
        self._look_after(state, plan, outcome)
        await self._tell_launch(state, plan, outcome)
        plan, outcome = await self._tell_refusal(state, plan, outcome)
        plan = self._tell_failures(state, plan, outcome)
        errors = [f.error for f in outcome.failures]
        if _let_go(state, plan, outcome):
            self._inventory.asks.forget(name)
        else:
            try:
                await self._report(state, plan, outcome)
            except KaitoError as err:
                errors.append(err)
        return self._result(state, plan, errors)

    async def _observe(self, claim: Claim) -> State:
        name, now = claim.metadata.name, self._clock.now()
        snapshot, failure = self._inventory.latest, self._inventory.failure
        instance = None if snapshot is None else snapshot.instances.get(name)
        candidates = self._nodes.by_index(BY_AGENTPOOL, name)
        nodes = nodes_of(claim.metadata.uid, candidates, instance)
        pods, trouble = await self._pods(nodes) if claim.metadata.is_deleting else ((), "")
        return State(
            claim=claim,
            ref=_ref(claim),
            settings=self._settings,
            now=now,
            jitter=self._jitter(),
            instance=instance,
            listed_at=None
            if snapshot is None
            else now - (self._clock.monotonic() - snapshot.started),
            is_awaited=self._inventory.is_awaited(name),
            unshown=self._inventory.asks.waits(name, self._clock.monotonic()),
            farewell=self._inventory.asks.farewell(name, claim.metadata.uid),
            works_since=self._works_since,
            cloud_trouble="" if failure is None else f"{failure} ({failure.remedy})",
            gate=gates.read(claim.metadata),
            nodes=nodes,
            strays=strays(claim.metadata.uid, candidates),
            pods=pods,
            pods_trouble=trouble,
        )

    async def _pods(self, nodes: tuple[Node, ...]) -> tuple[tuple[Pod, ...] | None, str]:
        """Read live and only while draining: a cache of all pods would cost far more (W30).

        A list that fails ends no pass: the claim has to say so, and its machine to go in the end.
        """
        pods: list[Pod] = []
        try:
            for node in nodes:
                selector = f"spec.nodeName={node.metadata.name}"
                pods += await self._client.list(PODS, field_selector=selector)
        except KaitoError as err:
            log.warning("pods cannot be listed", reason=err.reason, error=str(err))
            return None, str(err)
        return tuple(pods), ""

    def _look_after(self, state: State, plan: Plan, outcome: Outcome) -> None:
        """After a call to the cloud the next list is what tells; it wakes this claim (rule G16)."""
        name = state.ref.name
        failed = {id(f.action): f.error for f in outcome.failures}
        for action in plan.actions:
            call = _CALLS.get(type(action))
            if call is None:
                continue
            error = failed.get(id(action))
            if error is None or (isinstance(error, CloudError) and error.may_be_done):
                self._inventory.wake_after(name)
            if error is None or isinstance(error, CloudError):
                self._inventory.asked(name, call)
            if error is None:
                self._inventory.look_soon()
                log.info("asked the cloud", call=call.value, claim=name)
                self._observe_drain(state, action)
        if outcome.word is not None and state.claim.metadata.is_deleting:
            was_deletion = any(isinstance(action, Terminate) for action in plan.actions)
            self._inventory.asks.hear(name, state.ref.uid, outcome.word, was_deletion=was_deletion)
        if state.wants_list and not self._inventory.is_awaited(name):
            self._inventory.wake_after(name)
            self._inventory.look_soon()

    async def _tell_launch(self, state: State, plan: Plan, outcome: Outcome) -> None:
        unsent = [f.action for f in outcome.failures if not isinstance(f.error, CloudError)]
        await self._actor.act(state.ref, refusals.launch_events(plan.actions, unsent))

    def _tell_failures(self, state: State, plan: Plan, outcome: Outcome) -> Plan:
        """No failed call leaves told what would have been so had it worked (rule G18)."""
        is_refused = False
        for failure in outcome.failures:
            action, error = failure.action, failure.error
            if isinstance(action, Launch):
                plan = refusals.unsent_launch(state, plan, error)
            elif isinstance(action, Terminate | Prove):
                is_refused = True
                if isinstance(error, CloudError | NameTaken):
                    wait = self._cloud_wait(state, error)
                    plan = refusals.refused_deletion(state, plan, error, wait=wait)
        return plan if is_refused else refusals.without_old_refusal(state, plan)

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
        return (
            replace(
                refusals.spoken(plan, launch.told(gate)),
                actions=(*plan.actions, *actions),
                requeue_after=None if gate.next is None else gate.next - state.now,
            ),
            Outcome(
                (*others, *written.failures), written.resource_version or outcome.resource_version
            ),
        )

    async def _report(self, state: State, plan: Plan, outcome: Outcome) -> None:
        """One status patch, if it says anything new; then Events and metrics of transitions."""
        before = state.claim.conditions
        after = settle(state, plan.conditions, now=rfc3339(state.now), drops=plan.drops)
        status: dict[str, Any] = {} if after == before else {"conditions": on_wire(after)}
        if not state.claim.metadata.is_deleting:
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

    def _result(self, state: State, plan: Plan, errors: Sequence[KaitoError]) -> Result:
        """A refusal to terminate is tried again on the cloud's own time; others are failures."""
        waits = [] if plan.requeue_after is None else [plan.requeue_after]
        failure: KaitoError | None = None
        for error in errors:
            if isinstance(error, CloudError):
                log.warning("cloud refused", reason=error.reason, error=str(error))
                waits.append(self._cloud_wait(state, error))
            else:
                failure = failure or error
        if failure is not None:  # "again at once" is for a pass that worked: here it would storm
            waits = [wait for wait in waits if wait > 0]
        return Result(min(waits, default=None), failure)

    def _cloud_wait(self, state: State, error: KaitoError) -> float:
        """Spread, and never none: a Retry-After of 0 is no leave to storm."""
        asked = error.retry.seconds if isinstance(error.retry, After) else 600.0
        wait = max(asked, _LEAST_WAIT_SECONDS) * state.jitter
        longest = self._settings.launch_retry_max
        return wait if longest is None else min(wait, longest)


def _readable(found: Machine | Undecodable) -> Machine:
    """A claim that cannot be read can still be deleted: its name is all that takes."""
    if isinstance(found, Machine):
        return found
    return Machine(metadata=found.metadata, status=MachineStatus(conditions=found.conditions))


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
