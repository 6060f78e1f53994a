"""Bring your own nodes: nothing is ever launched, and the claim says so."""

from __future__ import annotations

from typing import Final

from kaito.errors import After, CloudError
from kaito.provisioner.interface import ClusterInfo, Instance, LaunchRequest, Word

_WAITS: Final = (60.0, 120.0, 300.0, 600.0)
"""Seconds. Tried again, as the gate on the claim outlives a restart with another provisioner."""


class ByoBackend:
    """A cloud without machines."""

    async def launch(self, request: LaunchRequest) -> None:
        """Refuse, for as long as the operator runs like this.

        Raises:
            CloudError: always.
        """
        raise CloudError(
            f"no machine is made for claim {request.name}: the operator runs with "
            "--provisioner byo",
            reason="BringYourOwnNodes",
            retry=After(_WAITS[0]),
            remedy="Run the operator with --provisioner agentpool",
            waits=_WAITS,
        )

    async def terminate(self, name: str) -> Word:  # noqa: ARG002 - the port's shape
        """Nothing was ever launched."""
        return Word.ABSENT

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
