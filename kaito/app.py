"""The composition root: the only place that names the concrete classes of both sides."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import structlog
import uvloop

from kaito import logs
from kaito.assembly import Assembly, assembled
from kaito.errors import InvalidSettings, KaitoError
from kaito.informers.informer import Informer
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
    election = settings.leader_election_namespace if settings.leader_elect else ""
    process = assembled(
        await _cluster(settings),
        name=f"kaito-{_name(settings)}",
        identity=settings.identity,
        election_namespace=election,
        reporter=f"kaito.sh/{_name(settings)}",
        health_address=settings.health_probe_bind_address,
        metrics_address=settings.metrics_bind_address,
    )
    async with contextlib.AsyncExitStack() as closers, process as parts:
        if "workspace" in settings.controllers:
            _add_workspace_side(settings, parts)
        if "machine" in settings.controllers:
            _add_machine_side(settings, parts, closers)
        await parts.run()


def _name(settings: Settings) -> str:
    """What this process is called where others see it: its Lease, its Events."""
    return settings.controllers[0] if len(settings.controllers) == 1 else "operator"


async def _cluster(settings: Settings) -> ClusterConfig:
    pod = settings.in_cluster
    if pod is None:
        return await from_kubeconfig(settings.kubeconfig)
    return in_cluster(folder=pod.service_account_dir, host=pod.host, port=pod.port)


# Each side's rooms are imported where it is built: a process that runs one does not pay for both.


def _add_workspace_side(settings: Settings, parts: Assembly) -> None:
    from kaito.catalog.presets import load_presets
    from kaito.reconcilers.workspace import wiring as workspace
    from kaito.reconcilers.workspace.state import Options

    sources = workspace.sources(parts.informers, namespace=settings.namespace)
    reconciler = workspace.build(
        client=parts.client,
        actor=Actor(client=parts.client, recorder=parts.recorder),
        clock=parts.clock,
        sources=sources,
        presets=load_presets(),
        options=Options(registry=settings.preset_registry, provider=settings.cloud_provider),
    )
    controller = parts.controller("workspace", reconciler.reconcile, workers=settings.workers)
    workspace.register(controller, sources, namespace=settings.namespace)
    parts.probes.add_readiness("crd-machines", lambda: _missing(sources.machines))


def _add_machine_side(
    settings: Settings, parts: Assembly, closers: contextlib.AsyncExitStack
) -> None:
    from kaito.provisioner import registry
    from kaito.provisioner.inventory import Inventory
    from kaito.reconcilers.machine import wiring as machine
    from kaito.reconcilers.machine.state import MachineSettings

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
    controller = parts.controller("machine", reconciler.reconcile, workers=settings.workers)
    machine.register(controller, sources, inventory)
    parts.manager.add_runnable("inventory", inventory.run, leader_only=False)
    closers.push_async_callback(backend.close)
    parts.probes.add_readiness("cloud", inventory.problem)


def _missing(informer: Informer[Any]) -> str | None:
    """A kind that may be missing at start still has to be there for the work to be done."""
    if informer.is_served:
        return None
    return f"{informer.kind} is not served: apply the CRDs of deploy/crds"
