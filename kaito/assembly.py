"""One process of controllers, wired: the framework's parts, each knowing those it needs.

``app.py`` starts from here, and so does any other controller (docs/framework.md). No Kaito words.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kaito.clock import Clock, SystemClock
from kaito.controller.controller import Controller
from kaito.controller.events import EventRecorder
from kaito.controller.leader import Elector
from kaito.controller.manager import Manager
from kaito.controller.probes import Probes
from kaito.controller.worker import Reconcile
from kaito.informers.collector import Collector
from kaito.informers.freshness import Freshness
from kaito.informers.informer import InformerSet
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import ClusterConfig

Fence = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Assembly:
    """Add controllers and informers, then ``run``. ``elector``: None without election."""

    clock: Clock
    client: KubeClient
    informers: InformerSet
    freshness: Freshness
    recorder: EventRecorder
    probes: Probes
    elector: Elector | None
    manager: Manager

    @property
    def fence(self) -> Fence | None:
        """Of the election, for writes that are not the client's: see ``Elector.fence``."""
        return self.elector.fence if self.elector is not None else None

    def controller(self, name: str, reconcile: Reconcile, *, workers: int = 8) -> Controller:
        """A controller that sees its own writes; the leader runs it."""
        made = Controller(
            name, reconcile, clock=self.clock, freshness=self.freshness, workers=workers
        )
        self.manager.add_controller(made)
        return made

    async def run(self) -> None:
        """Until SIGTERM or SIGINT, or a failure: see ``Manager.run``."""
        await self.manager.run(_stop_on_signals())


@asynccontextmanager
async def assembled(
    cluster: ClusterConfig,
    *,
    name: str,
    identity: str = "",
    election_namespace: str = "",
    reporter: str = "",
    health_address: str = ":8081",
    metrics_address: str = ":8080",
) -> AsyncIterator[Assembly]:
    """The parts of a process, connected; the client is closed in the end.

    ``name``: of the process in User-Agent and Lease. ``identity``: of this replica; the host's name
    if empty.
    ``election_namespace``: where its Lease is; empty: no election, for a process that is alone.
    ``reporter``: what Events name as their controller; ``name`` if empty.

    Raises:
        InvalidSettings: credentials that cannot be used.
    """
    clock, identity = SystemClock(), identity or socket.gethostname()

    def connected(part: str, fence: Fence | None = None) -> Awaitable[KubeClient]:
        return connect(cluster, clock=clock, component=part, fence=fence)

    elector = None
    if election_namespace:
        elector = Elector(
            connect=lambda: connected("leader-election"),
            namespace=election_namespace,
            name=name,
            identity=identity,
            clock=clock,
        )
    client = await connected(name, elector.fence if elector is not None else None)
    try:
        freshness = Freshness(clock=clock, read=client.get)
        client.on_written = freshness.on_written
        collector = Collector(clock=clock)
        informers = InformerSet(client, clock=clock, on_relist=collector.relisted)
        probes = Probes(health_address=health_address, metrics_address=metrics_address)
        recorder = EventRecorder(
            client, clock=clock, controller=reporter or name, instance=identity
        )
        manager = Manager(
            clock=clock, elector=elector, probes=probes, recorder=recorder, collector=collector
        )
        manager.add_informers(informers)
        manager.add_runnable("freshness", freshness.run, leader_only=False)
        yield Assembly(clock, client, informers, freshness, recorder, probes, elector, manager)
    finally:
        await client.close()


def _stop_on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second one ends the process at once (facts M6)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def first() -> None:
        stop.set()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)
            signal.signal(signum, signal.SIG_DFL)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, first)
    return stop
