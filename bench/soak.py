"""Soak: does the framework keep its memory under churn that does not end?

A real API server, 50 objects created, changed and deleted each second, and in a process of its own
a manager with caches and a controller that keeps a child per object. The resident set of that
process must stay within 5 % of what it was in minute 2: ``make soak`` fails when it does not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
import uvloop
from rich.console import Console
from rich.table import Table

from bench.measure import Measure
from kaito.api.meta import Key, Owned
from kaito.api.views import decode_metadata, decode_owned
from kaito.clock import SystemClock
from kaito.controller.controller import Controller
from kaito.controller.manager import Manager
from kaito.controller.result import Result
from kaito.informers.freshness import Freshness
from kaito.informers.handlers import own_key, owner_keys
from kaito.informers.informer import InformerSet
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import from_kubeconfig, in_cluster
from kaito.kube.resources import Kind
from kaito.sandbox.binaries import ensure
from kaito.sandbox.controlplane import ControlPlane

NAMESPACE: Final = "default"
RATE: Final = 50.0
OBJECTS: Final = 1_000
"""How many there are, more or less, once the first of them have been made."""
PAYLOAD: Final = 2_000
SAMPLE_SECONDS: Final = 5.0
TOLERANCE: Final = 0.05
MINUTES: Final = 20.0
SHORTEST: Final = 3.0
CATCH_UP_SECONDS: Final = 30.0

CONFIGMAPS: Kind[Owned] = Kind("", "v1", "ConfigMap", "configmaps", True, decode_owned)
SECRETS: Kind[Any] = Kind("", "v1", "Secret", "secrets", True, decode_owned)
METADATA: Kind[Any] = Kind("", "v1", "ConfigMap", "configmaps", True, decode_metadata)
BINDINGS: Kind[Owned] = Kind(
    *("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings"),
    namespaced=False,
    decode=decode_owned,
)
BINDING: Final = {
    "apiVersion": BINDINGS.api_version,
    "kind": BINDINGS.kind,
    "metadata": {"name": "soak"},
    "roleRef": {"apiGroup": BINDINGS.group, "kind": "ClusterRole", "name": "cluster-admin"},
    "subjects": [{"kind": "ServiceAccount", "namespace": NAMESPACE, "name": "default"}],
}


# The process that is watched --------------------------------------------------------------------


async def operate(folder: Path, server: str) -> None:
    """Keep a Secret per ConfigMap until SIGTERM. ``folder``: a pod's, as kubeconfigs cost 66 MB."""
    clock = SystemClock()
    address = urlsplit(server)
    config = in_cluster(folder=folder, host=address.hostname or "", port=str(address.port))
    kube = await connect(config, clock=clock, component="soak")
    freshness = Freshness(clock=clock, read=kube.get)
    kube.on_written = freshness.on_written
    informers = InformerSet(kube, clock=clock)
    sources = informers.informer(CONFIGMAPS, label_selector="role=source")
    children = informers.informer(SECRETS, label_selector="role=child")
    informers.informer(METADATA, metadata_only=True)

    async def reconcile(key: Key) -> Result:
        source, child = sources.lister.get(*key), children.lister.get(*key)
        if source is not None:  # else the garbage collector sees to the child
            manifest = child_of(source)
            if child is None or child.body["data"] != manifest["data"]:
                await kube.apply(SECRETS, manifest, field_manager="soak")
        return Result()

    controller = Controller("soak", reconcile, clock=clock, freshness=freshness)
    controller.watch(sources, own_key)
    controller.watch(children, owner_keys(CONFIGMAPS.group, CONFIGMAPS.kind))
    manager = Manager(clock=clock)
    manager.add_informers(informers)
    manager.add_runnable("freshness", freshness.run, leader_only=False)
    manager.add_controller(controller)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    try:
        await manager.run(stop)
    finally:
        await kube.close()


def child_of(source: Owned) -> dict[str, Any]:
    """Same name, same data (base64 all of it), gone with its owner."""
    meta = source.metadata
    owner = {
        "apiVersion": CONFIGMAPS.api_version,
        "kind": CONFIGMAPS.kind,
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
    }
    return {
        "apiVersion": SECRETS.api_version,
        "kind": SECRETS.kind,
        "metadata": {
            "namespace": meta.namespace,
            "name": meta.name,
            "labels": {"role": "child"},
            "ownerReferences": [owner],
        },
        "data": source.body["data"],
    }


