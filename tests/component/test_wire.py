"""The wire against a real API server: credentials, certificates, compression, many watches."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import yaml

from kaito.api.meta import Owned
from kaito.api.views import decode_owned
from kaito.clock import SystemClock
from kaito.errors import ApplyConflict, InvalidRequest, Unauthorized
from kaito.kube import requests
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import from_kubeconfig
from kaito.kube.requests import Request
from kaito.kube.resources import Kind
from kaito.kube.transport import Transport
from tests.unit.kube.server import until

if TYPE_CHECKING:
    from pathlib import Path

    from kaito.sandbox.controlplane import ControlPlane

pytestmark = pytest.mark.controlplane

CONFIGMAPS: Kind[Owned] = Kind("", "v1", "ConfigMap", "configmaps", True, decode_owned)
SECRETS: Kind[Owned] = Kind("", "v1", "Secret", "secrets", True, decode_owned)
NAMESPACES: Kind[Owned] = Kind("", "v1", "Namespace", "namespaces", False, decode_owned)
CREDENTIAL = "client.authentication.k8s.io/v1"


def configmap(namespace: str, name: str = "a", **fields: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {"x": "1"},
    } | fields


@pytest.fixture
async def namespace(real_kube: KubeClient) -> AsyncIterator[str]:
    name = f"wire-{uuid.uuid4().hex[:8]}"
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await real_kube.create(NAMESPACES, manifest)
    yield name
    await real_kube.delete(NAMESPACES, "", name)


def kubeconfig(folder: Path, plane: ControlPlane, user: dict[str, Any], **cluster: Any) -> Path:
    """The control plane's own, with another user."""
    content = yaml.safe_load(plane.kubeconfig.read_text())
    content["users"][0]["user"] = user
    content["clusters"][0]["cluster"].update(cluster)
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    return path


def admin(plane: ControlPlane) -> dict[str, str]:
    """Certificate and key of the administrator, as text."""
    user = yaml.safe_load(plane.kubeconfig.read_text())["users"][0]["user"]
    return {name: base64.b64decode(data).decode() for name, data in user.items()}


def program(folder: Path, status: dict[str, str]) -> dict[str, Any]:
    """A user whose credential a program prints."""
    body = {"apiVersion": CREDENTIAL, "kind": "ExecCredential", "status": status}
    (folder / "credential.json").write_text(json.dumps(body))
    path = folder / "get-credential"
    path.write_text(f"#!{sys.executable}\nprint(open({str(folder / 'credential.json')!r}).read())")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": CREDENTIAL, "command": str(path), "interactiveMode": "Never"}}


