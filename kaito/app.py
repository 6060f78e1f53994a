"""The composition root: the only place that names concrete classes and says what starts when."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog
import uvloop

from kaito import logs
from kaito.clock import Clock, SystemClock
from kaito.controller.controller import Controller
from kaito.controller.events import EventRecorder
from kaito.controller.leader import Elector
from kaito.controller.manager import Manager
from kaito.controller.probes import Probes
from kaito.errors import InvalidSettings, KaitoError
from kaito.informers.freshness import Freshness
from kaito.informers.informer import Informer, InformerSet
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import ClusterConfig, from_kubeconfig, in_cluster
from kaito.reconcilers.act import Actor
from kaito.settings import Settings

log = structlog.get_logger()

EXIT_CLEAN = 0
EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2


def main(settings: Settings) -> int:
    """Run the operator until SIGTERM or SIGINT; the process's exit code."""
    logs.configure(level=settings.log_level, form=settings.log_format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_operate(settings))
        except InvalidSettings as err:
            log.error("bad configuration", error=str(err))
            return EXIT_MISCONFIGURED
        except KaitoError as err:
            log.error("operator stopped", reason=err.reason, error=str(err))
            return EXIT_FAILED
    return EXIT_CLEAN


async def _operate(settings: Settings) -> None:
    clock = SystemClock()
    config = await _cluster(settings)

    async def connected(component: str, fence: Callable[[], float] | None = None) -> KubeClient:
        return await connect(config, clock=clock, component=component, fence=fence)

    elector = _elector(settings, clock, lambda: connected("leader-election"))
    fence = elector.fence if elector is not None else None
    async with contextlib.AsyncExitStack() as closers:
        client = await connected("operator", fence)
        closers.push_async_callback(client.close)
        manager = _manager(settings, clock, client, elector, closers)
        await manager.run(_stop_on_signals())


def _name(settings: Settings) -> str:
    """What this process is called where others see it: its Lease, its Events."""
    return settings.controllers[0] if len(settings.controllers) == 1 else "operator"


async def _cluster(settings: Settings) -> ClusterConfig:
    pod = settings.in_cluster
    if pod is None:
        return await from_kubeconfig(settings.kubeconfig)
    return in_cluster(folder=pod.service_account_dir, host=pod.host, port=pod.port)


def _elector(
    settings: Settings, clock: Clock, connected: Callable[[], Awaitable[KubeClient]]
) -> Elector | None:
    if not settings.leader_elect:
        return None
    return Elector(
        connect=connected,
        namespace=settings.leader_election_namespace,
        name=f"kaito-{_name(settings)}",
        identity=settings.identity,
        clock=clock,
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    """What both sides share."""

    settings: Settings
    clock: Clock
    client: KubeClient
    informers: InformerSet
    freshness: Freshness
    recorder: EventRecorder
    manager: Manager
    probes: Probes
    fence: Callable[[], float] | None
    closers: contextlib.AsyncExitStack

    def controller(
        self, name: str, reconcile: Callable[[tuple[str, str]], Coroutine[Any, Any, Any]]
    ) -> Controller:
        """A controller of this process, run by the manager."""
        controller = Controller(
            name,
            reconcile,
            clock=self.clock,
            freshness=self.freshness,
            workers=self.settings.workers,
        )
        self.manager.add_controller(controller)
        return controller


def _manager(
    settings: Settings,
    clock: Clock,
    client: KubeClient,
    elector: Elector | None,
    closers: contextlib.AsyncExitStack,
) -> Manager:
    freshness = Freshness(clock=clock, read=client.get)
    client.on_written = freshness.on_written
    informers = InformerSet(client, clock=clock)
    probes = Probes(
        health_address=settings.health_probe_bind_address,
        metrics_address=settings.metrics_bind_address,
    )
    recorder = EventRecorder(
        client, clock=clock, controller=f"kaito.sh/{_name(settings)}", instance=settings.identity
    )
    manager = Manager(clock=clock, elector=elector, probes=probes, recorder=recorder)
    manager.add_informers(informers)
    manager.add_runnable("freshness", freshness.run, leader_only=False)
    fence = elector.fence if elector is not None else None
    parts = _Parts(
        settings, clock, client, informers, freshness, recorder, manager, probes, fence, closers
    )
    if "workspace" in settings.controllers:
        _add_workspace_side(parts)
    if "machine" in settings.controllers:
        _add_machine_side(parts)
    return manager


# Each side's rooms are imported where it is built: a process that runs one does not pay for both.


def _add_workspace_side(parts: _Parts) -> None:
    from kaito.catalog.presets import load_presets
    from kaito.reconcilers.workspace import wiring as workspace
    from kaito.reconcilers.workspace.state import Options

    settings = parts.settings
    sources = workspace.sources(parts.informers, namespace=settings.namespace)
    reconciler = workspace.build(
        client=parts.client,
        actor=Actor(client=parts.client, recorder=parts.recorder),
        clock=parts.clock,
        sources=sources,
        presets=load_presets(),
        options=Options(registry=settings.preset_registry, provider=settings.cloud_provider),
    )
    controller = parts.controller("workspace", reconciler.reconcile)
    workspace.register(controller, sources, namespace=settings.namespace)
    parts.probes.add_readiness("crd-machines", lambda: _missing(sources.machines))


def _add_machine_side(parts: _Parts) -> None:
    from kaito.provisioner import registry
    from kaito.provisioner.inventory import Inventory
    from kaito.reconcilers.machine import wiring as machine
    from kaito.reconcilers.machine.state import MachineSettings

    settings = parts.settings
    backend = registry.create(settings.provisioner, clock=parts.clock, arm=settings.azure)
    inventory = Inventory(backend, parts.clock)
    sources = machine.sources(parts.informers)
    reconciler = machine.build(
        client=parts.client,
        actor=Actor(
            client=parts.client, recorder=parts.recorder, backend=backend, fence=parts.fence
        ),
        clock=parts.clock,
        sources=sources,
        inventory=inventory,
        settings=MachineSettings(launch_retry_max=settings.launch_retry_max),
    )
    controller = parts.controller("machine", reconciler.reconcile)
    machine.register(controller, sources, inventory)
    parts.manager.add_runnable("inventory", inventory.run, leader_only=False)
    parts.closers.push_async_callback(backend.close)
    parts.probes.add_readiness("cloud", inventory.problem)


def _missing(informer: Informer[Any]) -> str | None:
    """A kind that may be missing at start still has to be there for the work to be done."""
    if informer.is_served:
        return None
    return f"{informer.kind} is not served: apply the CRDs of deploy/crds"


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
