"""Bring your own nodes: nothing is ever launched, and the claim says so."""

from __future__ import annotations

from kaito.errors import CloudError, Never
from kaito.provisioner.interface import ClusterInfo, Instance, LaunchRequest


class ByoBackend:
    """A cloud without machines. Whoever runs the cluster labels Nodes to match the Workspace."""

    async def launch(self, request: LaunchRequest) -> None:
        """Refuse for good.

        Raises:
            CloudError: always.
        """
        raise CloudError(
            f"no machine is made for claim {request.name}: the operator runs with "
            "--provisioner byo",
            reason="BringYourOwnNodes",
            retry=Never(),
            remedy="Add a Node that matches the Workspace's labelSelector and instanceType",
            terminal=True,
        )

    async def terminate(self, name: str) -> None:
        """Nothing was launched: done."""

    async def abort(self, name: str) -> None:
        """Nothing is running: done."""

    async def get(self, name: str) -> Instance | None:  # noqa: ARG002 - the port's shape
        """There is never an instance."""
        return None

    async def list(self) -> tuple[Instance, ...]:
        """There are no instances: complete by definition."""
        return ()

    async def cluster(self) -> ClusterInfo:
        """A cluster we know nothing of, and need not."""
        return ClusterInfo("", "", is_settled=True, state="Running")

    async def close(self) -> None:
        """Nothing is open."""
