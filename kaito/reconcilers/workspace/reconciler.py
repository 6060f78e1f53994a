"""The shell for one Workspace: read once, decide once, act in order, report once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from kaito import constants, metrics
from kaito.api import reasons
from kaito.api.conditions import Condition, ConditionType
from kaito.api.machine import Machine
from kaito.api.meta import Key, ObjectMeta, Owned, Undecodable
from kaito.api.validation import faults
from kaito.api.views import Node, NodeClaim
from kaito.api.workspace import Workspace, WorkspaceStatus
from kaito.catalog import skus
from kaito.catalog.presets import Preset
from kaito.clock import Clock, parse_rfc3339
from kaito.controller.result import Result
from kaito.errors import After, Backoff, KaitoError, Never, NotFound
from kaito.informers.lister import Lister
from kaito.kube.client import KubeClient
from kaito.reconcilers import kinds
from kaito.reconcilers.act import Actor, Outcome
from kaito.reconcilers.actions import Create, Delete, Patch, RemoveFinalizer
from kaito.reconcilers.chain import Plan, decide
from kaito.reconcilers.status import merge
from kaito.reconcilers.workspace.naming import owns, workspace_ref
from kaito.reconcilers.workspace.report import Refusal, changes, events, report
from kaito.reconcilers.workspace.state import Options, Orphaned, OwnClaim, State
from kaito.reconcilers.workspace.steps.chains import CLEANUP, ORPHANS, STEPS
from kaito.reconcilers.workspace.summary import summarize

log = structlog.get_logger()

# Other rooms index the same kinds: the prefix keeps the names apart.
BY_WORKSPACE_UID: Final = "workspace/uid"
BY_WORKSPACE: Final = "workspace/key"
BY_NODE: Final = "workspace/node"
NEXT_PASS_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Listers:
    """The caches that a pass reads.

    Claims are indexed by BY_WORKSPACE_UID and BY_WORKSPACE (``namespace/name``), Nodes by
    BY_WORKSPACE_UID; see ``wiring.py``.
    """

    workspaces: Lister[Workspace | Undecodable]
    machines: Lister[Machine | Undecodable]
    nodeclaims: Lister[NodeClaim]
    nodes: Lister[Node]
    deployments: Lister[Owned]
    services: Lister[Owned]


class WorkspaceReconciler:
    """Brings one Workspace a step closer to what its user asked for. No state between passes."""

    def __init__(
        self,
        *,
        client: KubeClient,
        actor: Actor,
        clock: Clock,
        listers: Listers,
        presets: Mapping[str, Preset],
        options: Options,
    ) -> None:
        self._client = client
        self._actor = actor
        self._clock = clock
        self._listers = listers
        self._presets = presets
        self._options = options

    async def reconcile(self, key: Key) -> Result:
        """One pass. The key may be of a Workspace that is gone and has left claims behind.

        A refused write is the result's failure once all else was done and told; the wait that the
        plan asked for stands beside it (rule G15).
        """
        found = self._listers.workspaces.get(*key)
        orphans = await self._release_orphans(key, found)
        match found:
            case None:
                failures, wait = orphans, None
            case Undecodable():
                failures, wait = await self._tell_unreadable(found)
                failures = (*orphans, *failures)
            case Workspace():
                failures, wait = await self._pass(self._observe(found))
                failures = (*orphans, *failures)
        return Result(wait, failure=min(failures, key=_patience, default=None))

    async def _pass(self, state: State) -> tuple[tuple[KaitoError, ...], float | None]:
        meta = state.workspace.metadata
        plan = decide(CLEANUP if meta.is_deleting else STEPS, state)
        outcome = await self._actor.act(workspace_ref(meta), plan.actions)
        failures = tuple(f.error for f in outcome.failures)
        if not _let_go(plan, outcome):
            try:
                await self._report(state, plan, outcome)
            except KaitoError as err:
                failures = (*failures, err)
        return failures, _wait(plan, failures)

    def _observe(self, workspace: Workspace) -> State:
        meta = workspace.metadata
        claims = tuple(c for c in self._claims(meta) if _is_of(c, workspace))
        preset_spec = workspace.inference.preset if workspace.inference else None
        preset = self._presets.get(preset_spec.name) if preset_spec else None
        marked = self._listers.nodes.by_index(BY_WORKSPACE_UID, meta.uid)
        used = (self._listers.nodes.get("", c.node_name) for c in claims if c.node_name)
        return State(
            workspace=workspace,
            options=self._options,
            preset=preset,
            now=self._clock.now(),
            faults=faults(workspace, presets=self._presets, skus=skus.of(self._options.provider)),
            claims=claims,
            nodes={node.metadata.name: node for node in (*marked, *used) if node is not None},
            deployment=_owned(self._listers.deployments.get(*meta.key), meta.uid),
            service=_owned(self._listers.services.get(*meta.key), meta.uid),
        )

    def _claims(self, meta: ObjectMeta) -> list[OwnClaim]:
        """Claims that name this Workspace, by uid or by namespace and name; of both kinds."""
        found: dict[str, OwnClaim] = {}
        for index, value in (
            (BY_WORKSPACE_UID, meta.uid),
            (BY_WORKSPACE, f"{meta.namespace}/{meta.name}"),
        ):
            for machine in self._listers.machines.by_index(index, value) if value else ():
                found[machine.metadata.uid] = _own_machine(machine)
            for claim in self._listers.nodeclaims.by_index(index, value) if value else ():
                found[claim.metadata.uid] = OwnClaim(
                    kinds.NODECLAIMS.ref(claim), claim.metadata, claim.node_name, claim.conditions
                )
        return list(found.values())

    async def _release_orphans(
        self, key: Key, found: Workspace | Undecodable | None
    ) -> tuple[KaitoError, ...]:
        """Delete claims of a Workspace of this name that is no more; a live read has the last word.

        A cache that is behind would otherwise end the nodes of a Workspace that was just created.
        """
        namespace, name = key
        claims = tuple(
            c
            for c in self._claims(ObjectMeta(namespace=namespace, name=name))
            if not _is_of(c, found) and not c.metadata.is_deleting and not self._has_owner(c)
        )
        if not claims:
            return ()
        try:
            live = await self._client.get(kinds.WORKSPACES, namespace, name)
        except KaitoError as err:
            return (err,)
        uid = live.metadata.uid if live else None
        plan = decide(ORPHANS, Orphaned(claims, uid, _slots(live)))
        if plan.actions:
            log.info("deleting claims without a workspace", claims=len(plan.actions))
        outcome = await self._actor.act(
            workspace_ref(ObjectMeta(namespace=namespace, name=name)), plan.actions
        )
        return tuple(f.error for f in outcome.failures)

    def _has_owner(self, claim: OwnClaim) -> bool:
        """Its Workspace lives under another name: someone edited the name labels, not the uid."""
        uid = claim.metadata.labels.get(constants.LABEL_WORKSPACE_UID, "")
        return bool(uid and self._listers.workspaces.by_index(BY_WORKSPACE_UID, uid))

    async def _report(self, state: State, plan: Plan, outcome: Outcome) -> None:
        before, meta = state.workspace.status, state.workspace.metadata
        after = report(state, plan, [Refusal(f.action, f.error) for f in outcome.failures])
        patch = changes(before, after)
        if not patch:
            return
        # What this pass has written itself is no conflict; anything newer is (rule G12).
        version = outcome.resource_version or meta.resource_version
        if not await self._patch_status(meta, version, patch):
            return
        await self._actor.act(workspace_ref(meta), events(before.conditions, after["conditions"]))
        self._measure(state, before, after["conditions"])

    async def _patch_status(self, meta: ObjectMeta, version: str, patch: Mapping[str, Any]) -> bool:
        """False when the Workspace is gone: nobody is left to be told."""
        try:
            await self._client.merge_patch(
                kinds.WORKSPACES,
                meta.namespace,
                meta.name,
                {"metadata": {"resourceVersion": version}, "status": patch},
                subresource="status",
            )
        except NotFound:
            return False
        return True

    def _measure(
        self, state: State, before: WorkspaceStatus, after: Sequence[Mapping[str, Any]]
    ) -> None:
        """Time from creation to each condition's first True. Later ups and downs do not count."""
        if before.state in ("Ready", "NotReady"):
            return
        held = {c.type for c in before.conditions if c.status == "True"}
        age = state.now - parse_rfc3339(state.workspace.metadata.creation_timestamp)
        for type_ in (c["type"] for c in after if c["status"] == "True"):
            if type_ in set(ConditionType) - held:
                metrics.WORKSPACE_PHASE_SECONDS.labels(type_).observe(age)

    async def _tell_unreadable(
        self, found: Undecodable
    ) -> tuple[tuple[KaitoError, ...], float | None]:
        """Nothing is decided for what cannot be read, but a deletion is carried out and it is told.

        Its old conditions are unknown: the time is the creation's, so that telling it again is no
        change.
        """
        meta = found.metadata
        if meta.is_deleting:
            return await self._pass(self._observe(Workspace(metadata=meta)))
        text = f"{found.error}. {reasons.remedy('Undecodable')}"
        unmet = Condition(ConditionType.RESOURCE_READY, "False", "Undecodable", text)
        conditions = merge(
            (),
            (unmet, *summarize((unmet,), endpoint="", is_deleting=False)),
            generation=meta.generation,
            now=meta.creation_timestamp,
        )
        try:
            await self._patch_status(meta, meta.resource_version, {"conditions": conditions})
        except KaitoError as err:
            return (err,), None
        return (), None


