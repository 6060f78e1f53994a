"""The VMs behind the pools: when each joins the cluster as a Node, becomes ready, and leaves.

Comes in: what the pools want, the script, the clock. Goes out: writes of Node objects. What a Node
should be by now is computed anew at every timer and every change of the script; one task per Node
brings the API server there. Leases, heartbeats and pods are the node agent's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from kaito.api.meta import ObjectMeta, View
from kaito.clock import Clock, rfc3339
from kaito.errors import AlreadyExists, Conflict, KaitoError, NotFound
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind
from kaito.sandbox.azure_nodes import (
    NodeSpec,
    NodeState,
    initialization,
    pool_node,
    registration,
    spare_node,
    status,
)
from kaito.sandbox.nodes import LABEL_SANDBOX_NODE
from kaito.sandbox.pools import Pool
from kaito.sandbox.script import ScriptBook
from kaito.sandbox.site import Site
from kaito.sandbox.vm_sizes import vm_size

log = structlog.get_logger()

EVICTION_NOTICE_SECONDS: Final = 30.0
"""From a spot VM's notice to its end, as Azure gives it (P7.11)."""

_RETRY_SECONDS: Final = 0.5


class _Spec(View, frozen=True):
    taints: tuple[dict[str, Any], ...] = ()


class _Node(View, frozen=True):
    """The fields of a Node that its VM must read before it writes."""

    metadata: ObjectMeta
    spec: _Spec = _Spec()


_NODES: Final = Kind("", "v1", "Node", "nodes", False, msgspec.json.Decoder(_Node).decode)


@dataclass(slots=True)
class _Vm:
    spec: NodeSpec
    joins_at: float
    joined: float | None = None
    joined_at: str = ""
    ready_seconds: float = 0.0
    was_ready: bool = False
    evicted: float | None = None
    is_powered: bool = True
    has_left: bool = False
    desired: NodeState | None = None
    written: NodeState | None = None
    uid: str = ""
    is_busy: bool = False