# The process that watches -----------------------------------------------------------------------


@dataclass
class Churn:
    """Creates, changes and deletes ConfigMaps, one call after another, ``RATE`` a second."""

    kube: KubeClient
    done: int = 0
    names: list[str] = field(default_factory=list)
    _made: int = 0

    async def run(self, ends: float) -> None:
        """Until the loop's clock shows ``ends``. What is late is caught up with, not dropped."""
        chance = random.Random(11)  # noqa: S311 - nothing secret
        now = asyncio.get_running_loop().time
        due = now()
        while now() < ends:
            await asyncio.sleep(max(0.0, due - now()))
            due += 1 / RATE
            await self._one(chance)
            self.done += 1

    async def _one(self, chance: random.Random) -> None:
        kind = chance.choice(("create", "change", "delete"))
        if len(self.names) < OBJECTS * 0.95:
            kind = "create"
        elif kind == "create" and len(self.names) > OBJECTS * 1.05:
            kind = "delete"
        data = {"payload": chance.randbytes(PAYLOAD // 2).hex()}  # base64 as far as one looks
        if kind == "create":
            self._made += 1
            name = f"soak-{self._made:06}"
            metadata = {"namespace": NAMESPACE, "name": name, "labels": {"role": "source"}}
            await self.kube.create(
                CONFIGMAPS,
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
            )
            self.names.append(name)
            return
        place = chance.randrange(len(self.names))
        if kind == "change":
            await self.kube.merge_patch(CONFIGMAPS, NAMESPACE, self.names[place], {"data": data})
        else:
            self.names[place], self.names[-1] = self.names[-1], self.names[place]
            await self.kube.delete(CONFIGMAPS, NAMESPACE, self.names.pop())


@dataclass(frozen=True)
class Sample:
    """``second``: since the start. ``changes``: made so far."""

    second: float
    rss_mib: float
    cpu_seconds: float
    objects: int
    changes: int


@asynccontextmanager
async def operator(plane: ControlPlane) -> AsyncIterator[int]:
    """The watched process; its pid."""
    folder = await asyncio.to_thread(plane.service_account_folder, NAMESPACE, "default")
    command = (sys.executable, "-m", "bench.soak", "--operate", str(folder), plane.server)
    process = await asyncio.create_subprocess_exec(*command)
    try:
        yield process.pid
        if process.returncode is not None:
            raise RuntimeError(f"the watched process ended by itself: {process.returncode}")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def soak(minutes: float) -> Outcome:
    """One run on a control plane of its own."""
    with tempfile.TemporaryDirectory(prefix="kaito-soak-") as folder:
        plane = ControlPlane(Path(folder), binaries=ensure(os.environ, progress=print))
        await plane.start()
        kube = None
        try:
            config = await from_kubeconfig(plane.kubeconfig)
            kube = await connect(config, clock=SystemClock(), component="soak-churn")
            await kube.create(BINDINGS, BINDING)
            async with operator(plane) as pid:
                churn = Churn(kube)
                samples = await observe(churn, pid, minutes)
                return Outcome(samples, await catch_up(churn))
        finally:
            if kube is not None:
                await kube.close()
            await plane.stop()


async def observe(churn: Churn, pid: int, minutes: float) -> list[Sample]:
    """Samples of the watched process over the minutes of churn."""
    now = asyncio.get_running_loop().time
    began = now()
    samples: list[Sample] = []

    async def sample() -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            rss, cpu = resources(pid)
            samples.append(Sample(now() - began, rss, cpu, len(churn.names), churn.done))

    async with asyncio.TaskGroup() as group:
        sampling = group.create_task(sample())
        await churn.run(began + minutes * 60)
        sampling.cancel()
    return samples


def resources(pid: int) -> tuple[float, float]:
    """Resident set in MiB; user and system time in seconds."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    resident = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    if resident is None:
        raise RuntimeError(f"the watched process {pid} has ended")
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return int(resident[1]) / 1024, cpu


async def catch_up(churn: Churn) -> int:
    """How many children are wrong after the churn has stopped and had time to be dealt with."""
    now = asyncio.get_running_loop().time
    ends = now() + CATCH_UP_SECONDS
    while (wrong := await wrong_children(churn.kube)) and now() < ends:  # noqa: ASYNC110 - polled
        await asyncio.sleep(1.0)
    return wrong


async def wrong_children(kube: KubeClient) -> int:
    """Children there should not be, or with other data, and those there should be."""
    sources = await kube.list(CONFIGMAPS, namespace=NAMESPACE, label_selector="role=source")
    children = await kube.list(SECRETS, namespace=NAMESPACE, label_selector="role=child")
    want: Mapping[str, Any] = {o.metadata.name: o.body["data"] for o in sources}
    have: Mapping[str, Any] = {o.metadata.name: o.body["data"] for o in children}
    return sum(want.get(name) != have.get(name) for name in want.keys() | have.keys())


@dataclass(frozen=True)
class Outcome:
    """``wrong``: children that were not as they should be in the end."""

    samples: list[Sample]
    wrong: int

    @property
    def minutes(self) -> dict[int, list[Sample]]:
        """Samples by minute, which count from 1."""
        found: dict[int, list[Sample]] = {}
        for sample in self.samples:
            found.setdefault(int(sample.second // 60) + 1, []).append(sample)
        return found

    @property
    def base(self) -> float:
        """MiB in minute 2, when all objects had been made."""
        return statistics.median(sample.rss_mib for sample in self.minutes[2])

    @property
    def drift(self) -> float:
        """Of the later sample that is farthest from it, as a share of it."""
        later = [sample.rss_mib for sample in self.samples if sample.second >= 120]
        return max((size / self.base - 1 for size in later), key=abs)

    def table(self) -> Table:
        """A line per minute."""
        table = Table("MINUTE", "RSS", "LOWEST", "HIGHEST", "CPU", "OBJECTS", "CHANGES", box=None)
        for minute, found in self.minutes.items():
            sizes = [sample.rss_mib for sample in found]
            first, last = found[0], found[-1]
            seconds = (last.second - first.second) or 1.0
            table.add_row(
                str(minute),
                *(f"{size:.1f} MiB" for size in (statistics.median(sizes), min(sizes), max(sizes))),
                f"{100 * (last.cpu_seconds - first.cpu_seconds) / seconds:.0f} %",
                str(last.objects),
                f"{(last.changes - first.changes) / seconds:.1f}/s",
            )
        return table


def measure() -> Iterator[Measure]:
    """The usual 20 minutes."""
    outcome = asyncio.run(soak(MINUTES))
    yield Measure("soak: RSS in minute 2", outcome.base, "MiB")
    yield Measure("soak: farthest from it afterwards", 100 * abs(outcome.drift), "%", "<= 5")
    yield Measure("soak: wrong children in the end", outcome.wrong, "children", "= 0")


def main() -> int:
    """Either process: which one, the arguments say. 1: it has grown, or has not kept up."""
    parser = argparse.ArgumentParser(prog="bench.soak")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="at least 3")
    parser.add_argument("--operate", nargs=2, metavar=("FOLDER", "SERVER"), help="be the watched")
    arguments = parser.parse_args()
    # What each change is logged with is the log's business, not memory's.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    if arguments.operate is not None:
        folder, server = arguments.operate
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(operate(Path(folder), server))
        return 0
    if arguments.minutes < SHORTEST:
        parser.error(f"below {SHORTEST:g} minutes there is nothing to compare minute 2 with")
    outcome = asyncio.run(soak(arguments.minutes))
    is_steady = abs(outcome.drift) <= TOLERANCE
    console = Console()
    console.print(outcome.table())
    console.print(
        f"minute 2: {outcome.base:.1f} MiB; farthest from it afterwards: {outcome.drift:+.1%}"
        f" ({'within' if is_steady else 'NOT within'} {TOLERANCE:.0%});"
        f" wrong children in the end: {outcome.wrong}"
    )
    return 0 if is_steady and not outcome.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
