"""Which cluster to call, and with which credential. azure-identity is imported only when needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

_AUTHORITIES: Final = {
    "management.usgovcloudapi.net": "login.microsoftonline.us",
    "management.chinacloudapi.cn": "login.chinacloudapi.cn",
}
_PUBLIC_AUTHORITY: Final = "login.microsoftonline.com"
_US_GOVERNMENT_SCOPE: Final = "https://management.core.usgovcloudapi.net/.default"


class ArmTarget(Protocol):
    """The AKS cluster that machines are ordered for (satisfied by ``settings.AzureSettings``)."""

    @property
    def arm_url(self) -> str:
        """Base URL of ARM, no trailing slash; plain http on loopback only."""
        ...

    @property
    def subscription_id(self) -> str:
        """Subscription of the cluster."""
        ...

    @property
    def resource_group(self) -> str:
        """Resource group of the cluster."""
        ...

    @property
    def cluster_name(self) -> str:
        """Name of the managed cluster."""
        ...

    @property
    def tenant_id(self) -> str:
        """Tenant that issues tokens."""
        ...

    @property
    def client_id(self) -> str:
        """Client id of the identity; empty: none named."""
        ...

    @property
    def federated_token_file(self) -> str:
        """Service-account token to exchange; empty: no workload identity."""
        ...

    @property
    def authority_host(self) -> str:
        """Host that issues tokens; empty: the one that belongs to ``arm_url``."""
        ...

    @property
    def is_loopback(self) -> bool:
        """A stand-in for ARM on this computer: no credential is asked for."""
        ...


@dataclass(frozen=True, slots=True)
class NoCredential:
    """Fills the SDK's parameter where no policy asks for a token."""


def credential(target: ArmTarget) -> AsyncTokenCredential:
    """Workload identity when a federated token is there, else managed identity, else az login.

    Makes no request: a wrong credential shows in the first call. Not for loopback.
    """
    # Lazily: azure-identity costs 14 MB, and loopback needs none of it.
    from azure.identity.aio import (
        AzureCliCredential,
        ManagedIdentityCredential,
        WorkloadIdentityCredential,
    )

    if target.federated_token_file:
        return WorkloadIdentityCredential(
            tenant_id=target.tenant_id,
            client_id=target.client_id,
            token_file_path=target.federated_token_file,
            authority=authority(target),
        )
    if target.client_id:
        return ManagedIdentityCredential(client_id=target.client_id)
    return AzureCliCredential(tenant_id=target.tenant_id)


def authority(target: ArmTarget) -> str:
    """Host that issues tokens for this ARM."""
    if target.authority_host:
        return target.authority_host
    return _AUTHORITIES.get(_host(target), _PUBLIC_AUTHORITY)


def scope(target: ArmTarget) -> str:
    """Scope of the tokens: the host of ARM, with the US government's exception (facts P8.2)."""
    if _host(target) == "management.usgovcloudapi.net":
        return _US_GOVERNMENT_SCOPE
    return f"{target.arm_url}/.default"


def _host(target: ArmTarget) -> str:
    return urlsplit(target.arm_url).hostname or ""