async def test_a_plugins_certificate_opens_the_door(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """W21: as a plugin of a managed cluster does."""
    pair = admin(control_plane)
    user = program(
        tmp_path,
        {
            "clientCertificateData": pair["client-certificate-data"],
            "clientKeyData": pair["client-key-data"],
        },
    )
    config = await from_kubeconfig(kubeconfig(tmp_path, control_plane, user))
    client = await connect(config, clock=SystemClock(), component="tests")
    assert await client.get(NAMESPACES, "", "default") is not None
    await client.close()


async def test_a_plugins_new_token_is_used_after_a_401(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """W20, W21"""
    user = program(tmp_path, {"token": "revoked"})
    config = await from_kubeconfig(kubeconfig(tmp_path, control_plane, user))
    client = await connect(config, clock=SystemClock(), component="tests")
    with pytest.raises(Unauthorized):
        await client.server_version()
    folder = await asyncio.to_thread(control_plane.service_account_folder, "default", "default")
    token = await asyncio.to_thread((folder / "token").read_text)
    program(tmp_path, {"token": token})
    assert await client.server_version() >= (1, 34)
    await client.close()


async def test_a_kubeconfigs_token_file_opens_the_door_by_another_name(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """W19, W23: tokenFile relative to the file, tls-server-name, a CA of its own."""
    folder = await asyncio.to_thread(control_plane.service_account_folder, "default", "default")
    (tmp_path / "token").write_text((folder / "token").read_text() + "\n")
    path = kubeconfig(
        *(tmp_path, control_plane, {"tokenFile": "token"}),
        **{"tls-server-name": "kubernetes.default.svc"},
    )
    config = await from_kubeconfig(path)
    client = await connect(config, clock=SystemClock(), component="tests")
    assert await client.server_version() >= (1, 34)
    await client.close()


async def test_two_hundred_watches_delay_no_call(real_kube: KubeClient, namespace: str) -> None:
    """W1, P13: they share neither its places nor, when closed, leave a socket."""
    before = len(os.listdir("/proc/self/fd"))
    query = {"resourceVersion": "0"}
    async with AsyncExitStack() as stack:
        for _ in range(200):
            watch = real_kube.watch(CONFIGMAPS, namespace=namespace, query=query, idle_seconds=60.0)
            await stack.enter_async_context(watch)
        async with asyncio.timeout(10):
            await real_kube.create(CONFIGMAPS, configmap(namespace))
        assert len(os.listdir("/proc/self/fd")) >= before + 200
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 5)


async def test_a_long_list_comes_packed_and_whole(
    control_plane: ControlPlane, real_kube: KubeClient, namespace: str
) -> None:
    """W17: the server packs what is over 128 KiB when asked, and the bodies are the same."""
    for number in range(3):
        data = {"x": "0123456789" * 10_000}
        await real_kube.create(CONFIGMAPS, configmap(namespace, f"big{number}", data=data))
    config = await from_kubeconfig(control_plane.kubeconfig)
    replies = []
    for encoding in ("identity", "gzip"):
        transport = Transport(config, clock=SystemClock(), component="tests")
        assert transport._encoding == "identity"  # it is on loopback
        transport._encoding = encoding
        path = requests.collection_path(CONFIGMAPS, namespace)
        replies.append(await transport.request(Request("GET", path)))
        await transport.close()
    plain, packed = replies
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.body == plain.body


async def test_listed_objects_of_a_built_in_kind_say_what_they_are(
    real_kube: KubeClient, namespace: str
) -> None:
    """W25"""
    await real_kube.create(CONFIGMAPS, configmap(namespace))
    raw = await real_kube.list_page(CONFIGMAPS, namespace=namespace, query={})
    assert b'"kind"' not in raw.items[0].partition(b'"managedFields"')[0]
    found = await real_kube.list(CONFIGMAPS, namespace=namespace)
    assert {(obj.body["kind"], obj.body["apiVersion"]) for obj in found} == {("ConfigMap", "v1")}


async def test_an_invalid_object_names_its_faults(real_kube: KubeClient, namespace: str) -> None:
    """W13"""
    faulty = configmap(namespace, data={"not a key!": "x", "nor/this": "y"})
    with pytest.raises(InvalidRequest) as caught:
        await real_kube.create(CONFIGMAPS, faulty)
    assert {cause.field for cause in caught.value.causes} == {"data[not a key!]", "data[nor/this]"}
    assert "data[nor/this]" in str(caught.value)


async def test_nothing_of_a_secret_appears_anywhere(real_kube: KubeClient, namespace: str) -> None:
    """W27: neither its values nor what the server says of them."""
    secret: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s", "namespace": namespace},
        "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": "hunter2", "tls.key": "hunter2", "not a key!": "hunter2"},
    }
    with structlog.testing.capture_logs() as logs:
        with pytest.raises(InvalidRequest) as caught:
            await real_kube.create(SECRETS, secret)
        del secret["stringData"]["not a key!"]
        await real_kube.create(SECRETS, secret)
        values = {"tls.crt": base64.b64encode(b"hunter3").decode(), "tls.key": "aHVudGVy"}
        applied = {name: secret[name] for name in secret if name != "stringData"} | {"data": values}
        with pytest.raises(ApplyConflict) as conflict:
            await real_kube.apply(SECRETS, applied, field_manager="other", force=False)
    said = f"{caught.value} {caught.value.causes} {conflict.value} {conflict.value.causes} {logs}"
    assert "hunter" not in said
    assert "aHVudGVy" not in said
