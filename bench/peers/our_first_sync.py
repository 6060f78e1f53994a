"""The first sync of our Pod cache: ``python -m bench.peers.our_first_sync FOLDER HOST PORT``.

Prints how long it took, from no client to a synced cache, and how many Pods are in it; then stays
until its stdin is closed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import uvloop

from kaito import logs
from kaito.assembly import assembled
from kaito.kube.config import ClusterConfig, in_cluster
from kaito.reconcilers.kinds import PODS


async def first_sync(config: ClusterConfig) -> None:
    """As an operator has its caches."""
    began = time.perf_counter()
    async with assembled(config, name="bench", health_address="0", metrics_address="0") as process:
        pods = process.informers.informer(PODS)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(process.run())
            await pods.wait_synced()
            took = time.perf_counter() - began
            print(json.dumps({"seconds": took, "objects": len(pods.lister.list())}), flush=True)
            await asyncio.to_thread(sys.stdin.read)
            running.cancel()


if __name__ == "__main__":
    logs.configure(level="info", form="json")
    folder, host, port = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(first_sync(in_cluster(folder=Path(folder), host=host, port=port)))
