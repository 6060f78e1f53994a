"""E10, E16, E17, E20, E21, E23: the elector's thread and what the main loop sees of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from kaito.clock import SystemClock
from kaito.controller.candidacy import LEASES, Timing
from kaito.controller.leader import Elector
from kaito.errors import InvalidSettings, LeadershipLost, NotLeader
from kaito.kube.client import KubeClient
from tests.fakes.clock import FakeClock
from tests.unit.controller.fakes import FakeApiServer, FakeClient


class Replica:
    """An elector on a fake API server, with real threads and short times."""

    def __init__(
        self,
        server: FakeApiServer,
        clock: Any = None,
        *,
        identity: str = "pod",
        on_new_leader: Callable[[str], object] | None = None,
        **times: float,
    ) -> None:
        self.server = server
        self.client = FakeClient(server)
        self.exits: list[int] = []
        self.leaders: list[str] = []
        self.connected_in: list[str] = []
        self.failure: Exception | None = None
        self.elector = Elector(
            connect=self.connect,
            namespace="kaito",
            name="leader",
            identity=identity,
            clock=clock or SystemClock(),
            exit_process=self.exits.append,
            timing=Timing(**{"lease": 3, "renew_deadline": 0.2, "retry": 0.02, **times}),
            on_new_leader=on_new_leader or self.leaders.append,
        )

    async def connect(self) -> KubeClient:
        self.connected_in.append(threading.current_thread().name)
        if self.failure is not None:
            raise self.failure
        return cast(KubeClient, self.client)

    async def __aenter__(self) -> Elector:
        self.elector.start()
        return self.elector

    async def __aexit__(self, *_: object) -> None:
        with capture_logs():
            await self.elector.release()
        assert not self.elector._threads


@pytest.fixture
def server() -> FakeApiServer:
    return FakeApiServer()


def status() -> float | None:
    return REGISTRY.get_sample_value("leader_election_master_status", {"name": "leader"})


async def in_time(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what happens in another thread sets no event
            await asyncio.sleep(0.005)


async def test_it_leads_from_a_thread_of_its_own_and_releases(server: FakeApiServer) -> None:
    """E10, E19, E23, M7: own client, closed in the end; no thread is left."""
    before = threading.active_count()
    replica = Replica(server)
    assert status() == 0
    async with replica as elector:
        assert not elector.is_leader or elector.fence() > 0
        await elector.acquired()
        assert elector.is_leader
        assert status() == 1
        assert 0 < elector.fence() <= 1
        assert elector.health() is None
        lease = server.objects["leases", "kaito", "leader"]
        assert lease["spec"]["holderIdentity"] == elector.identity
    assert server.objects["leases", "kaito", "leader"]["spec"]["holderIdentity"] == ""
    assert replica.connected_in == ["elector"]
    assert server.closed == 1
    assert status() == 0
    assert threading.active_count() == before
    with pytest.raises(NotLeader):
        elector.fence()


def test_each_process_start_is_another_identity(server: FakeApiServer) -> None:
    """E2: host name + _ + uuid4."""
    one, two = Replica(server).elector.identity, Replica(server).elector.identity
    assert one != two
    assert one.startswith("pod_")
    assert len(one) == len("pod_") + 36


def test_a_replica_without_identity_is_refused(server: FakeApiServer) -> None:
    """E1"""
    with pytest.raises(InvalidSettings, match="identity"):
        Replica(server, identity="")


async def test_a_blocked_main_loop_costs_no_leadership(server: FakeApiServer) -> None:
    """E10: renewals go on while the main loop stands."""
    async with Replica(server) as elector:
        await elector.acquired()
        renewals = server.calls.count("PUT")
        time.sleep(0.5)  # noqa: ASYNC251 - the stall is the subject
        assert server.calls.count("PUT") > renewals + 3
        assert elector.fence() > 0


async def test_lost_leadership_reaches_the_main_loop(server: FakeApiServer) -> None:
    """E14, E15, E20: the error to end with; nothing is written any more."""
    with capture_logs():
        async with Replica(server) as elector:
            await elector.acquired()
            server.put(
                LEASES,
                {
                    "metadata": {"namespace": "kaito", "name": "leader"},
                    "spec": {"holderIdentity": "rival", "leaseDurationSeconds": 15},
                },
            )
            async with asyncio.timeout(5):
                error = await elector.lost()
            assert isinstance(error, LeadershipLost)
            assert "held by rival" in str(error)
            assert status() == 0
            with pytest.raises(NotLeader):
                elector.fence()
    lease = server.objects["leases", "kaito", "leader"]
    assert lease["spec"]["holderIdentity"] == "rival"


async def test_a_candidate_waits_and_stops_without_ever_leading(server: FakeApiServer) -> None:
    """E20: the end is told also when never elected."""
    server.put(
        LEASES,
        {
            "metadata": {"namespace": "kaito", "name": "leader"},
            "spec": {"holderIdentity": "rival", "leaseDurationSeconds": 15},
        },
    )
    replica = Replica(server)
    async with replica as elector:
        await in_time(lambda: "GET" in server.calls)
        before = fenced()
        with pytest.raises(NotLeader):
            elector.fence()
        assert fenced() == before + 1
        assert elector.health() is None
    assert isinstance(await elector.lost(), LeadershipLost)
    assert server.calls.count("PUT") == 0


def fenced() -> float:
    return REGISTRY.get_sample_value("controller_fenced_writes_total") or 0


@pytest.mark.parametrize(
    ("failure", "ending"), [(ValueError, LeadershipLost), (InvalidSettings, InvalidSettings)]
)
async def test_a_failing_election_is_told(
    server: FakeApiServer, failure: type[Exception], ending: type[Exception]
) -> None:
    """P4, M13: the elector's end is never silent, and an error of the tree stays what it is."""
    replica = Replica(server)
    replica.failure = failure("no such certificate")
    with capture_logs():
        async with replica as elector:
            error = await elector.lost()
    assert type(error) is ending
    assert "no such certificate" in str(error)


