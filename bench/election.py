"""Leader election under stress: takeover and release times, and writes that went out too late.

Takeovers are measured on a real API server with the default Lease, by processes that are killed or
told to stop. Late writes are counted in this process, on a loopback server, under hundreds of
injected faults: a boot clock that jumps (as after SIGSTOP or a suspended machine), wall clocks that
step, partitions of either side. There a write counts as late by the sender's own clock, at the
moment its bytes go out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import aiohttp
import structlog
from aiohttp import web

from bench.measure import Measure
from kaito.clock import SystemClock
from kaito.controller.candidacy import FENCE_MARGIN, Timing
from kaito.controller.leader import Elector
from kaito.errors import KaitoError
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import ClusterConfig
from kaito.sandbox.binaries import ensure
from kaito.sandbox.controlplane import ControlPlane
from tests.component.replica import CONFIG_MAPS

LEASES = 6
FAULTS = 500
SENDERS = 10
WRITERS = 8
TIMING = Timing(lease=3, renew_deadline=0.8, retry=0.1)


def measure() -> Iterator[Measure]:
    """Some three minutes: a Lease has to run out."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield from asyncio.run(_late_writes())
    with tempfile.TemporaryDirectory(prefix="kaito-bench-") as name:
        plane = ControlPlane(Path(name), binaries=ensure(os.environ, progress=lambda _: None))
        with asyncio.Runner() as runner:
            runner.run(plane.start())
            try:
                yield from _takeovers(plane)
            finally:
                runner.run(plane.stop())


# Takeovers ------------------------------------------------------------------------------------


