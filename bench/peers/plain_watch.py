"""The job of the side-by-side bench as a plain loop over kubernetes_asyncio's watch.

What one writes without a framework: no cache, no queue, one object at a time; each look asks the
server for the child. ``python -m bench.peers.plain_watch KUBECONFIG`` runs it until SIGTERM.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from kubernetes_asyncio import client, config, watch
from kubernetes_asyncio.client.exceptions import ApiException

GROUP, VERSION, PLURAL = "bench.kaito.sh", "v1", "jobs"
MERGE_PATCH = "application/merge-patch+json"


async def operate(kubeconfig: str) -> None:
    """List, then watch; again from the start when the watch ends."""
    await config.load_kube_config(config_file=kubeconfig)
    async with client.ApiClient() as api:
        jobs, core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        while True:
            listed = await jobs.list_cluster_custom_object(GROUP, VERSION, PLURAL)
            for job in listed["items"]:
                await reconcile(jobs, core, job)
            async with watch.Watch().stream(
                jobs.list_cluster_custom_object,
                GROUP,
                VERSION,
                PLURAL,
                resource_version=listed["metadata"]["resourceVersion"],
            ) as events:
                async for event in events:
                    if event["type"] in ("ADDED", "MODIFIED"):
                        await reconcile(jobs, core, event["object"])


async def reconcile(
    jobs: client.CustomObjectsApi, core: client.CoreV1Api, job: dict[str, Any]
) -> None:
    """Make what one Job asks for."""
    meta, data = job["metadata"], {"text": job["spec"]["text"]}
    namespace, name = meta["namespace"], meta["name"]
    try:
        child = await core.read_namespaced_config_map(name, namespace)
        if child.data != data:
            await core.patch_namespaced_config_map(name, namespace, {"data": data})
    except ApiException as err:
        if err.status != 404:
            raise
        await core.create_namespaced_config_map(namespace, child_of(job, data))
    status = {"observedGeneration": meta["generation"], "ready": True}
    if job.get("status") != status:
        await jobs.patch_namespaced_custom_object_status(
            GROUP,
            VERSION,
            namespace,
            PLURAL,
            name,
            {"status": status},
            _content_type=MERGE_PATCH,  # type: ignore[call-arg]  # the stubs lack it
        )


def child_of(job: dict[str, Any], data: dict[str, str]) -> client.V1ConfigMap:
    """The ConfigMap with the Job as its controlling owner."""
    meta = job["metadata"]
    owner = client.V1OwnerReference(
        api_version=job["apiVersion"],
        kind=job["kind"],
        name=meta["name"],
        uid=meta["uid"],
        controller=True,
        block_owner_deletion=True,
    )
    return client.V1ConfigMap(
        metadata=client.V1ObjectMeta(name=meta["name"], owner_references=[owner]), data=data
    )


if __name__ == "__main__":
    asyncio.run(operate(sys.argv[1]))