async def test_release_while_connecting_does_not_wait(server: FakeApiServer) -> None:
    """M5, style 23: a credential that is never read must not hold up the stop."""
    connecting = threading.Event()

    async def hang() -> KubeClient:
        connecting.set()
        await asyncio.Event().wait()
        raise AssertionError

    replica = Replica(server)
    replica.elector.connect = hang
    replica.elector.start()
    await in_time(connecting.is_set)
    with capture_logs() as logs:
        async with asyncio.timeout(5):
            await replica.elector.release()
    assert [entry["log_level"] for entry in logs] == ["debug"]
    assert not replica.elector._threads
    assert isinstance(await replica.elector.lost(), LeadershipLost)


async def test_release_leaves_behind_what_does_not_end(server: FakeApiServer) -> None:
    """M5, style 23: 5 s after the renew deadline."""
    clock, closing, let_go = FakeClock(), threading.Event(), threading.Event()

    async def hang() -> None:
        closing.set()
        await asyncio.get_running_loop().run_in_executor(None, let_go.wait)

    replica = Replica(server, clock, lease=15, renew_deadline=10, retry=2)
    replica.client.close = hang  # type: ignore[method-assign]
    replica.elector.start()
    threads = tuple(replica.elector._threads)
    with capture_logs() as logs:
        await replica.elector.acquired()
        async with asyncio.TaskGroup() as group:
            release = group.create_task(replica.elector.release())
            await in_time(closing.is_set)
            await clock.advance(14.9)
            assert not release.done()
            await clock.advance(0.2)
            assert release.done()
    let_go.set()
    for thread in threads:
        thread.join()
    assert "election does not end: left behind" in [entry["event"] for entry in logs]


async def test_release_before_start_is_nothing(server: FakeApiServer) -> None:
    """M6: a manager stopped early releases all the same."""
    await Replica(server).elector.release()
    assert server.calls == []


async def test_health_fails_when_the_leader_has_long_not_renewed(server: FakeApiServer) -> None:
    """E21: lease + 20 s."""
    clock = FakeClock()
    replica = Replica(server, clock, lease=15, renew_deadline=10, retry=2)
    replica.elector._candidacy._renewed_at = clock.monotonic()
    await clock.advance(35)
    assert replica.elector.health() is None
    await clock.advance(1)
    assert replica.elector.health() == "leading, but the Lease was last renewed 36 s ago"


async def test_a_new_leader_is_told_in_the_main_loop(server: FakeApiServer) -> None:
    """E20, P17: the first one too; what hears of it cannot disturb the election."""
    threads: list[str] = []
    told = asyncio.Event()

    def fail(_: str) -> None:
        threads.append(threading.current_thread().name)
        told.set()
        raise ZeroDivisionError

    raised: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    async with Replica(server, on_new_leader=fail) as elector:
        await elector.acquired()
        await told.wait()
        assert elector.is_leader
    assert threads == [threading.current_thread().name]
    assert isinstance(raised[0]["exception"], ZeroDivisionError)


async def test_the_end_is_told_once_on_every_exit(server: FakeApiServer) -> None:
    """E20: on_stopped, whose name here is ``lost``."""
    replica = Replica(server)
    async with replica as elector:
        await elector.acquired()
        end = asyncio.ensure_future(elector.lost())
        await asyncio.sleep(0)
        assert not end.done()
    assert isinstance(await end, LeadershipLost)
    assert await end is await elector.lost()
    assert replica.leaders == [elector.identity]


async def test_the_watchdog_judges_when_the_elector_cannot(server: FakeApiServer) -> None:
    """E17: after a suspension no write passes, and the main loop hears of it."""
    clock = Suspendable()
    replica = Replica(server, clock, watch=0.01)
    with capture_logs():
        async with replica as elector:
            await elector.acquired()
            replica.client.before = lambda _: asyncio.sleep(0.15)
            clock.skipped = 30
            with pytest.raises(NotLeader):
                elector.fence()
            async with asyncio.timeout(5):
                assert isinstance(await elector.lost(), LeadershipLost)
            clock.skipped += 100
            looks = clock.looks
            await in_time(lambda: clock.looks > looks + 4)
    assert replica.exits == [], "the main loop did react"


async def test_the_process_ends_when_the_main_loop_does_not_react(server: FakeApiServer) -> None:
    """E17: validity ended long ago, so a second after the loss."""
    clock = Suspendable()
    replica = Replica(server, clock, watch=0.01)
    with capture_logs():
        async with replica as elector:
            await elector.acquired()
            clock.skipped = 30
            while elector.is_leader:
                time.sleep(0.01)  # noqa: ASYNC251 - the main loop does not react
            clock.skipped += 1
            while not replica.exits:
                time.sleep(0.01)  # noqa: ASYNC251
    assert replica.exits == [1]


class Suspendable(SystemClock):
    """A boot clock that a test moves on."""

    skipped = 0.0
    looks = 0

    def monotonic(self) -> float:
        self.looks += threading.current_thread().name == "elector-watchdog"
        return super().monotonic() + self.skipped
