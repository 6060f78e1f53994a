"""Which backend there is, with which credential; and the one without machines."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from kaito.clock import SystemClock
from kaito.errors import CloudError, InvalidSettings
from kaito.provisioner import registry
from kaito.provisioner.backends.agentpool import auth
from kaito.provisioner.interface import LaunchRequest


@dataclass(frozen=True)
class Target:
    arm_url: str = "https://management.azure.com"
    subscription_id: str = "s"
    resource_group: str = "rg"
    cluster_name: str = "c"
    tenant_id: str = "tenant"
    client_id: str = ""
    federated_token_file: str = ""
    authority_host: str = ""
    is_loopback: bool = False


def test_the_sdk_is_loaded_only_when_machines_are_ordered():
    """P5.39: 33 MB that the Workspace side does not pay."""
    code = (
        "import sys, kaito.provisioner.registry, kaito.provisioner.inventory;"
        "import kaito.provisioner.backends.agentpool.auth;"
        "sys.exit(any(m.startswith('azure') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_backend_is_named_with_those_there_are():
    with pytest.raises(InvalidSettings, match="agentpool, byo"):
        registry.create("gce", clock=SystemClock())


def test_agent_pools_need_a_cluster():
    with pytest.raises(InvalidSettings, match="settings of an AKS cluster"):
        registry.create("agentpool", clock=SystemClock())


async def test_without_a_cloud_nothing_is_launched_and_the_claim_says_so():
    """W25: a clear reason, not a silent wait."""
    byo = registry.create("byo", clock=SystemClock())
    order = LaunchRequest("a", "u", "Standard_NC6s_v3", 0, {}, (), 0.0, 0.0)
    with pytest.raises(CloudError) as caught:
        await byo.launch(order)
    assert (caught.value.reason, caught.value.terminal) == ("BringYourOwnNodes", False)
    await byo.terminate("a")
    await byo.abort("a")
    assert await byo.list() == ()
    assert await byo.get("a") is None
    assert (await byo.cluster()).is_settled
    await byo.close()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"federated_token_file": "/token", "client_id": "id"}, "WorkloadIdentityCredential"),
        ({"client_id": "id"}, "ManagedIdentityCredential"),
        ({}, "AzureCliCredential"),
    ],
)
async def test_the_credential_follows_from_the_settings(given: dict[str, Any], expected: str):
    """P8.3."""
    made = auth.credential(Target(**given))
    assert type(made).__name__ == expected
    await made.close()


@pytest.mark.parametrize(
    ("given", "authority", "scope"),
    [
        ({}, "login.microsoftonline.com", "https://management.azure.com/.default"),
        (
            {"arm_url": "https://management.usgovcloudapi.net"},
            "login.microsoftonline.us",
            "https://management.core.usgovcloudapi.net/.default",
        ),
        (
            {"arm_url": "https://management.chinacloudapi.cn"},
            "login.chinacloudapi.cn",
            "https://management.chinacloudapi.cn/.default",
        ),
        (
            {"authority_host": "https://login.mine"},
            "https://login.mine",
            "https://management.azure.com/.default",
        ),
    ],
)
def test_each_cloud_has_its_authority_and_scope(given: dict[str, Any], authority: str, scope: str):
    """P8.2, P8.3, W24."""
    assert auth.authority(Target(**given)) == authority
    assert auth.scope(Target(**given)) == scope


async def test_a_credential_that_cannot_answer_is_a_reason_not_a_crash(tmp_path):
    """W25, P6.2."""
    target = Target(
        arm_url="https://127.0.0.1:9",
        client_id="id",
        federated_token_file=str(tmp_path / "missing"),
        authority_host="https://127.0.0.1:9",
    )
    backend = registry.create("agentpool", clock=SystemClock(), arm=target)
    with pytest.raises(CloudError) as caught:
        await backend.cluster()
    assert caught.value.reason == "CredentialMissing"
    assert "missing" in str(caught.value)
    await backend.close()
