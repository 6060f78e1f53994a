"""The job of the side-by-side bench, written with this framework.

``python -m bench.peers.ours FOLDER HOST PORT`` runs it until SIGTERM, as a pod would be run: the
folder is its service account's.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from kaito import logs
from kaito.api.meta import Key, ObjectMeta, View
from kaito.assembly import assembled
from kaito.controller.result import Result
from kaito.informers.handlers import own_key, owner_keys
from kaito.informers.lister import Lister
from kaito.kube.client import KubeClient
from kaito.kube.config import ClusterConfig, in_cluster
from kaito.kube.resources import Kind


class JobSpec(View, frozen=True):
    """What the user wants."""

    text: str


class JobStatus(View, frozen=True):
    """What there is."""

    observed_generation: int = 0
    ready: bool = False


class Job(View, frozen=True):
    """Asks for one ConfigMap of its name that holds its text."""

    metadata: ObjectMeta
    spec: JobSpec
    status: JobStatus = JobStatus()


class Child(View, frozen=True):
    """The ConfigMap of a Job."""

    metadata: ObjectMeta
    data: dict[str, str] = msgspec.field(default_factory=dict)


JOBS = Kind("bench.kaito.sh", "v1", "Job", "jobs", True, msgspec.json.Decoder(Job).decode)
CONFIGMAPS = Kind("", "v1", "ConfigMap", "configmaps", True, msgspec.json.Decoder(Child).decode)


class JobReconciler:
    """Makes what a Job asks for; writes nothing when it is there."""

    def __init__(self, client: KubeClient, jobs: Lister[Job], children: Lister[Child]) -> None:
        self._client = client
        self._jobs = jobs
        self._children = children

    async def reconcile(self, key: Key) -> Result:
        """One look at one Job."""
        job = self._jobs.get(*key)
        if job is not None and not job.metadata.is_deleting:
            await self._ensure_child(job)
            await self._set_status(job)
        return Result()

    async def _ensure_child(self, job: Job) -> None:
        child = self._children.get(*job.metadata.key)
        if child is None:
            await self._client.create(CONFIGMAPS, child_manifest(job))
        elif child.data != {"text": job.spec.text}:
            body = {
                "metadata": {"resourceVersion": child.metadata.resource_version},
                "data": {"text": job.spec.text},
            }
            await self._client.merge_patch(CONFIGMAPS, *child.metadata.key, body)

    async def _set_status(self, job: Job) -> None:
        status = JobStatus(observed_generation=job.metadata.generation, ready=True)
        if job.status != status:
            await self._client.merge_patch(
                JOBS,
                *job.metadata.key,
                {"status": msgspec.to_builtins(status)},
                subresource="status",
            )


def child_manifest(job: Job) -> Mapping[str, Any]:
    """The ConfigMap as the Job wants it, with the Job as its controlling owner."""
    meta = job.metadata
    owner = {
        "apiVersion": JOBS.api_version,
        "kind": JOBS.kind,
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": CONFIGMAPS.api_version,
        "kind": CONFIGMAPS.kind,
        "metadata": {"namespace": meta.namespace, "name": meta.name, "ownerReferences": [owner]},
        "data": {"text": job.spec.text},
    }


async def operate(config: ClusterConfig) -> None:
    """Run the controller until SIGTERM; without probes and metrics, as its peers are."""
    async with assembled(config, name="bench", health_address="0", metrics_address="0") as process:
        jobs = process.informers.informer(JOBS)
        children = process.informers.informer(CONFIGMAPS)
        reconciler = JobReconciler(process.client, jobs.lister, children.lister)
        controller = process.controller("job", reconciler.reconcile)
        controller.watch(jobs, own_key)
        controller.watch(children, owner_keys(JOBS.group, JOBS.kind))
        await process.run()


def main(folder: str, host: str, port: str) -> None:
    """Run it on uvloop."""
    logs.configure(level="info", form="json")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(operate(in_cluster(folder=Path(folder), host=host, port=port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
