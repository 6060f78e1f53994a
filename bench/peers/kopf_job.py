"""The job of the side-by-side bench, written with kopf.

Run by ``kopf run --standalone --all-namespaces``, with the kubeconfig in ``KUBECONFIG``. kopf has
no client for other objects: the child is written with kubernetes_asyncio, one client for all.
"""

from __future__ import annotations

from typing import Any

import kopf
from kubernetes_asyncio import client, config
from kubernetes_asyncio.client.exceptions import ApiException

GROUP, VERSION, PLURAL = "bench.kaito.sh", "v1", "jobs"


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, memo: Any, **_: Any) -> None:
    """No Events to the cluster: nobody else here writes them. One client for the children."""
    settings.posting.enabled = False
    await config.load_kube_config()
    memo.core = client.CoreV1Api(client.ApiClient())


@kopf.on.cleanup()
async def stop(memo: Any, **_: Any) -> None:
    """Close the client."""
    await memo.core.api_client.close()


@kopf.on.create(GROUP, VERSION, PLURAL)
async def create(
    spec: kopf.Spec, memo: Any, namespace: str | None, name: str, **kwargs: Any
) -> None:
    """A new Job has no child, so none is looked for."""
    try:
        await memo.core.create_namespaced_config_map(namespace, child_of(spec, name))
    except ApiException as err:
        if err.status != 409:
            raise
    report(**kwargs)


@kopf.on.resume(GROUP, VERSION, PLURAL)
@kopf.on.update(GROUP, VERSION, PLURAL)
async def ensure(
    spec: kopf.Spec, memo: Any, namespace: str | None, name: str, **kwargs: Any
) -> None:
    """Make what a Job asks for, where it is not there."""
    child = child_of(spec, name)
    try:
        live = await memo.core.read_namespaced_config_map(name, namespace)
        if live.data != child["data"]:
            await memo.core.patch_namespaced_config_map(name, namespace, {"data": child["data"]})
    except ApiException as err:
        if err.status != 404:
            raise
        await memo.core.create_namespaced_config_map(namespace, child)
    report(**kwargs)


def child_of(spec: kopf.Spec, name: str) -> dict[str, Any]:
    """The ConfigMap; its owner is the Job that is being handled."""
    child: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"text": spec["text"]},
    }
    kopf.adopt(child)
    return child


def report(meta: kopf.Meta, status: kopf.Status, patch: kopf.Patch, **_: Any) -> None:
    """The status goes with kopf's own patch of the object."""
    wanted = {"observedGeneration": meta["generation"], "ready": True}
    if {key: status.get(key) for key in wanted} != wanted:
        patch.status.update(wanted)
