"""The interpreter: an action to a call. Nothing else in the reconcilers awaits a write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from kaito import constants
from kaito.api.meta import ApiObject, ObjectMeta, ObjectRef
from kaito.controller.events import EventRecorder
from kaito.errors import (
    AlreadyExists,
    CloudError,
    Conflict,
    KaitoError,
    KindNotServed,
    NameTaken,
    NotFound,
    NotLeader,
    TooManyRequests,
)
from kaito.kube.client import KubeClient
from kaito.provisioner.interface import Instance, InstanceState, NodeBackend, Word
from kaito.reconcilers import kinds
from kaito.reconcilers.actions import (
    Action,
    Apply,
    Create,
    Delete,
    Event,
    Evict,
    Launch,
    Patch,
    Prove,
    RemoveFinalizer,
    Terminate,
)
from kaito.reconcilers.ownership import belongs_to

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """An action that was refused, and by what."""

    action: Action
    error: KaitoError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a plan's actions.

    ``resource_version``: of the object the plan is about, if an action wrote it; the status patch
    of the same pass must carry it (rule G12).
    ``word``: the cloud's live word on the claim's instance, None when none was asked for or given.
    """

    failures: tuple[Failure, ...] = ()
    resource_version: str | None = None
    word: Word | None = None

    @property
    def worst(self) -> KaitoError | None:
        """The error to raise when all is done: the first, as later ones often follow from it."""
        return self.failures[0].error if self.failures else None


class Actor:
    """Carries out plans.

    ``backend``: None where no cloud is driven (the Workspace side); Launch, Terminate and Prove
    are then a programming error. ``fence`` raises NotLeader; writes to the API server pass the
    client's own.
    """

    def __init__(
        self,
        *,
        client: KubeClient,
        recorder: EventRecorder,
        backend: NodeBackend | None = None,
        fence: Callable[[], float] | None = None,
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._backend = backend
        self._fence = fence

    async def act(self, regarding: ObjectRef, actions: Sequence[Action]) -> Outcome:
        """Carry out in order. A refused action holds back later ones on its object only (G15)."""
        failures: list[Failure] = []
        versions: dict[ObjectRef, str] = {}
        refused: set[ObjectRef] = set()
        word: Word | None = None
        for action in actions:
            if isinstance(action, Event):
                self._recorder.record(
                    regarding, action.type, action.reason, action.action, action.note
                )
                continue
            target = _target(action)
            if target in refused:
                continue
            try:
                answer = await self._one(action, versions.get(target))
            except KaitoError as err:
                failures.append(Failure(action, err))
                refused.add(target)
            else:
                if isinstance(answer, Word):
                    word = answer
                elif answer is not None:
                    versions[target] = answer.metadata.resource_version
        return Outcome(tuple(failures), versions.get(_anonymous(regarding)), word)

    async def _one(self, action: Action, own_version: str | None) -> ApiObject | Word | None:
        match action:
            case Create():
                return await self._create(action)
            case Apply(manifest, uid, resource_version):
                return await self._client.apply(
                    kinds.by_name(manifest["apiVersion"], manifest["kind"]),
                    _at_version(manifest, own_version or resource_version),
                    field_manager=constants.FIELD_MANAGER,
                    uid=uid,
                )
            case Patch(ref, resource_version, body):
                return await self._client.merge_patch(
                    kinds.by_name(ref.api_version, ref.kind),
                    ref.namespace,
                    ref.name,
                    _at_version(body, own_version or resource_version),
                )
            case RemoveFinalizer():
                return await self._remove_finalizer(action)
            case Delete():
                return await self._delete(action)
            case Evict(ref):
                await self._evict(ref)
            case Launch(claim, request, generation):
                _check_orderable(claim, await self._check_claim(claim), generation)
                await self._led(self._cloud.launch(request))
            case Terminate():
                return await self._terminate(action)
            case Prove(claim):
                return _word(await self._led(self._cloud.get(claim.name)))
            case Event():  # pragma: no cover - carried out by act()
                raise AssertionError
        return None

    async def _create(self, action: Create) -> ApiObject:
        manifest = action.manifest
        kind = kinds.by_name(manifest["apiVersion"], manifest["kind"])
        try:
            return await self._client.create(kind, manifest)
        except AlreadyExists as err:
            metadata = manifest["metadata"]
            live = await self._client.get(kind, metadata.get("namespace", ""), metadata["name"])
            if live is None:  # gone between the two calls: the next pass creates it
                raise Conflict(f"{kind} {metadata['name']} was there and is gone") from err
            if not belongs_to(live.metadata, action.owner_uid):
                raise NameTaken(
                    f"{kind} {_where(live)} exists and belongs to {_owner(live)}: "
                    "delete or rename it, or rename the Workspace"
                ) from err
            return live

    async def _remove_finalizer(self, action: RemoveFinalizer) -> ApiObject | None:
        if action.left_by is not None:
            await self._check_leftover(action.left_by.name, action.left_by.uid)
        path = f"/metadata/finalizers/{action.index}"
        try:
            return await self._client.json_patch(
                kinds.by_name(action.ref.api_version, action.ref.kind),
                action.ref.namespace,
                action.ref.name,
                [
                    {"op": "test", "path": "/metadata/uid", "value": action.ref.uid},
                    {"op": "test", "path": path, "value": action.finalizer},
                    {"op": "remove", "path": path},
                ],
            )
        except NotFound:
            return None

    async def _delete(self, action: Delete) -> ApiObject | None:
        ref = action.ref
        try:
            return await self._client.delete(
                kinds.by_name(ref.api_version, ref.kind),
                ref.namespace,
                ref.name,
                uid=ref.uid,
                propagation=action.propagation,
            )
        except Conflict:  # another object has the name now: the one we meant is gone
            return None

    async def _evict(self, pod: ObjectRef) -> None:
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        }
        # 429 is a disruption budget's "not yet": the next look at the node asks again.
        with suppress(NotFound, Conflict, TooManyRequests):
            await self._client.create_subresource(
                kinds.PODS, pod.namespace, pod.name, "eviction", body
            )

    async def _terminate(self, action: Terminate) -> Word:
        """Only what a live look confirms is deleted: the list it was decided on may be behind.

        The one look that is spared is for the settled instance of a claim that is going anyway.
        """
        claim, uid = action.claim, action.instance_claim_uid
        is_going = (await self._check_claim(claim)).is_deleting
        if not (is_going and action.is_settled and uid in (None, claim.uid)):
            live = await self._led(self._cloud.get(claim.name))
            if live is None:
                if not is_going:
                    return Word.ABSENT
            elif not live.is_ours or live.state is InstanceState.DELETING:
                return _word(live)
            else:
                await self._check_removable(claim, live, is_going=is_going)
                if live.state in (InstanceState.CREATING, InstanceState.BUSY):
                    await self._abort(claim.name)
        return await self._led(self._cloud.terminate(claim.name))

    async def _check_removable(self, claim: ObjectRef, live: Instance, *, is_going: bool) -> None:
        """G6: not another live claim's, and of a claim that stays only what failed."""
        if live.claim_uid not in (None, claim.uid):
            await self._check_leftover(claim.name, live.claim_uid or "")
        elif not is_going and live.state is not InstanceState.FAILED:
            raise Conflict(f"instance {claim.name} is well by now: the list was behind")

    async def _abort(self, name: str) -> None:
        """A help for the deletion, no condition of it (facts P3.13): a refusal is only logged."""
        try:
            await self._led(self._cloud.abort(name))
        except CloudError as err:
            log.warning("abort refused", claim=name, reason=err.reason, error=str(err))

    async def _check_claim(self, claim: ObjectRef) -> ObjectMeta:
        """G6: the claim is read live before each call that changes its instance."""
        live = await self._client.get(kinds.by_name(claim.api_version, claim.kind), "", claim.name)
        if live is None or live.metadata.uid != claim.uid:
            raise Conflict(f"{claim} is gone or was replaced: nothing was asked of the cloud")
        return live.metadata

    async def _check_leftover(self, name: str, uid: str) -> None:
        """G6: an instance with another claim's uid goes only if no live claim has that uid."""
        for kind in (kinds.MACHINES, kinds.NODECLAIMS):
            try:
                live = await self._client.get(kind, "", name)
            except KindNotServed:
                continue
            if live is not None and live.metadata.uid == uid:
                raise NameTaken(f"instance {name} belongs to the live {kind} {name}")

    async def _led(self, call: Awaitable[T]) -> T:
        """A call to the cloud, which ends where the leadership does (facts E16)."""
        try:
            async with asyncio.timeout(self._fence() if self._fence is not None else None):
                return await call
        except TimeoutError as err:
            raise NotLeader("the lease ran out during a call to the cloud") from err
        finally:
            if isinstance(call, Coroutine):
                call.close()  # refused by the fence: it was never started

    @property
    def _cloud(self) -> NodeBackend:
        assert self._backend is not None, "a plan for the cloud, and no backend to carry it out"
        return self._backend


