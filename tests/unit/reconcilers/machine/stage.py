"""One claim's whole world: API server, cloud and VMs in memory, on a clock turned by hand.

The reconciler's process can die before or after any call; the world goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from kaito.api.meta import ApiObject, ObjectRef
from kaito.controller.result import Result
from kaito.kube.resources import Kind
from kaito.provisioner.interface import Instance, InstanceState, Word
from kaito.provisioner.inventory import Inventory
from kaito.reconcilers.act import Actor
from kaito.reconcilers.kinds import MACHINES, NODES, PODS
from kaito.reconcilers.machine.reconciler import MachineReconciler
from kaito.reconcilers.machine.state import MachineSettings
from kaito.reconcilers.machine.wiring import agentpool_of
from tests.fakes import mutation
from tests.fakes.backend import InMemoryBackend
from tests.fakes.clock import FakeClock
from tests.fakes.kube import Call, FakeKube
from tests.unit.reconcilers.machine.builders import NAME, manifest

KEY = ("", NAME)


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Fuse:
    """Burns with the ``at``-th call of the process, before it is sent or after it was run."""

    at: int = 0
    after: bool = False
    seen: list[str] = field(default_factory=list)
    is_armed: bool = True

    def meets(self, call: str) -> bool:
        if not self.is_armed:
            return False
        self.seen.append(call)
        return len(self.seen) == self.at


class FusedKube(FakeKube):
    def __init__(self, clock: FakeClock, fuse: Fuse) -> None:
        super().__init__(clock=clock)
        self.fuse = fuse

    async def _begin(self, call: Call) -> Any:
        if self.fuse.meets(f"{call.method} {call.kind} {call.name}"):
            if not self.fuse.after:
                raise Crash
            self.fuse.is_armed = False
            await super()._begin(call)
            return Crash()
        return await super()._begin(call)


class FusedBackend(InMemoryBackend):
    fuse: Fuse

    async def launch(self, request: Any) -> None:
        await self._through("launch", lambda: InMemoryBackend.launch(self, request))

    async def terminate(self, name: str) -> Word:
        return await self._through("terminate", lambda: InMemoryBackend.terminate(self, name))

    async def get(self, name: str) -> Instance | None:
        return await self._through("get", lambda: InMemoryBackend.get(self, name))

    async def abort(self, name: str) -> None:
        await self._through("abort", lambda: InMemoryBackend.abort(self, name))

    async def list(self) -> tuple[Instance, ...]:
        return await self._through("list", lambda: InMemoryBackend.list(self))

    async def _through(self, call: str, run: Callable[[], Any]) -> Any:
        burns = self.fuse.meets(f"cloud {call}")
        if burns and not self.fuse.after:
            raise Crash
        answer = await run()
        if burns:
            raise Crash
        return answer


class LiveLister:
    """A cache that is never behind."""

    resource_version = "0"
    has_synced = True

    def __init__(
        self, kube: FakeKube, kind: Kind[Any], index: Callable[[Any], Iterable[str]] = lambda _: ()
    ) -> None:
        self._kube, self._kind, self._index = kube, kind, index

    def get(self, namespace: str, name: str) -> Any:
        return next((o for o in self.list() if o.metadata.key == (namespace, name)), None)

    def list(self, namespace: str | None = None) -> tuple[Any, ...]:
        import orjson

        note = mutation.current().note
        bodies = self._kube.bodies(self._kind)
        return tuple(note(self._kind, self._kind.decode(orjson.dumps(b))) for b in bodies)

    def by_index(self, index: str, value: str) -> tuple[ApiObject, ...]:
        return tuple(o for o in self.list() if value in self._index(o))


class FakeRecorder:
    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def record(self, regarding: ObjectRef, type: str, reason: str, action: str, note: str) -> None:
        assert regarding.name == NAME
        self.events.append((reason, note))

    @property
    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.events]


class Process:
    """One life of the operator: nothing of it outlives a crash."""

    def __init__(self, stage: Stage) -> None:
        self.inventory = Inventory(stage.backend, stage.clock, jitter=lambda: 1.0)
        self.woken: set[str] = set()
        self.inventory.add_listener(self.woken.add)
        self.reconciler = MachineReconciler(
            client=stage.kube,
            actor=Actor(client=stage.kube, recorder=stage.recorder, backend=stage.backend),
            clock=stage.clock,
            inventory=self.inventory,
            machines=LiveLister(stage.kube, MACHINES),
            nodes=LiveLister(stage.kube, NODES, agentpool_of),
            settings=stage.settings,
            jitter=lambda: 1.0,
        )

    async def work(self) -> Result:
        """Passes until the claim asks for none at once."""
        for _ in range(10):
            result = await self.reconciler.reconcile(KEY)
            if result.requeue_after != 0:
                return result
        raise AssertionError("the claim asks for passes without end")


class Stage:
    """``nodes_go``: the cloud removes the Node of a VM that is gone, before we can (facts P7.2)."""

    def __init__(
        self, *, fuse: Fuse | None = None, join_seconds: float = 10.0, nodes_go: bool = True
    ) -> None:
        self.nodes_go = nodes_go
        self.clock = FakeClock()
        self.fuse = fuse or Fuse()
        self.kube = FusedKube(self.clock, self.fuse)
        self.backend = FusedBackend(self.clock)
        self.backend.fuse = self.fuse
        self.recorder = FakeRecorder()
        self.settings = MachineSettings()
        self.join_seconds = join_seconds
        self.process = Process(self)
        self._joined: dict[str, float] = {}

    def ask(self, **changes: Any) -> None:
        """The Workspace side writes the claim."""
        self.kube.seed(MACHINES, {**manifest(), **changes})

    async def ask_no_more(self) -> None:
        await self._as_the_world(self.kube.delete(MACHINES, "", NAME))

    def restart(self) -> None:
        self.process = Process(self)

    async def tick(self, seconds: float = 5.0) -> Result:
        """Time goes on, then everyone does what is due: VMs, the list, the claim's pass."""
        await self.clock.advance(seconds)
        await self._as_the_world(self._vms())
        await self.process.inventory._list()
        return await self.process.work()

    async def until(self, holds: Callable[[], bool], *, ticks: int = 60) -> None:
        for _ in range(ticks):
            if holds():
                return
            try:
                await self.tick()
            except Crash:
                self.fuse.is_armed = False
                self.restart()
        raise AssertionError(f"never came to hold; the claim: {self.claim}")

    @property
    def claim(self) -> dict[str, Any] | None:
        return self.kube.body(MACHINES, "", NAME)

    def condition(self, type_: str) -> dict[str, Any]:
        assert self.claim is not None
        found = self.claim.get("status", {}).get("conditions", [])
        return next((c for c in found if c["type"] == type_), {})

    def is_ready(self) -> bool:
        return self.claim is not None and self.condition("Ready").get("status") == "True"

    def is_gone(self) -> bool:
        return self.claim is None and not self.kube.bodies(NODES) and self.backend.live == 0

    def set_node_ready(self, status: str) -> None:
        (body,) = self.kube.bodies(NODES)
        body["status"]["conditions"] = [{"type": "Ready", "status": status}]
        self.kube.seed(NODES, body)

    async def _as_the_world(self, doing: Any) -> None:
        armed, self.fuse.is_armed = self.fuse.is_armed, False
        await doing
        self.fuse.is_armed = armed

    async def _vms(self) -> None:
        """A Node joins some time after its VM was ordered and goes with it."""
        pools = {i.name: i for i in self.backend.instances if i.is_ours}
        for name, pool in pools.items():
            ordered = self._joined.setdefault(name, self.clock.monotonic())
            is_up = pool.state in (InstanceState.CREATING, InstanceState.READY)
            if is_up and self.clock.monotonic() - ordered >= self.join_seconds:
                self._join(pool)
        for body in self.kube.bodies(NODES) if self.nodes_go else ():
            pool_name = body["metadata"]["labels"]["kubernetes.azure.com/agentpool"]
            if pool_name not in pools:
                self._joined.pop(pool_name, None)
                await self.kube.delete(NODES, "", body["metadata"]["name"])

    def _join(self, pool: Instance) -> None:
        name = f"aks-{pool.name}-vmss000000"
        if self.kube.body(NODES, "", name) is not None:
            return
        self.kube.seed(
            NODES,
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": name,
                    "labels": {
                        **pool.labels,
                        "kubernetes.azure.com/agentpool": pool.name,
                        "node.kubernetes.io/instance-type": pool.instance_type,
                        "kaito.sh/claim-uid": pool.claim_uid,
                    },
                },
                "spec": {"providerID": f"azure:///{pool.name}/0"},
                "status": {
                    "capacity": {"cpu": "6", "nvidia.com/gpu": "1"},
                    "allocatable": {"cpu": "6", "nvidia.com/gpu": "1"},
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            },
        )
        self.kube.seed(
            PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"model-{pool.name}", "namespace": "default"},
                "spec": {"nodeName": name, "containers": []},
                "status": {"phase": "Running"},
            },
        )
