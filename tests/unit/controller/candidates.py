"""Replicas that stand for election on a fake API server, with a hand-turned clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from structlog.testing import capture_logs

from kaito.controller.candidacy import DEFAULT_TIMING, LEASES, Candidacy
from kaito.errors import TransportError
from kaito.kube.client import KubeClient
from tests.fakes.clock import FakeClock, settle
from tests.unit.controller.fakes import FakeApiServer, FakeClient

LEASE = ("leases", "kaito", "leader")


class Candidate:
    """One replica and what it was told."""

    def __init__(
        self,
        server: FakeApiServer,
        clock: FakeClock,
        name: str = "a",
        uniform: Callable[[], float] = lambda: 0.0,
        watching: bool = True,
    ) -> None:
        self.changes: list[str | None] = []
        self.left: list[float] = []
        self.leaders: list[str] = []
        self.client = FakeClient(server)
        if not watching:
            self.client.watch = _no_watch  # type: ignore[method-assign]
        self.core = Candidacy(
            namespace="kaito",
            name="leader",
            identity=name,
            clock=clock,
            timing=DEFAULT_TIMING,
            on_won=lambda: self.changes.append(None),
            on_lost=lambda cause, left: self.changes.append(cause) or self.left.append(left),
            on_new_leader=self.leaders.append,
            uniform=uniform,
        )

    async def run(self) -> None:
        await self.core.run(cast(KubeClient, self.client))

    @property
    def can_write(self) -> bool:
        return self.core.seconds_left() > 0


@asynccontextmanager
async def _no_watch(*_: Any, **__: Any) -> AsyncIterator[Any]:
    raise TransportError("no watch here")
    yield


@asynccontextmanager
async def running(*candidates: Candidate) -> AsyncIterator[None]:
    with capture_logs():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(candidate.run()) for candidate in candidates]
            await settle()
            yield
            for task in tasks:
                task.cancel()


def spec(server: FakeApiServer) -> dict[str, Any]:
    return cast(dict[str, Any], server.objects[LEASE]["spec"])


def held_by(server: FakeApiServer, holder: str, duration: int = 15, **more: Any) -> None:
    metadata = {"namespace": "kaito", "name": "leader", **more.pop("metadata", {})}
    record = {"holderIdentity": holder, "leaseDurationSeconds": duration, "leaseTransitions": 4}
    server.put(LEASES, {"metadata": metadata, "spec": {**record, **more}})
