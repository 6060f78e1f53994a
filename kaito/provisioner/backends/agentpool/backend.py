"""``NodeBackend`` on AKS agent pools: one claim, one pool of its name, one VM."""

from __future__ import annotations

from kaito.errors import After, CloudError
from kaito.provisioner.backends.agentpool import errors, pools
from kaito.provisioner.backends.agentpool.client import ArmClient, PoolExists
from kaito.provisioner.backends.agentpool.request import agent_pool, check_name
from kaito.provisioner.interface import ClusterInfo, Instance, InstanceState, LaunchRequest, Word


class AgentPoolBackend:
    """The port's contract is in ``interface.NodeBackend``; here is what AKS needs beyond it."""

    def __init__(self, client: ArmClient) -> None:
        self._client = client
        self._location = ""

    async def launch(self, request: LaunchRequest) -> None:
        """PUT with ``If-None-Match: *``; a pool that is there already is judged by its owner."""
        body = agent_pool(request)
        subject = errors.Subject(request.name, request.instance_type, self._location)
        try:
            await self._client.put(request.name, body, subject)
        except PoolExists:
            await self._adopt(request)
        except CloudError as err:
            raise await self._with_cluster_state(err) from err

    async def terminate(self, name: str) -> Word:
        """DELETE by name."""
        check_name(name)
        try:
            return Word.GOING if await self._client.delete(name) else Word.ABSENT
        except CloudError as err:
            raise await self._with_cluster_state(err) from err

    async def abort(self, name: str) -> None:
        """POST abort. 409 is AKS's word for "nothing to abort" (facts P5.12)."""
        check_name(name)
        try:
            await self._client.abort(name)
        except CloudError as err:
            if err.reason != errors.IN_PROGRESS.reason:
                raise

    async def get(self, name: str) -> Instance | None:
        """GET by name."""
        check_name(name)
        pool = await self._client.get(name)
        return None if pool is None else pools.instance(pool, location=self._location)

    async def list(self) -> tuple[Instance, ...]:
        """Every page of LIST."""
        found = await self._client.list()
        return tuple(pools.instance(pool, location=self._location) for pool in found)

    async def cluster(self) -> ClusterInfo:
        """GET of the managed cluster."""
        cluster = await self._client.cluster()
        properties = cluster.get("properties") or {}
        power = str((properties.get("powerState") or {}).get("code") or "Running")
        state = str(properties.get("provisioningState") or "Succeeded")
        self._location = str(cluster.get("location") or "")
        return ClusterInfo(
            location=self._location,
            node_resource_group=str(properties.get("nodeResourceGroup") or ""),
            is_settled=power == "Running" and state in ("Succeeded", "Failed", "Canceled"),
            state=power if power != "Running" else state,
        )

    async def close(self) -> None:
        """Close the SDK's client."""
        await self._client.close()

    async def _adopt(self, request: LaunchRequest) -> None:
        """A pool has our name: success if it is this claim's (facts P2.4), else why not."""
        pool = await self.get(request.name)
        if pool is not None and not pool.is_ours:
            raise CloudError(
                f"create agent pool {request.name}: a pool of that name exists that is not ours",
                reason=errors.NAME_TAKEN.reason,
                retry=After(errors.NAME_TAKEN.waits[0]),
                remedy=errors.NAME_TAKEN.remedy.format(name=request.name),
                waits=errors.NAME_TAKEN.waits,
            )
        if (
            pool is None
            or pool.state is InstanceState.DELETING
            or pool.claim_uid not in (None, request.claim_uid)
        ):
            raise CloudError(
                f"create agent pool {request.name}: an earlier pool of that name is not gone yet",
                reason=errors.IN_PROGRESS.reason,
                retry=After(errors.IN_PROGRESS.waits[0]),
                remedy="Waits until it is gone",
                waits=errors.IN_PROGRESS.waits,
            )

    async def _with_cluster_state(self, err: CloudError) -> CloudError:
        """An operation "not allowed" may be the whole cluster's state: one look tells (P5.14)."""
        if err.reason != errors.IN_PROGRESS.reason:
            return err
        try:
            info = await self.cluster()
        except CloudError:
            return err
        if info.is_settled:
            return err
        row = errors.CLUSTER_STOPPED if info.state == "Stopped" else errors.CLUSTER_BUSY
        return CloudError(
            f"{err} (the cluster is {info.state})",
            reason=row.reason,
            retry=After(row.waits[0]),
            remedy=row.remedy,
            code=err.code,
            waits=row.waits,
        )