def _own_machine(machine: Machine | Undecodable) -> OwnClaim:
    ref = kinds.MACHINES.ref(machine)
    if isinstance(machine, Undecodable):
        return OwnClaim(ref, machine.metadata)  # holds its slot, whatever else it says
    return OwnClaim(ref, machine.metadata, machine.node_name, machine.conditions)


def _is_of(claim: OwnClaim, workspace: Workspace | Undecodable | None) -> bool:
    return workspace is not None and owns(workspace.metadata.uid, _slots(workspace), claim.metadata)


def _slots(workspace: Workspace | Undecodable | None) -> int:
    """How many slots it has names for; one that cannot be read is taken to have one."""
    if not isinstance(workspace, Workspace) or workspace.resource is None:
        return 1
    return workspace.resource.count


def _owned(found: Owned | None, uid: str) -> Owned | None:
    return found if found is not None and found.metadata.controller_uid() == uid else None


def _wait(plan: Plan, failures: Sequence[KaitoError]) -> float | None:
    """A pass that made or removed something looks again: its own echoes wake nobody (rule G16).

    Not when a write failed: its error says when to come back, and sooner would be a storm. Nor for
    an Apply: what the server will not keep as we want it would be applied without end.
    """
    if failures or not any(isinstance(a, Create | Delete | Patch) for a in plan.actions):
        return plan.requeue_after
    return min(NEXT_PASS_SECONDS, plan.requeue_after or NEXT_PASS_SECONDS)


def _patience(error: KaitoError) -> float:
    """How long an error is content to wait: the least patient one decides when to come back."""
    match error.retry:
        case Backoff():
            return 0.0
        case After(seconds):
            return seconds
        case Never():
            return math.inf


def _let_go(plan: Plan, outcome: Outcome) -> bool:
    """Our finalizer went in this pass: the object may be gone, there is nothing left to tell."""
    refused = [f.action for f in outcome.failures]
    return any(isinstance(a, RemoveFinalizer) and a not in refused for a in plan.actions)
