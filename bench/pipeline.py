"""The watch pipeline on replayed bytes: events per second, the first sync, memory per object.

Everything from the socket to the handler's queue is ours: client, watcher, informer, store with two
indexes, work queue with workers. Each run is a fresh child process on one core, the server that
replays is on the other. Events per second are per CPU second of the client, so that what else the
machine does changes little; times and stalls of the first sync are by the wall.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import replay
from bench.measure import Measure

RUNS = 5
FOREIGN_EVENTS = 3_000
WORKERS = 8
SAMPLE_SECONDS = 0.001


def measure() -> Iterator[Measure]:
    """Medians of fresh processes."""
    with replay.replaying() as address:
        rates = {}
        for what, name, bar in (
            ("typed", "watch pipeline, typed", ">= 60000"),
            ("mapping", "watch pipeline, mapping", ">= 25000"),
            ("foreign", "watch of kubernetes_asyncio", ""),
            ("floor", "read and decode alone, typed: the machine's floor", ""),
        ):
            runs = [_child(address, what)["rate"] for _ in range(RUNS)]
            rates[what] = statistics.median(runs)
            yield Measure.of(name, runs, "events/CPU s", bar)
        ratio = rates["typed"] / rates["foreign"]
        yield Measure("watch pipeline, typed, to kubernetes_asyncio", ratio, "x", ">= 30")
        share = rates["typed"] / rates["floor"]
        yield Measure("watch pipeline, typed, to the machine's floor", share, "x")
        for what in ("stream", "list"):
            syncs = [_child(address, what) for _ in range(RUNS)]
            for figure, unit, bar in (
                ("time", "s", "<= 1.0"),
                ("longest stall", "ms", "<= 50"),
                ("RSS per Pod", "KiB", "<= 9"),
                ("CPU", "s", ""),
                ("longest stall, CPU", "ms", ""),
            ):
                name = f"first sync of 10,000 Pods by {what}: {figure}"
                yield Measure.of(name, [sync[figure] for sync in syncs], unit, bar)


def _child(address: str, what: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.pipeline", what, address],
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


# In the child --------------------------------------------------------------------------------


async def _events(address: str, what: str) -> dict[str, float]:
    """Events from the socket to a worker's hands."""
    from kaito.controller.workqueue import Shutdown, WorkQueue
    from kaito.informers.collector import Collector

    informer, client = await _informer(f"{address}/events", what)
    queue: WorkQueue[tuple[str, str]] = WorkQueue(clock=informer._clock)
    finished = asyncio.Event()
    events = 0
    began = (0.0, 0.0)

    def handle(change: Any) -> None:
        nonlocal events, began
        queue.add(change.new.metadata.key)
        if not change.initial:
            if not events:
                began = (time.perf_counter(), time.process_time())
            events += 1
            if events == replay.EVENTS:
                finished.set()

    async def work() -> None:
        while not isinstance(key := await queue.get(), Shutdown):
            queue.done(key)

    informer.add_handler(handle)
    collector = Collector(clock=informer._clock)
    collector.pause()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(informer.run())
        workers = [group.create_task(work()) for _ in range(WORKERS)]
        await informer.wait_synced()
        collector.settle()
        await finished.wait()
        await _drained(queue)
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        for task in (watching, *workers):
            task.cancel()
    await client.close()
    assert informer.scopes[0].resource_version == str(replay.LAST_VERSION)
    return {"rate": events / cpu, "wall_rate": events / wall}


async def _drained(queue: Any) -> None:
    """The queue says nothing when it is empty: workers that wait for a key do not need to know."""
    for _ in range(replay.EVENTS):
        if not len(queue):
            return
        await asyncio.sleep(0)


async def _foreign(address: str, _what: str) -> dict[str, float]:
    """The same bytes through kubernetes_asyncio's own watch, which stores and handles nothing."""
    from kubernetes_asyncio import client, watch

    async with client.ApiClient(client.Configuration(host=f"{address}/events")) as api:
        pods = client.CoreV1Api(api)
        events = 0
        async with watch.Watch() as watching:
            async for _ in watching.stream(
                pods.list_pod_for_all_namespaces, resource_version="1", timeout_seconds=60
            ):
                if not events:
                    began = (time.perf_counter(), time.process_time())
                events += 1
                if events == FOREIGN_EVENTS:
                    break
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    return {"rate": events / cpu, "wall_rate": events / wall}