def _check_orderable(claim: ObjectRef, live: ObjectMeta, generation: int) -> None:
    """G6: a machine is ordered for what the claim says now, and only if it cannot go unseen."""
    if live.is_deleting:
        raise Conflict(f"{claim} is being deleted: nothing was launched")
    if constants.TERMINATION_FINALIZER not in live.finalizers:
        raise Conflict(f"{claim} has lost the finalizer that guards it: nothing was launched")
    if live.generation != generation:
        raise Conflict(f"{claim} was edited since it was looked at: nothing was launched")


def _word(live: Instance | None) -> Word:
    """A stranger's instance was never the claim's: of the claim's own there is none."""
    if live is None or not live.is_ours:
        return Word.ABSENT
    return Word.GOING if live.state is InstanceState.DELETING else Word.THERE


def _target(action: Action) -> ObjectRef:
    """The object an action writes, without uid: two actions on one name are on one object."""
    match action:
        case Create(manifest) | Apply(manifest):
            metadata = manifest["metadata"]
            return ObjectRef(
                manifest["apiVersion"],
                manifest["kind"],
                metadata.get("namespace", ""),
                metadata["name"],
            )
        case Patch(ref) | RemoveFinalizer(ref) | Delete(ref) | Evict(ref):
            return _anonymous(ref)
        case Launch(claim) | Terminate(claim) | Prove(claim):
            return ObjectRef("cloud", "Instance", "", claim.name)
        case Event():  # pragma: no cover - has no target
            raise AssertionError


def _at_version(body: Mapping[str, Any], version: str) -> dict[str, Any]:
    """With the version it was decided on, or of our own write in this pass (rule G12)."""
    return {**body, "metadata": {**body.get("metadata", {}), "resourceVersion": version}}


def _anonymous(ref: ObjectRef) -> ObjectRef:
    return ObjectRef(ref.api_version, ref.kind, ref.namespace, ref.name)


def _where(obj: ApiObject) -> str:
    namespace, name = obj.metadata.key
    return f"{namespace}/{name}" if namespace else name


def _owner(obj: ApiObject) -> str:
    owner = next((o for o in obj.metadata.owner_references if o.controller), None)
    return f"{owner.kind} {owner.name}" if owner else "nobody we know"