class Replica:
    """A process that leads or waits (tests/component/replica.py)."""

    def __init__(self, plane: ControlPlane, lease: str, identity: str) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.component.replica", f"--lease={lease}"),
                *(f"--kubeconfig={plane.kubeconfig}", f"--identity={identity}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def when(self, event: str) -> float:
        """The boot clock's time at which it said so."""
        out: IO[bytes] | None = self.process.stdout
        assert out is not None
        for line in out:
            seen = json.loads(line)
            if seen["event"] == event:
                return float(seen.get("at", 0.0))
        raise AssertionError(f"it ended without: {event}")

    def end(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self.process.wait()


def _takeovers(plane: ControlPlane) -> Iterator[Measure]:
    """Several Leases at once: their times are waits, not work."""
    pairs: list[tuple[Replica, Replica]] = []
    dice = random.Random(0)  # noqa: S311 - the same in each run
    try:
        for number in range(LEASES):
            first = Replica(plane, f"takeover-{number}", "first")
            first.when("leading")
            pairs.append((first, Replica(plane, f"takeover-{number}", "second")))
            pairs[-1][1].when("leader")
        killed = []
        for first, _ in pairs:
            time.sleep(dice.random())  # anywhere between two renewals
            first.process.kill()
            killed.append(time.clock_gettime(time.CLOCK_BOOTTIME))
        led = [second.when("leading") for _, second in pairs]
        waits = [after - before for before, after in zip(killed, led, strict=True)]
        yield Measure.of("leader killed: takeover", waits, "s", "<= 18")
        thirds = [Replica(plane, f"takeover-{n}", "third") for n in range(LEASES)]
        pairs += [(third, third) for third in thirds]
        for third in thirds:
            third.when("leader")
        waits = []
        for (_, second), third in zip(pairs[:LEASES], thirds, strict=True):
            told = time.clock_gettime(time.CLOCK_BOOTTIME)
            second.process.send_signal(signal.SIGTERM)
            waits.append(third.when("leading") - told)
        yield Measure.of("leader told to stop: takeover", waits, "s", "<= 2")
    finally:
        for pair in pairs:
            for replica in pair:
                replica.end()


# Late writes ----------------------------------------------------------------------------------


class JumpingClock(SystemClock):
    """Jumps, as a boot clock has when the process runs again after a stop."""

    def __init__(self) -> None:
        self.skipped = 0.0
        super().__init__()

    def monotonic(self) -> float:
        """See Clock."""
        return super().monotonic() + self.skipped

    def step_wall(self, seconds: float) -> None:
        """Someone sets the host's clock."""
        self._offset += seconds


class Server:
    """Leases and other objects in memory. ``cut``: sender to the side that does not get through."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.version = 0
        self.cut: dict[str, str] = {}

    async def handle(self, request: web.Request) -> web.Response:
        """Every path. The sender's number is the end of its User-Agent."""
        sender = request.headers["User-Agent"].rsplit("-", 1)[-1]
        if self.cut.get(sender) == "requests":
            await asyncio.sleep(60)
        answer = self._answer(request.method, request.path, await request.read())
        if self.cut.get(sender) == "answers":
            await asyncio.sleep(60)
        return answer

    def _answer(self, method: str, path: str, body: bytes) -> web.Response:
        sent = json.loads(body) if body else {}
        if method == "POST":
            path = f"{path}/{sent['metadata']['name']}"
        current = self.objects.get(path)
        if method == "GET":
            return _status(404, path) if current is None else web.json_response(current)
        if method == "POST" and current is not None:
            return _status(409, path, "AlreadyExists")
        version = sent["metadata"].get("resourceVersion")
        if method != "POST" and (
            current is None or current["metadata"]["resourceVersion"] != version
        ):
            return _status(409, path, "Conflict")
        self.version += 1
        metadata = {"uid": path, **sent["metadata"], "resourceVersion": str(self.version)}
        self.objects[path] = {**(current or {}), **sent, "metadata": metadata}
        return web.json_response(self.objects[path], status=201 if method == "POST" else 200)


def _status(code: int, path: str, reason: str = "NotFound") -> web.Response:
    details = {"name": path.rsplit("/", 1)[-1]}
    body = {"kind": "Status", "code": code, "reason": reason, "details": details}
    return web.json_response(body, status=code)


class _Held:
    """Since when the Lease is held: what the candidacy knows, not the fence that is under test."""

    def __init__(self, elector: Elector) -> None:
        self._elector = elector
        self._since = float("-inf")

    def since(self) -> float:
        """Start of the last renewal, also when leadership was lost since."""
        self._since = self._elector._candidacy._renewed_at or self._since
        return self._since

    def fence(self) -> float:
        """The elector's."""
        self.since()
        return self._elector.fence()


class Sender:
    """One replica after another, each with writers that never rest; who loses starts again."""

    def __init__(self, number: int, url: str, server: Server, counts: dict[str, int]) -> None:
        self.name = str(number)
        self.clock = JumpingClock()
        self.dice = random.Random(number)  # noqa: S311 - the same in each run
        self.config = ClusterConfig(host=url)
        self.server = server
        self.counts = counts

    async def live(self) -> None:
        """Start again whenever leadership was lost."""
        while True:
            await self._lead()

    async def _lead(self) -> None:
        elector = Elector(
            connect=lambda: connect(
                self.config, clock=self.clock, component=f"elector-{self.name}"
            ),
            namespace="default",
            name=self.name,
            identity=self.name,
            clock=self.clock,
            timing=TIMING,
            on_new_leader=lambda _: None,
            exit_process=lambda _: None,
        )
        held = _Held(elector)
        client = await connect(
            self.config, clock=self.clock, component=f"w-{self.name}", fence=held.fence
        )
        _watch_bytes(client, lambda: self._went_out(held))
        elector.start()
        try:
            async with asyncio.TaskGroup() as group:
                writers = [group.create_task(self._write(client, n)) for n in range(WRITERS)]
                await elector.lost()
                self.counts["lost"] += 1
                # A while longer: these have not heard of the loss.
                await asyncio.sleep(self.dice.uniform(0, 0.3))
                for writer in writers:
                    writer.cancel()
        finally:
            await elector.release()
            await client.close()

    def _went_out(self, held: _Held) -> None:
        self.counts["sent"] += 1
        if self.clock.monotonic() > held.since() + TIMING.lease - FENCE_MARGIN:
            self.counts["late"] += 1

    async def _write(self, client: KubeClient, number: int) -> None:
        name = f"{self.name}-{number}"
        metadata = {"namespace": "default", "name": name}
        head = {"apiVersion": "v1", "kind": "ConfigMap"}
        while True:
            with suppress(KaitoError):
                found = await client.get(CONFIG_MAPS, "default", name)
                if found is None:
                    await client.create(CONFIG_MAPS, {**head, "metadata": metadata})
                else:
                    version = {"resourceVersion": found.metadata.resource_version}
                    body = {"metadata": {**metadata, **version}, "data": {}}
                    await client.merge_patch(CONFIG_MAPS, "default", name, body)
            await asyncio.sleep(0.01)

    async def suffer(self, faults: int) -> None:
        """Each fault at a moment of its own."""
        for _ in range(faults):
            await asyncio.sleep(self.dice.uniform(0.2, 0.6))
            fault = self.dice.choice(("jump", "jump", "step", "requests", "answers"))
            self.counts[fault] += 1
            if fault == "jump":
                self.clock.skipped += self.dice.uniform(0.3, 4)
            elif fault == "step":
                self.clock.step_wall(self.dice.choice((-3600, 3600)))
            else:
                self.server.cut[self.name] = fault
                await asyncio.sleep(self.dice.uniform(0.2, 1.5))
                del self.server.cut[self.name]


def _watch_bytes(client: KubeClient, went_out: Any) -> None:
    """Call for each mutating request when its body is handed to the socket."""

    async def sent(
        _session: Any, _context: Any, params: aiohttp.TraceRequestChunkSentParams
    ) -> None:
        if params.method != "GET":
            went_out()

    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(sent)
    trace.freeze()
    client._transport._calls._trace_configs.append(trace)


async def _late_writes() -> list[Measure]:
    server = Server()
    counts = dict.fromkeys(("sent", "late", "lost", "jump", "step", "requests", "answers"), 0)
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    senders = [Sender(number, url, server, counts) for number in range(SENDERS)]
    async with asyncio.TaskGroup() as group:
        lives = [group.create_task(sender.live()) for sender in senders]
        async with asyncio.TaskGroup() as faults:
            for sender in senders:
                faults.create_task(sender.suffer(FAULTS // SENDERS))
        for life in lives:
            life.cancel()
    await runner.cleanup()
    injected = sum(counts[fault] for fault in ("jump", "step", "requests", "answers"))
    return [
        Measure(f"writes sent too late, of {counts['sent']}", counts["late"], "writes", "= 0"),
        Measure("faults injected meanwhile", injected, "faults", f">= {FAULTS}"),
        Measure("leaderships lost meanwhile", counts["lost"], "losses"),
    ]
