"""The same small job by four operators, in turn, on one API server.

The Jobs are there before the operator starts: a creator that works meanwhile would share the two
cores with it and set its pace, and a slow operator would look like a fast one. So each starts to a
full queue, as after a restart. Its wall time runs from the start of its process to the moment when
the last child and status is seen by a watch; CPU time and peak memory are the whole process's, its
start included. A second after the end, the server's own count of writes tells what the job cost it.

The order changes from round to round; ratios are taken within a round. After its last round each is
started once more with everything in place: what it writes then is the cost of doing nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

from bench.measure import Measure
from bench.peers import jobs
from bench.peers.apiserver import ApiServer, in_parallel, quiet_api_server
from bench.peers.build import controller_runtime
from bench.peers.ours import CONFIGMAPS, JOBS, Child, Job
from bench.peers.usage import Usage
from kaito import logs
from kaito.api.meta import Key
from kaito.clock import SystemClock
from kaito.informers.handlers import Change
from kaito.informers.informer import InformerSet
from kaito.sandbox.processes import Program

OBJECTS: Final = 1_000
ROUNDS: Final = 5
PATIENCE_SECONDS: Final = 300.0
SETTLE_SECONDS: Final = 1.0
NOTHING_SECONDS: Final = 5.0
GRACE_SECONDS: Final = 10.0

OURS: Final = "ours"
GO: Final = "controller-runtime"
KOPF: Final = "kopf"
PLAIN: Final = "plain watch"
NAMES: Final = (OURS, GO, KOPF, PLAIN)
_MODULES: Final = Path(__file__).parent.parent  # on the path of the Python peers
_KOPF_RUN: Final = ("-m", "kopf", "run", "--standalone", "--all-namespaces", "--quiet")


@dataclass(frozen=True, slots=True)
class Run:
    """One operator's work on all Jobs.

    ``working_seconds``: from the first write seen on. ``server_seconds``: CPU time of the API
    server and its etcd meanwhile: what is left of two cores for an operator.
    """

    wall_seconds: float
    working_seconds: float
    usage: Usage
    server_seconds: float
    writes: int


def measure() -> Iterator[Measure]:
    """Figures of each operator, then the ratios that have bars."""
    logs.configure(level="error", form="console")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runs, idle_writes = runner.run(_contest())
    for name in NAMES:
        own = runs[name]
        yield Measure.of(f"{name}: wall", [r.wall_seconds for r in own], "s")
        yield Measure.of(f"{name}: wall from first write", [r.working_seconds for r in own], "s")
        yield Measure.of(f"{name}: CPU", [r.usage.cpu_seconds for r in own], "s")
        yield Measure.of(f"{name}: peak RSS", [r.usage.peak_mib for r in own], "MiB")
        yield Measure.of(f"{name}: the server's CPU", [r.server_seconds for r in own], "s")
        yield Measure.of(f"{name}: API writes", [r.writes for r in own], "requests")
        bar = "= 0" if name == OURS else ""
        yield Measure(f"{name}: API writes, all in place", idle_writes[name], "requests", bar)
    yield _ratio("wall", runs, OURS, GO, lambda run: run.wall_seconds, "<= 1.2")
    yield _ratio("CPU", runs, OURS, GO, lambda run: run.usage.cpu_seconds, "<= 2.5")
    yield _ratio("peak RSS", runs, OURS, GO, lambda run: run.usage.peak_mib, "<= 1.5")
    yield _ratio("wall", runs, KOPF, OURS, lambda run: run.wall_seconds, ">= 5")
    yield _ratio("CPU", runs, KOPF, OURS, lambda run: run.usage.cpu_seconds, ">= 5")


def _ratio(
    what: str, runs: Mapping[str, Sequence[Run]], over: str, under: str,
    figure: Callable[[Run], float], bar: str,
) -> Measure:  # fmt: skip
    """Of the runs of one round: what slows a round down slows both."""
    ratios = [figure(a) / figure(b) for a, b in zip(runs[over], runs[under], strict=True)]
    return Measure.of(f"{over} / {under}: {what}", ratios, "x", bar)


async def _contest() -> tuple[Mapping[str, Sequence[Run]], Mapping[str, int]]:
    """Runs by name, in the order of the rounds, and the writes of each with all in place."""
    peer = controller_runtime()
    runs: dict[str, list[Run]] = {name: [] for name in NAMES}
    idle_writes: dict[str, int] = {}
    async with quiet_api_server() as server, asyncio.TaskGroup() as group:
        await server.add_kind(jobs.CRD, JOBS)
        score = Scoreboard(server)
        watching = group.create_task(score.run())
        await score.wait_synced()
        for number in range(ROUNDS):
            for name in _order(number):
                program = _program(name, server, peer)
                run = await _run(program, server, score)
                runs[name].append(run)
                words = f"round {number + 1} of {ROUNDS}: {name} {run.wall_seconds:.1f} s"
                print(words, file=sys.stderr)
                if number == ROUNDS - 1:
                    seconds = max(NOTHING_SECONDS, run.wall_seconds)
                    idle_writes[name] = await _run_idle(program, server, seconds)
        watching.cancel()
    return runs, idle_writes


def _order(number: int) -> Sequence[str]:
    """Of a round: each comes first in turn, and none always follows the same other."""
    first = number % len(NAMES)
    order = (*NAMES[first:], *NAMES[:first])
    return order[::-1] if number % 2 else order


def _program(name: str, server: ApiServer, peer: Path) -> Program:
    kubeconfig, account = str(server.kubeconfig), (str(server.account), *server.address)
    command: dict[str, Sequence[str]] = {
        OURS: (sys.executable, "-m", "bench.peers.ours", *account),
        GO: (str(peer), f"-server={kubeconfig}", "operator"),
        KOPF: (sys.executable, *_KOPF_RUN, "-m", "bench.peers.kopf_job"),
        PLAIN: (sys.executable, "-m", "bench.peers.plain_watch", kubeconfig),
    }
    environ = {**os.environ, "KUBECONFIG": kubeconfig, "PYTHONPATH": str(_MODULES)}
    log = server.logs / f"{name.replace(' ', '-')}.log"
    return Program(name, command[name], log=log, environ=environ)


async def _run(program: Program, server: ApiServer, score: Scoreboard) -> Run:
    """All Jobs anew, then the operator, until all is done."""
    await server.delete_all(f"/apis/{JOBS.api_version}/namespaces/{jobs.NAMESPACE}/{JOBS.plural}")
    await server.delete_all(f"/api/v1/namespaces/{jobs.NAMESPACE}/configmaps")
    await score.wait_counts(jobs=0, done=0)
    create = partial(server.client.create, JOBS)
    await in_parallel(create, (jobs.manifest(number) for number in range(OBJECTS)))
    await score.wait_counts(jobs=OBJECTS, done=0)
    writes = await server.writes()
    server_seconds = server.cpu_seconds()
    began = score.restart()
    async with _running(program) as pid:
        try:
            await score.wait_counts(jobs=OBJECTS, done=OBJECTS)
        except TimeoutError:
            program.require_running()
            raise
        ended = time.perf_counter()
        server_seconds = server.cpu_seconds() - server_seconds
        await asyncio.sleep(SETTLE_SECONDS)
        usage = Usage.of(pid)
    writes = await server.writes() - writes
    return Run(ended - began, ended - score.first_write, usage, server_seconds, writes)


async def _run_idle(program: Program, server: ApiServer, seconds: float) -> int:
    """Writes of an operator that starts to find everything in place, and has time to look."""
    writes = await server.writes()
    async with _running(program):
        await asyncio.sleep(seconds)
        program.require_running()
    return await server.writes() - writes


@asynccontextmanager
async def _running(program: Program) -> AsyncIterator[int]:
    program.start()
    try:
        assert program.pid is not None
        yield program.pid
    finally:
        await program.stop(grace_seconds=GRACE_SECONDS)


class Scoreboard:
    """What a watch shows of Jobs and children, whoever works on them."""

    def __init__(self, server: ApiServer) -> None:
        self.first_write = 0.0
        self._informers = InformerSet(server.client, clock=SystemClock())
        self._jobs = self._informers.informer(JOBS)
        self._children = self._informers.informer(CONFIGMAPS)
        self._done: set[Key] = set()
        self._changed = asyncio.Event()
        self._jobs.add_handler(self._judge)
        self._children.add_handler(self._judge)

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._informers.run()

    async def wait_synced(self) -> None:
        """Until both kinds are watched."""
        await self._informers.wait_synced(PATIENCE_SECONDS)

    def restart(self) -> float:
        """Now; the next write seen counts as the first."""
        self.first_write = 0.0
        return time.perf_counter()

    async def wait_counts(self, *, jobs: int, done: int) -> None:
        """Until there are so many Jobs and so many of them are done, child and status.

        Raises:
            TimeoutError: they never were.
        """
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (len(self._jobs.lister.list()), len(self._done)) != (jobs, done):
                self._changed.clear()
                await self._changed.wait()

    def _judge(self, change: Change[Job] | Change[Child]) -> None:
        self.first_write = self.first_write or time.perf_counter()
        key = change.obj.metadata.key
        job, child = self._jobs.lister.get(*key), self._children.lister.get(*key)
        if job is not None and child is not None and jobs.is_done(job, child):
            self._done.add(key)
        else:
            self._done.discard(key)
        self._changed.set()
