"""The first sync of a Pod cache from a real API server, ours next to controller-runtime's, in turn.

Each run is a process of its own that measures itself from no client to a synced cache, so that the
start of an interpreter is not in it. Both see the same Pods, which nobody schedules; each asks in
its own way (ours for a streamed list in JSON, client-go for one list in protobuf).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from bench.measure import Measure
from bench.peers.apiserver import ApiServer, in_parallel, quiet_api_server
from bench.peers.build import controller_runtime
from bench.peers.usage import Usage
from kaito import logs
from kaito.reconcilers.kinds import PODS

PODS_THERE: Final = 5_000
RUNS: Final = 7
_MODULES: Final = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Run:
    """``seconds``: by its own clock. ``usage``: of the whole process, its start included."""

    seconds: float
    usage: Usage


def measure() -> Iterator[Measure]:
    """Figures of both, then the ratio that has a bar."""
    logs.configure(level="error", form="console")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        ours, go = runner.run(_contest())
    what = f"first sync of {PODS_THERE:,} Pods"
    for name, runs in (("ours", ours), ("controller-runtime", go)):
        yield Measure.of(f"{what}, {name}", [run.seconds for run in runs], "s")
        yield Measure.of(f"{what}, {name}: CPU", [run.usage.cpu_seconds for run in runs], "s")
        yield Measure.of(f"{what}, {name}: peak RSS", [run.usage.peak_mib for run in runs], "MiB")
    ratios = [a.seconds / b.seconds for a, b in zip(ours, go, strict=True)]
    yield Measure.of(f"{what}: ours / controller-runtime: wall", ratios, "x", "<= 1.1")


async def _contest() -> tuple[Sequence[Run], Sequence[Run]]:
    peer = controller_runtime()
    async with quiet_api_server() as server:
        pods = (_manifest(number) for number in range(PODS_THERE))
        await in_parallel(partial(server.client.create, PODS), pods)
        commands = {
            "ours": _ours(server),
            "go": (str(peer), f"-server={server.kubeconfig}", "first-sync"),
        }
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for number in range(RUNS):
            names = ("ours", "go") if number % 2 else ("go", "ours")
            for name in names:
                runs[name].append(await asyncio.to_thread(_run, commands[name]))
    return runs["ours"], runs["go"]


def _ours(server: ApiServer) -> Sequence[str]:
    module = "bench.peers.our_first_sync"
    return (sys.executable, "-m", module, str(server.account), *server.address)


def _run(command: Sequence[str]) -> Run:
    environ = {**os.environ, "PYTHONPATH": str(_MODULES)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environ) as process:
        assert process.stdout is not None
        answer = json.loads(process.stdout.readline())
        usage = Usage.of(process.pid)  # it stays until its stdin is closed
        process.communicate()
    if process.returncode or answer["objects"] != PODS_THERE:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}, having seen {answer}")
    return Run(answer["seconds"], usage)


def _manifest(number: int) -> dict[str, Any]:
    """A Pod of 6.4 KB as the server sends it, of no scheduler: it stays as it is."""
    name = f"web-7c5ddbdf54-{number:05}"
    environment = [{"name": f"SETTING_{i:02}", "value": f"value of setting {i}"} for i in range(12)]
    containers = [
        {
            "name": container,
            "image": f"registry.example.com/team/{container}:v1.2.3",
            "ports": [{"containerPort": port, "protocol": "TCP"}],
            "env": environment,
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        }
        for container, port in (("web", 8080), ("proxy", 15001))
    ]
    labels = {"app.kubernetes.io/name": "web", "pod-template-hash": "7c5ddbdf54"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "default",
            "name": name,
            "labels": labels,
            "annotations": {"checksum/config": "5f" * 180},
        },
        "spec": {"schedulerName": "nobody", "containers": containers},
    }
