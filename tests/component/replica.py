"""A replica as a process of its own, to be stopped, killed and signalled: ``python -m …replica``.

Leads by a Lease and, while it leads, writes under the fence without a pause: status-like merge
patches with a resourceVersion, as reconcilers do. Prints one JSON line for what it sees.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import gc
import json
import logging
import sys
import threading
import warnings
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from kaito.api.meta import Key, ObjectRef
from kaito.api.views import decode_owned
from kaito.assembly import _stop_on_signals
from kaito.clock import SystemClock
from kaito.controller.candidacy import Timing
from kaito.controller.controller import Controller
from kaito.controller.events import EventRecorder
from kaito.controller.leader import Elector
from kaito.controller.manager import Manager
from kaito.controller.probes import Probes
from kaito.controller.result import Result
from kaito.errors import Conflict, KaitoError, LeadershipLost
from kaito.informers.handlers import Change
from kaito.informers.informer import InformerSet
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import from_kubeconfig
from kaito.kube.resources import Kind

CONFIG_MAPS: Kind[Any] = Kind("", "v1", "ConfigMap", "configmaps", True, decode_owned)


class OffClock(SystemClock):
    """A host whose wall clock is off, until the API server says what the time is."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._offset += seconds


def say(event: str, **more: Any) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


async def main(options: argparse.Namespace) -> None:
    clock = OffClock(options.wall)
    config = await from_kubeconfig(Path(options.kubeconfig))

    async def own_client() -> KubeClient:
        return await connect(config, clock=clock, component="elector")

    elector = Elector(
        connect=own_client,
        namespace="default",
        name=options.lease,
        identity=options.identity,
        clock=clock,
        timing=Timing(options.lease_seconds, options.renew, options.retry),
        on_new_leader=lambda identity: say("leader", identity=identity, at=clock.monotonic()),
    )
    client = await connect(config, clock=clock, component="replica", fence=elector.fence)
    informers = InformerSet(client, clock=clock)
    maps = informers.informer(
        CONFIG_MAPS, namespaces=("default",), label_selector=f"lease={options.lease}"
    )
    recorder = EventRecorder(
        client, clock=clock, controller="kaito.sh/replica", instance=options.identity
    )

    async def reconcile(key: Key) -> Result:
        found = maps.lister.get(*key)
        if found is None:
            return Result()
        meta = found.metadata
        recorder.record(
            ObjectRef("v1", "ConfigMap", *key, meta.uid), "Normal", "Written", "Write", "counted"
        )
        count = int(found.body["data"]["count"]) + 1
        metadata = {"resourceVersion": meta.resource_version}
        body = {"metadata": metadata, "data": {"count": str(count), "by": options.identity}}
        with suppress(Conflict):
            await client.merge_patch(CONFIG_MAPS, *key, body)
        return Result(requeue_after=0.01)

    def to_keys(change: Change[Any]) -> list[Key]:
        return [change.obj.metadata.key]

    controller = Controller("replica", reconcile, clock=clock)
    controller.watch(maps, to_keys)
    probes = Probes(health_address="127.0.0.1:0", metrics_address="127.0.0.1:0")
    manager = Manager(clock=clock, elector=elector, probes=probes, recorder=recorder)
    manager.add_informers(informers)
    manager.add_controller(controller)

    async def stand_by() -> None:
        say("standby", health=probes.health_port, metrics=probes.metrics_port)
        try:
            await asyncio.Event().wait()
        finally:
            say("stopping")
            await asyncio.sleep(options.linger)

    async def lead() -> None:
        say("leading", identity=elector.identity, at=clock.monotonic())
        await asyncio.Event().wait()

    manager.add_runnable("standby", stand_by, leader_only=False)
    manager.add_runnable("leading", lead, leader_only=True)
    try:
        await manager.run(_stop_on_signals())
    finally:
        await client.close()
        await asyncio.sleep(0)
        gc.collect()
        say("ended", at=clock.monotonic(), **_left())


def listen_to_complaints() -> None:
    """Python's own: warnings, errors that nobody heard of, tracebacks in our log. Told at exit."""
    complaints: list[str] = []

    def warned(message: Warning | str, category: type[Warning], *_: Any) -> None:
        complaints.append(f"{category.__name__}: {message}")

    def unheard(what: Any) -> None:
        complaints.append(f"unheard of: {what.exc_value!r} in {getattr(what, 'object', None)!r}")

    def logged(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if entry.get("exc_info"):
            complaints.append(f"traceback: {entry['event']}")
        return entry

    def tell() -> None:
        gc.collect()
        say("complaints", found=complaints)

    warnings.showwarning = warned
    sys.unraisablehook = threading.excepthook = unheard
    logging.getLogger("asyncio").addHandler(_Lost(complaints))
    processors = [logged, *structlog.get_config()["processors"]]
    structlog.configure(processors, logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    atexit.register(tell)


class _Lost(logging.Handler):
    """What asyncio reports at level error: tasks destroyed, exceptions never retrieved."""

    def __init__(self, complaints: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.complaints = complaints

    def emit(self, record: logging.LogRecord) -> None:
        self.complaints.append(f"asyncio: {record.getMessage()}")


def _left() -> dict[str, Any]:
    """What is still there, but for this task and what asyncio has: its executor, its wake-ups."""
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    threads = [t.name for t in threading.enumerate() if not t.name.startswith("asyncio_")]
    return {
        "tasks": len(asyncio.all_tasks()) - 1,
        "threads": threads,
        "sockets": sum("socket:" in str(link) for link in links),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--lease", required=True)
    parser.add_argument("--identity", required=True)
    parser.add_argument("--lease-seconds", type=float, default=15.0)
    parser.add_argument("--renew", type=float, default=10.0)
    parser.add_argument("--retry", type=float, default=2.0)
    parser.add_argument("--wall", type=float, default=0.0, help="seconds its clock is off")
    parser.add_argument("--linger", type=float, default=0.0, help="seconds a part takes to stop")
    listen_to_complaints()
    try:
        asyncio.run(main(parser.parse_args()))
    except LeadershipLost as err:
        say("lost", cause=str(err))
        raise SystemExit(1) from err
    except KaitoError as err:
        say("failed", cause=str(err))
        raise SystemExit(1) from err
