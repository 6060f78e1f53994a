"""Where the simulated cluster is: the names in its paths, and the settings of its service."""

from __future__ import annotations

import uuid
import zlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Site:
    """Names of the one managed cluster that there is. Spelled as real answers spell them."""

    subscription_id: str = "5a0d0000-0000-4000-8000-000000000001"
    resource_group: str = "sandbox"
    cluster: str = "kaito"
    location: str = "eastus"
    kubernetes_version: str = "1.34.1"

    @property
    def node_resource_group(self) -> str:
        """The group that AKS makes for the cluster's machines."""
        return f"MC_{self.resource_group}_{self.cluster}_{self.location}"

    @property
    def cluster_id(self) -> str:
        """Resource id of the cluster; ids say ``resourcegroups`` (P5.5)."""
        return (
            f"/subscriptions/{self.subscription_id}/resourcegroups/{self.resource_group}"
            f"/providers/Microsoft.ContainerService/managedClusters/{self.cluster}"
        )

    @property
    def operations_path(self) -> str:
        """Path under which operations are found."""
        return (
            f"/subscriptions/{self.subscription_id}/providers/Microsoft.ContainerService"
            f"/locations/{self.location}"
        )

    @property
    def vmss_digits(self) -> str:
        """The eight digits in the names of the cluster's scale sets (P4.9)."""
        return f"{zlib.crc32(self.cluster_id.encode()) % 10**8:08d}"


@dataclass(frozen=True, slots=True)
class Service:
    """How the service behaves where the facts leave it open, or where it is strict on request.

    ``parallel_puts``: several pools may be created at once (P5.15). ``delete_preempts``: DELETE
    of a busy pool is accepted, else 409 (P5.12). ``preconditions_since``: first api-version that
    obeys If-Match and If-None-Match (P5.13). ``throttling``: the token buckets of P9.5 and P9.6.
    ``require_authorization``: 401 without a bearer token (P5.4).
    """

    parallel_puts: bool = True
    delete_preempts: bool = True
    preconditions_since: str = "2024-09-01"
    throttling: bool = False
    require_authorization: bool = False


def guid(text: str) -> str:
    """A UUID that follows from the text: the same story gives the same ids."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, text))
