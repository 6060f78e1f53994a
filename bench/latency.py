"""From an event's bytes to the start of its reconcile, at 1,000 events a second.

A child process writes one MODIFIED line a millisecond on loopback, each with the time at which it
was written. Client, watcher, informer, controller with 8 workers and a reconcile for nothing read
them on uvloop, as the operator does. Both clocks are the machine's, so the way through the kernel
and the server's turn of its loop count too.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import time
from collections.abc import Iterator

import msgspec
import uvloop

from bench.measure import Measure
from bench.replay import replaying
from kaito import logs
from kaito.api.meta import Key, ObjectMeta, View
from kaito.clock import SystemClock
from kaito.controller.controller import Controller
from kaito.controller.result import Result
from kaito.informers.handlers import own_key
from kaito.informers.informer import Informer
from kaito.kube.client import connect
from kaito.kube.config import ClusterConfig
from kaito.kube.resources import Kind

RUNS = 5
EVENTS = 3_000
OBJECTS = 500
WORKERS = 8
PERIOD_SECONDS = 0.001
PADDING = "x" * 2_000
_NAMES = (f"latency-{i}" for i in itertools.count())  # each with series of its own


class Note(View, frozen=True):
    """What a reconcile reads of the object: when it was written."""

    metadata: ObjectMeta


NOTES: Kind[Note] = Kind("ex.io", "v1", "Note", "notes", True, msgspec.json.Decoder(Note).decode)


def measure() -> Iterator[Measure]:
    """Medians of the runs' p50 and p99, in milliseconds."""
    logs.configure(level="warning", form="json")
    with replaying("bench.latency") as address:
        runs = [_percentiles(uvloop.run(_waits(address))) for _ in range(RUNS)]
    name = "event to reconcile at 1,000/s"
    yield Measure.of(f"{name}: p50", [p50 for p50, _ in runs], "ms", "<= 0.5")
    yield Measure.of(f"{name}: p99", [p99 for _, p99 in runs], "ms", "<= 5")


async def _waits(address: str) -> list[float]:
    """Milliseconds from each event's writing to the start of its reconcile."""
    clock = SystemClock()
    client = await connect(ClusterConfig(host=address), clock=clock, component="bench")
    informer = Informer(client, NOTES, clock=clock)
    waits: list[float] = []
    has_all = asyncio.Event()

    async def reconcile(key: Key) -> Result:
        note = informer.lister.get(*key)
        assert note is not None
        if sent := note.metadata.annotations.get("sent"):
            waits.append((time.monotonic_ns() - int(sent)) / 1e6)
            if len(waits) == EVENTS:
                has_all.set()
        return Result()

    controller = Controller(next(_NAMES), reconcile, clock=clock, workers=WORKERS)
    controller.watch(informer, own_key)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(informer.run())
        working = tasks.create_task(controller.run())
        await informer.wait_synced()
        gc.collect()
        gc.freeze()
        await has_all.wait()
        controller.stop()
        await working
        watching.cancel()
    await client.close()
    return waits


def _percentiles(waits: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(waits, n=100)
    return cuts[49], cuts[98]


# The server -------------------------------------------------------------------------------------


async def _serve() -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Whatever is asked for: the objects, the marker, then one event a millisecond."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in range(OBJECTS):
        writer.write(_line("ADDED", number + 1, name=f"n{number}"))
    marker = {"k8s.io/initial-events-end": "true"}
    writer.write(_line("BOOKMARK", OBJECTS, annotations=marker))
    await asyncio.sleep(0.5)  # time for the client to settle
    due = time.monotonic()
    for number in itertools.count():
        due += PERIOD_SECONDS
        await asyncio.sleep(due - time.monotonic())
        if writer.is_closing():
            return
        sent = {"sent": str(time.monotonic_ns()), "padding": PADDING}
        version = OBJECTS + number + 1
        writer.write(_line("MODIFIED", version, name=f"n{number % OBJECTS}", annotations=sent))


def _line(type_: str, version: int, **meta: object) -> bytes:
    name = meta.get("name", "")
    metadata = {"namespace": "default", "uid": name, "resourceVersion": str(version), **meta}
    body = {"kind": "Note", "apiVersion": "ex.io/v1", "metadata": metadata}
    line = msgspec.json.encode({"type": type_, "object": body}) + b"\n"
    return b"%x\r\n%s\r\n" % (len(line), line)


if __name__ == "__main__":
    uvloop.run(_serve())
