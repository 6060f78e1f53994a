"""Replicas that are paused, killed and signalled while they write, against a real API server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kaito.app import EXIT_FAILED
from kaito.clock import SystemClock, parse_rfc3339
from kaito.controller.candidacy import LEASES, holder_of, record_of
from kaito.errors import AlreadyExists, ApiError, Conflict
from kaito.kube.client import KubeClient
from kaito.sandbox.controlplane import ControlPlane
from kaito.sandbox.crds import crd_folder, install_crds
from tests.component.replica import CONFIG_MAPS
from tests.component.test_events import CORE_EVENTS

pytestmark = pytest.mark.controlplane

SHORT = ("--lease-seconds=4", "--renew=2", "--retry=0.5")
PATIENCE = 60.0


class Replica:
    """The child process and what it said."""

    def __init__(self, process: asyncio.subprocess.Process, temp: Path) -> None:
        self.process = process
        self.temp = temp
        self.said: list[dict[str, Any]] = []
        self.stderr = b""

    async def until(self, event: str) -> dict[str, Any]:
        """The first line of this kind."""
        assert self.process.stdout is not None
        for seen in self.said:
            if seen["event"] == event:
                return seen
        async with asyncio.timeout(PATIENCE):
            while line := await self.process.stdout.readline():
                self.said.append(json.loads(line))
                if self.said[-1]["event"] == event:
                    return self.said[-1]
        raise AssertionError(f"ended without {event!r}: {self.said} {await self.errors()}")

    async def errors(self) -> str:
        assert self.process.stderr is not None
        self.stderr += await self.process.stderr.read()
        return self.stderr.decode()

    async def code(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


@asynccontextmanager
async def replica(
    plane: ControlPlane, lease: str, identity: str, *flags: str, **env: str
) -> AsyncIterator[Replica]:
    with tempfile.TemporaryDirectory(prefix="kaito-replica-") as temp:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.component.replica"),
            *(f"--kubeconfig={plane.kubeconfig}", f"--lease={lease}", f"--identity={identity}"),
            *flags,
            env={**os.environ, "TMPDIR": temp, **env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield Replica(process, Path(temp))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def make_work(kube: KubeClient, lease: str) -> None:
    metadata = {"namespace": "default", "name": lease, "labels": {"lease": lease}}
    head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    await kube.create(CONFIG_MAPS, {**head, "data": {"count": "0", "by": ""}})


async def work(kube: KubeClient, lease: str) -> tuple[int, str]:
    found = await kube.get(CONFIG_MAPS, "default", lease)
    assert found is not None
    return int(found.body["data"]["count"]), found.body["data"]["by"]


async def written_by(kube: KubeClient, lease: str, identity: str, writer: Replica) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await work(kube, lease))[1] != identity:
            assert writer.process.returncode is None, await writer.errors()
            await asyncio.sleep(0.02)


async def holder(kube: KubeClient, lease: str) -> str:
    found = await kube.get(LEASES, "default", lease)
    return "" if found is None else holder_of(found)


async def _stopped_and_resumed(
    plane: ControlPlane, kube: KubeClient, lease: str, flags: tuple[str, ...], pause: float
) -> None:
    await make_work(kube, lease)
    async with replica(plane, lease, "first", *flags) as first:
        await first.until("leading")
        await written_by(kube, lease, "first", first)
        async with replica(plane, lease, "second", *flags) as second:
            await second.until("standby")
            first.process.send_signal(signal.SIGSTOP)
            stopped = SystemClock().monotonic()
            await second.until("leading")
            await written_by(kube, lease, "second", second)
            await asyncio.sleep(max(0.0, stopped + pause - SystemClock().monotonic()))
            first.process.send_signal(signal.SIGCONT)
            assert await first.code() == 1
            lost = await first.until("lost")
            assert "leadership lost" in lost["cause"]
            assert (await work(kube, lease))[1] == "second"
            assert (await holder(kube, lease)).startswith("second_")


async def test_a_leader_that_stood_still_writes_nothing_and_ends(
    control_plane: ControlPlane, real_kube: KubeClient
) -> None:
    """E14, E16, E17, E22: SIGSTOP for longer than the lease, then SIGCONT; exit code 1."""
    await _stopped_and_resumed(control_plane, real_kube, "paused", SHORT, 6)


@pytest.mark.long
async def test_a_leader_that_stood_still_for_thirty_seconds(
    control_plane: ControlPlane, real_kube: KubeClient
) -> None:
    """E17, E22: default times."""
    await _stopped_and_resumed(control_plane, real_kube, "paused-long", (), 30)


async def test_the_operator_ends_with_1_when_another_takes_its_lease(
    control_plane: ControlPlane, real_kube: KubeClient
) -> None:
    """E14, E15, M4: the whole program, by its command line."""
    await install_crds(real_kube, clock=SystemClock(), folder=crd_folder())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kaito", "operator", "--controllers=workspace"),
        *(f"--kubeconfig={control_plane.kubeconfig}", "--leader-election-namespace=default"),
        *("--metrics-bind-address=0", "--health-probe-bind-address=0", "--log-format=json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while b"became leader" not in (line := await process.stdout.readline()):
                assert line, "ended before it led"
            await _take_over(real_kube, "kaito-workspace")
            said = (await process.stdout.read()).decode()
            assert await process.wait() == EXIT_FAILED
        assert "the Lease is held by rival" in said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _take_over(kube: KubeClient, lease: str) -> None:
    while True:
        held = await kube.get(LEASES, "default", lease)
        assert held is not None
        with suppress(Conflict):  # it was renewed meanwhile
            spec = {**record_of(held), "holderIdentity": "rival"}
            await kube.replace(LEASES, {**held.body, "spec": spec})
            return


async def test_a_killed_leader_is_followed_and_a_stopped_one_at_once(
    control_plane: ControlPlane, real_kube: KubeClient
) -> None:
    """E7, E19, M6: SIGKILL leaves the Lease to run out; SIGTERM gives it up."""
    await make_work(real_kube, "killed")
    async with replica(control_plane, "killed", "first", *SHORT) as first:
        await first.until("leading")
        async with replica(control_plane, "killed", "second", *SHORT) as second:
            await second.until("standby")
            first.process.kill()
            await second.until("leading")
            await written_by(real_kube, "killed", "second", second)
            # Tries each 8 s at the earliest: what comes sooner came by the watch.
            async with replica(control_plane, "killed", "third", "--retry=8") as third:
                await third.until("leader")
                second.process.terminate()
                assert await second.code() == 0
                released = (await second.until("ended"))["at"]
                took_over = (await third.until("leading"))["at"]
                assert took_over - released < 4
                assert (await holder(real_kube, "killed")).startswith("third_")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_under_load_ends_it_in_order_and_clean(
    control_plane: ControlPlane, real_kube: KubeClient, signum: signal.Signals
) -> None:
    """M6, M7, P14, P17, V9: in debug mode; no complaint, nothing is left, the Lease is free."""
    lease = f"load-{signum.name.lower()}"
    await make_work(real_kube, lease)
    async with replica(
        *(control_plane, lease, "one", *SHORT),
        PYTHONASYNCIODEBUG="1",
        PYTHONDEVMODE="1",
        PYTHONWARNINGS="default",
    ) as one:
        await written_by(real_kube, lease, "one", one)
        one.process.send_signal(signum)
        assert await one.code() == 0
        ended = await one.until("ended")
        assert {k: ended[k] for k in ("tasks", "threads", "sockets")} == {
            "tasks": 0,
            "threads": ["MainThread"],
            "sockets": 2,  # of its loop: how signals and threads wake it
        }
        complaints = await one.until("complaints")
        assert complaints["found"] == [], await one.errors()
        assert list(one.temp.iterdir()) == []
    assert await holder(real_kube, lease) == ""
    events = await real_kube.list(CORE_EVENTS, namespace="default")
    assert any(e.body["involvedObject"]["name"] == lease for e in events)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
async def test_the_second_signal_ends_it_at_once(
    control_plane: ControlPlane, second: signal.Signals
) -> None:
    """M6: while the first is still being obeyed."""
    async with replica(control_plane, "impatient", "one", *SHORT, "--linger=50") as one:
        await one.until("standby")
        one.process.send_signal(signal.SIGINT)
        await one.until("stopping")
        one.process.send_signal(second)
        assert await one.code() == -second


@pytest.mark.parametrize("hours", [-1, 1])
async def test_neither_zone_nor_wall_clock_of_the_host_count(
    control_plane: ControlPlane, real_kube: KubeClient, hours: int
) -> None:
    """E5, P10, P11: an hour off and in New York, against a rival whose clock is right."""
    lease = f"zone{hours}"
    await make_work(real_kube, lease)
    async with replica(control_plane, lease, "right", *SHORT) as right:
        await right.until("leading")
        async with replica(
            *(control_plane, lease, "off", *SHORT, f"--wall={hours * 3600}"), TZ="America/New_York"
        ) as off:
            await off.until("standby")
            await asyncio.sleep(2)
            assert (await holder(real_kube, lease)).startswith("right_"), "nothing fired early"
            right.process.kill()
            await off.until("leading")
            await written_by(real_kube, lease, "off", off)
            found = await real_kube.get(LEASES, "default", lease)
            assert found is not None
            for field in ("acquireTime", "renewTime"):
                written = parse_rfc3339(record_of(found)[field])
                assert abs(written - SystemClock().now()) < 60
            events = await real_kube.list(CORE_EVENTS, namespace="default")
            mine = [e.body for e in events if e.body["involvedObject"]["name"] == lease]
            assert all(abs(parse_rfc3339(e["eventTime"]) - SystemClock().now()) < 60 for e in mine)


async def test_a_write_that_comes_late_changes_nothing_wrong(real_kube: KubeClient) -> None:
    """E18: apply with a uid, a write with a resourceVersion, a name that is what it must be."""
    await make_work(real_kube, "late")
    seen = await real_kube.get(CONFIG_MAPS, "default", "late")
    assert seen is not None
    uid, version = seen.metadata.uid, seen.metadata.resource_version
    head = {"apiVersion": "v1", "kind": "ConfigMap"}
    named = {"namespace": "default", "name": "late"}

    async def late_writes() -> list[type[ApiError]]:
        outcomes: list[type[ApiError]] = []
        for write in (
            real_kube.merge_patch(
                CONFIG_MAPS, *named.values(), {"metadata": {"resourceVersion": version}, "data": {}}
            ),
            real_kube.apply(
                CONFIG_MAPS, {**head, "metadata": named}, field_manager="kaito", uid=uid
            ),
            real_kube.delete(CONFIG_MAPS, *named.values(), uid=uid),
            real_kube.create(CONFIG_MAPS, {**head, "metadata": named, "data": {"by": "late"}}),
        ):
            try:
                await write
            except ApiError as err:
                outcomes.append(type(err))
        return outcomes

    # The successor replaced it: same name, another object.
    await real_kube.delete(CONFIG_MAPS, *named.values())
    successor = {**head, "metadata": named, "data": {"by": "successor"}}
    made = await real_kube.create(CONFIG_MAPS, successor)
    assert await late_writes() == [Conflict, Conflict, Conflict, AlreadyExists]
    after = await real_kube.get(CONFIG_MAPS, *named.values())
    assert after is not None
    assert after.metadata.resource_version == made.metadata.resource_version
