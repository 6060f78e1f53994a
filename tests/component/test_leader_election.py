"""Leader election against a real API server: what it accepts, and two replicas on one Lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from kaito.api.meta import Owned
from kaito.clock import SystemClock
from kaito.controller.candidacy import LEASES, Timing, holder_of, record_of
from kaito.controller.leader import Elector
from kaito.errors import LeadershipLost, NotLeader
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import from_kubeconfig
from kaito.sandbox.controlplane import ControlPlane

pytestmark = pytest.mark.controlplane

NAMESPACE = "default"


@asynccontextmanager
async def elector(plane: ControlPlane, lease: str, *, retry: float = 0.1) -> AsyncIterator[Elector]:
    """A replica with short times; released in the end."""

    async def own_client() -> KubeClient:
        config = await from_kubeconfig(plane.kubeconfig)
        return await connect(config, clock=SystemClock(), component="elector")

    replica = Elector(
        connect=own_client,
        namespace=NAMESPACE,
        name=lease,
        identity="replica",
        clock=SystemClock(),
        timing=Timing(lease=4, renew_deadline=1.5, retry=retry),
    )
    with capture_logs():
        replica.start()
        try:
            yield replica
        finally:
            await replica.release()


async def stored(kube: KubeClient, lease: str) -> Owned:
    found = await kube.get(LEASES, NAMESPACE, lease)
    assert found is not None
    return found


async def renewed_after(kube: KubeClient, before: Owned) -> Owned:
    async with asyncio.timeout(20):
        while True:
            now = await stored(kube, before.metadata.name)
            if record_of(now)["renewTime"] != record_of(before)["renewTime"]:
                return now
            await asyncio.sleep(0.02)


async def test_the_record_it_writes_is_accepted_and_released(
    control_plane: ControlPlane, real_kube: KubeClient
) -> None:
    """E3, E8, E12, E19: created, renewed, given up; never deleted."""
    async with elector(control_plane, "one") as replica:
        await replica.acquired()
        first = await stored(real_kube, "one")
        assert holder_of(first) == replica.identity
        assert record_of(first)["leaseDurationSeconds"] == 4
        assert record_of(first)["leaseTransitions"] == 0
        await renewed_after(real_kube, first)
        assert 0 < replica.fence() <= 2
    last = await stored(real_kube, "one")
    assert holder_of(last) == ""
    assert record_of(last)["leaseDurationSeconds"] == 1
    assert last.metadata.uid == first.metadata.uid


async def test_a_standby_takes_over_right_after_a_release(
    control_plane: ControlPlane, real_kube: KubeClient
) -> None:
    """E7: by the watch, long before its own next try; E12: transitions + 1."""
    async with elector(control_plane, "two") as first:
        await first.acquired()
        # Polls each 1.2 s at the earliest: what is faster than that came by the watch.
        async with elector(control_plane, "two", retry=1.2) as second:
            with pytest.raises(NotLeader):
                second.fence()
            released = time.monotonic()
            await first.release()
            await second.acquired()
            assert time.monotonic() - released < 2
            assert record_of(await stored(real_kube, "two"))["leaseTransitions"] == 1


async def test_a_lease_edited_to_another_holder_ends_leadership(
    control_plane: ControlPlane, real_kube: KubeClient
) -> None:
    """E13, E15, E19: fields of others survive our renewals; the rival's record is left alone."""
    async with elector(control_plane, "three") as replica:
        await replica.acquired()
        labels = {"metadata": {"labels": {"team": "x"}}}
        await real_kube.merge_patch(LEASES, NAMESPACE, "three", labels)
        renewed = await renewed_after(real_kube, await stored(real_kube, "three"))
        assert renewed.metadata.labels == {"team": "x"}
        rival = {"spec": {"holderIdentity": "rival", "leaseDurationSeconds": 100}}
        await real_kube.merge_patch(LEASES, NAMESPACE, "three", rival)
        async with asyncio.timeout(20):
            assert isinstance(await replica.lost(), LeadershipLost)
        with pytest.raises(NotLeader):
            replica.fence()
    assert holder_of(await stored(real_kube, "three")) == "rival"


async def test_a_stalled_main_loop_keeps_the_lease(
    control_plane: ControlPlane, real_kube: KubeClient
) -> None:
    """E10: longer than the renew deadline."""
    async with elector(control_plane, "four") as replica:
        await replica.acquired()
        time.sleep(3)  # noqa: ASYNC251 - the stall is the subject
        assert replica.fence() > 0
        assert holder_of(await stored(real_kube, "four")) == replica.identity


async def test_a_deleted_lease_ends_leadership(
    control_plane: ControlPlane, real_kube: KubeClient
) -> None:
    """E15"""
    async with elector(control_plane, "five") as replica:
        await replica.acquired()
        await real_kube.delete(LEASES, NAMESPACE, "five")
        async with asyncio.timeout(20):
            await replica.lost()
        assert not replica.is_leader
    assert await real_kube.get(LEASES, NAMESPACE, "five") is None