class Fleet:
    """Every VM of the sandbox. ``on_power`` hears when one is cut off, or comes back."""

    def __init__(self, *, kube: KubeClient, clock: Clock, book: ScriptBook, site: Site) -> None:
        self._kube = kube
        self._clock = clock
        self._book = book
        self._site = site
        self._vms: dict[str, _Vm] = {}
        self._made = 0
        self._dirty: asyncio.Queue[_Vm] = asyncio.Queue()
        self.on_power: Callable[[str, bool], None] = lambda _name, _is_on: None
        book.on_change(self._follow_script)

    # What pools and people want -------------------------------------------------------------------

    def provision(self, pool: Pool) -> None:
        """The pool has as many VMs as its count says; a new one joins after the latency."""
        first = self._book.script.first_index(pool.name)
        wanted = {}
        for index in range(first, first + pool.count):
            spec = pool_node(pool, self._site, index, self._next_address())
            wanted[spec.name] = spec
        for vm in self._of_pool(pool.name):
            if vm.spec.name not in wanted:
                self._leave(vm)
        for name, spec in wanted.items():
            if name not in self._vms:
                self._add(spec, self._book.script.latency.join)

    def hold(self, name: str) -> None:
        """VMs of the pool that have not joined never will."""
        for vm in self._of_pool(name):
            if vm.joined is None:
                self._leave(vm)

    def release(self, name: str, within: float) -> None:
        """The pool's Nodes go half-way through its deletion, so before the pool does."""
        for vm in self._of_pool(name):
            if vm.joined is None:
                self._leave(vm)
            else:
                self._clock.call_later(within / 2, partial(self._leave, vm))

    def set_power(self, name: str, *, is_on: bool) -> bool:
        """Cut a Node off, or bring it back; False when there is no such Node.

        What the node lifecycle controller has marked meanwhile, the node agent's reports put right.
        """
        vm = self._vms.get(name)
        if vm is None or vm.joined is None:
            return False
        vm.is_powered = is_on
        self.on_power(name, is_on)
        self._look(vm)
        return True

    async def run(self) -> None:
        """Write Nodes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._converge(await self._dirty.get()))

    # What each Node should be by now --------------------------------------------------------------

    def _follow_script(self) -> None:
        wanted = {spare.name: spare for spare in self._book.script.spare}
        for vm in tuple(self._vms.values()):
            if not vm.spec.pool and vm.spec.name not in wanted:
                self._leave(vm)
        for name, spare in wanted.items():
            size = vm_size(spare.vm_size)
            if name not in self._vms and size is not None:
                address = self._next_address()
                labels = {LABEL_SANDBOX_NODE: "true", **spare.labels}
                self._add(spare_node(name, size, labels, self._site, address), 0.0)
        for vm in tuple(self._vms.values()):
            self._look(vm)

    def _add(self, spec: NodeSpec, join_seconds: float) -> None:
        vm = self._vms[spec.name] = _Vm(spec, self._clock.monotonic() + join_seconds)
        self._look_in(vm, join_seconds)

    def _leave(self, vm: _Vm) -> None:
        vm.has_left = True
        if self._vms.get(vm.spec.name) is vm:
            del self._vms[vm.spec.name]
        self._look(vm)

    def _look_in(self, vm: _Vm, seconds: float) -> None:
        self._clock.call_later(seconds, partial(self._look, vm))

    def _look(self, vm: _Vm) -> None:
        vm.desired = self._desired(vm)
        if vm.desired != vm.written and not vm.is_busy:
            vm.is_busy = True
            self._dirty.put_nowait(vm)

    def _desired(self, vm: _Vm) -> NodeState | None:
        """None: no Node. Notes the moments that later ones count from, and asks to look again."""
        if vm.has_left:
            return None
        trouble = self._book.script.node_trouble(vm.spec.pool) if vm.spec.pool else None
        now = self._clock.monotonic()
        if vm.joined is None:
            if now < vm.joins_at or trouble == "Never":
                return None
            vm.joined, vm.joined_at = now, rfc3339(self._clock.now())
            vm.ready_seconds = self._book.script.latency.ready
            # The cloud's half of the registration comes after the kubelet's, before Ready.
            self._look_in(vm, vm.ready_seconds / 2)
            self._look_in(vm, vm.ready_seconds)
        since = now - vm.joined
        if since >= vm.ready_seconds and trouble != "NeverReady" and vm.is_powered:
            vm.was_ready = True
        if vm.was_ready and trouble == "SpotEvicted" and vm.evicted is None:
            vm.evicted = now
            self._look_in(vm, EVICTION_NOTICE_SECONDS)
            gone = EVICTION_NOTICE_SECONDS + self._book.script.latency.delete
            self._clock.call_later(gone, partial(self._leave, vm))
        state = NodeState(
            is_initialized=since >= vm.ready_seconds / 2 or vm.was_ready,
            ready="True" if vm.was_ready else "False",
            is_eviction_scheduled=vm.evicted is not None,
        )
        if vm.was_ready:
            state = self._with_gpus(vm, state, has_plugin=trouble != "NoGPU")
        if vm.evicted is not None and now - vm.evicted >= EVICTION_NOTICE_SECONDS:
            if vm.is_powered:
                vm.is_powered = False
                self.on_power(vm.spec.name, False)
            return replace(state, ready="Unknown")
        return state

    def _with_gpus(self, vm: _Vm, state: NodeState, *, has_plugin: bool) -> NodeState:
        """A plugin that dies leaves the capacity and takes what can be allocated (P7.8)."""
        count = vm.spec.size.gpu_count
        if has_plugin:
            return replace(state, gpu_capacity=count, gpu_allocatable=count)
        had = vm.desired.gpu_capacity if vm.desired is not None else 0
        return replace(state, gpu_capacity=had)

    # Bringing the API server there ----------------------------------------------------------------

    async def _converge(self, vm: _Vm) -> None:
        while vm.desired != vm.written:
            try:
                vm.written = await self._step(vm, vm.written, vm.desired)
            except NotFound:
                # Deleted by someone else: a kubelet registers once, at its start (P3.18).
                vm.written = vm.desired
            except KaitoError as err:
                log.warning("node write failed", node=vm.spec.name, reason=err.reason)
                await self._clock.sleep(_RETRY_SECONDS)
        vm.is_busy = False

    async def _step(
        self, vm: _Vm, written: NodeState | None, desired: NodeState | None
    ) -> NodeState | None:
        """One write towards ``desired``; what holds after it."""
        if desired is None:
            await self._remove(vm)
            return None
        if written is None:
            await self._register(vm)
            return NodeState()
        if desired.is_initialized and not written.is_initialized:
            await self._initialize(vm)
        now = rfc3339(self._clock.now())
        body = status(vm.spec, desired, self._site, joined_at=vm.joined_at, now=now)
        await self._patch(vm, {"status": body}, subresource="status")
        return desired

    async def _register(self, vm: _Vm) -> None:
        try:
            node = await self._kube.create(_NODES, registration(vm.spec, self._site, vm.joined_at))
        except AlreadyExists:
            # Left by a sandbox that was killed: its VM is not this one.
            await self._kube.delete(_NODES, "", vm.spec.name)
            raise
        vm.uid = node.metadata.uid
        log.info("node joined", node=vm.spec.name, pool=vm.spec.pool)

    async def _initialize(self, vm: _Vm) -> None:
        node = await self._kube.get(_NODES, "", vm.spec.name)
        if node is None or node.metadata.uid != vm.uid:
            raise NotFound(f"Node {vm.spec.name} is not there")
        await self._patch(
            vm,
            initialization(
                vm.spec,
                self._site,
                taints=node.spec.taints,
                resource_version=node.metadata.resource_version,
            ),
        )

    async def _patch(self, vm: _Vm, body: Mapping[str, Any], *, subresource: str = "") -> None:
        await self._kube.merge_patch(_NODES, "", vm.spec.name, body, subresource=subresource)

    async def _remove(self, vm: _Vm) -> None:
        try:
            await self._kube.delete(_NODES, "", vm.spec.name, uid=vm.uid)
        except Conflict:
            log.info("node of that name is another", node=vm.spec.name)
        log.info("node left", node=vm.spec.name, pool=vm.spec.pool)

    # Small things ---------------------------------------------------------------------------------

    def _of_pool(self, name: str) -> tuple[_Vm, ...]:
        return tuple(vm for vm in self._vms.values() if vm.spec.pool == name)

    def _next_address(self) -> str:
        self._made += 1
        return f"10.224.{self._made // 250 % 250}.{self._made % 250 + 4}"