async def _floor(address: str, _what: str) -> dict[str, float]:
    """Chunks of aiohttp and the decoder of msgspec in a bare loop; the last 1,000 objects are kept.

    What no client in Python that uses them can beat: no lines, no store, no handler.
    """
    import aiohttp

    from kaito.api.views import decode_pod

    start = len(b'{"type":"MODIFIED","object":')
    kept: list[Any] = [None] * replay.WATCHED
    events = 0
    began = (0.0, 0.0)
    path = "/events/api/v1/pods?watch=1&resourceVersion=1"
    async with aiohttp.ClientSession() as session, session.get(address + path) as answer:
        while events < replay.EVENTS // 2:
            chunk, _ = await answer.content.readchunk()
            if chunk.startswith(b'{"type":"M') and chunk.endswith(b"}\n"):
                if not events:
                    began = (time.perf_counter(), time.process_time())
                kept[events % replay.WATCHED] = decode_pod(chunk[start:-2])
                events += 1
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    return {"rate": events / cpu, "wall_rate": events / wall}


async def _first_sync(address: str, what: str) -> dict[str, float]:
    """Seconds to has_synced, stalls of the loop meanwhile in ms, KiB kept a Pod."""
    from kaito.informers.collector import Collector

    informer, client = await _informer(f"{address}/{what}", "typed")
    told = 0

    def handle(_change: Any) -> None:
        nonlocal told
        told += 1

    informer.add_handler(handle)
    await client.server_version()  # the session has been used before: only the sync is measured
    gc.collect()
    before = _resident_kib()
    collector = Collector(clock=informer._clock)
    collector.pause()
    stalls = {"longest stall": 0.0, "longest stall, CPU": 0.0}
    began = (time.perf_counter(), time.process_time())
    async with asyncio.TaskGroup() as group:
        sampler = group.create_task(_sample_stalls(stalls))
        watching = group.create_task(informer.run())
        await informer.wait_synced()
        seconds, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        sampler.cancel()
        await asyncio.sleep(0.05)
        collector.settle()
        memory = (_resident_kib() - before) / replay.OBJECTS
        watching.cancel()
    await client.close()
    assert told == len(informer.lister.list()) == replay.OBJECTS
    return {"time": seconds, "CPU": cpu, "RSS per Pod": memory, **stalls}


async def _sample_stalls(longest: dict[str, float]) -> None:
    """How late a callback that is due each millisecond comes at worst, in ms.

    ``CPU``: how much of that the thread itself worked, so without what the machine took.
    """
    while True:
        due, worked = time.perf_counter() + SAMPLE_SECONDS, time.thread_time()
        await asyncio.sleep(SAMPLE_SECONDS)
        late, worked = time.perf_counter() - due, time.thread_time() - worked
        for name, seconds in (("longest stall", late), ("longest stall, CPU", min(late, worked))):
            longest[name] = max(longest[name], seconds * 1e3)


async def _informer(address: str, what: str) -> tuple[Any, Any]:
    from kaito.api.views import decode_owned, decode_pod
    from kaito.clock import SystemClock
    from kaito.informers.informer import Informer
    from kaito.kube.client import connect
    from kaito.kube.config import ClusterConfig
    from kaito.kube.resources import Kind

    clock = SystemClock()
    client = await connect(ClusterConfig(host=address), clock=clock, component="bench")
    decode: Any = decode_pod if what == "typed" else decode_owned
    kind: Kind[Any] = Kind("", "v1", "Pod", "pods", True, decode)
    of_node = _typed_node if what == "typed" else _mapped_node
    indexes = {"node": of_node, "owner": _owner}
    return Informer(client, kind, clock=clock, indexes=indexes), client


def _typed_node(pod: Any) -> tuple[str, ...]:
    return (pod.spec.node_name,)


def _mapped_node(pod: Any) -> tuple[str, ...]:
    return (pod.body["spec"]["nodeName"],)


def _owner(pod: Any) -> tuple[str, ...]:
    return tuple([owner.uid for owner in pod.metadata.owner_references])


def _resident_kib() -> float:
    status = Path(f"/proc/{os.getpid()}/status").read_text(encoding="ascii")
    return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.M).group(1))  # type: ignore[union-attr]


_CHILDREN = {
    "typed": _events,
    "mapping": _events,
    "foreign": _foreign,
    "floor": _floor,
    "stream": _first_sync,
    "list": _first_sync,
}


def main() -> int:
    """Without arguments: all measures; else one run, as JSON."""
    if len(sys.argv) == 1:
        for m in measure():
            print(f"{m.name:56} {m.value:12,.2f} {m.unit:10} {m.bar}", flush=True)
        return 0
    import uvloop

    from kaito import logs

    logs.configure(level="error", form="json")
    replay.pin_client()
    what, address = sys.argv[1:]
    print(json.dumps(uvloop.run(_CHILDREN[what](address, what))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
