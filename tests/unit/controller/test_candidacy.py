"""E1 to E19: the protocol, on a hand-turned clock against a fake API server."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY

from kaito.clock import parse_rfc3339
from kaito.controller.candidacy import DEFAULT_TIMING, LEASES, Candidacy, Timing
from kaito.errors import InvalidSettings, ServerUnavailable, TransportError
from tests.fakes.clock import FakeClock, settle
from tests.unit.controller.candidates import LEASE, Candidate, held_by, running, spec
from tests.unit.controller.fakes import FakeApiServer


@pytest.fixture
def server() -> FakeApiServer:
    return FakeApiServer()


@pytest.mark.parametrize(
    ("lease", "renew_deadline", "retry"),
    [
        (10, 10, 2),
        (15, 2.4, 2),
        (15, 10, 0),
        (15, 0, 2),
        (-15, -20, 2),
        (15.5, 10, 2),
        (0.5, 0.3, 0.1),
        (4, 3, 2),
    ],
)
def test_timings_under_which_two_or_nobody_could_lead_are_refused(
    lease: float, renew_deadline: float, retry: float
) -> None:
    """E1"""
    with pytest.raises(InvalidSettings, match="leader election needs"):
        Timing(lease, renew_deadline, retry)


def test_a_lease_is_fifteen_seconds_unless_told_otherwise() -> None:
    """E1"""
    assert Timing(lease=15, renew_deadline=10, retry=2) == DEFAULT_TIMING


def candidacy(clock: FakeClock, name: str) -> Candidacy:
    return Candidacy(
        namespace="n",
        name=name,
        identity="a",
        clock=clock,
        timing=DEFAULT_TIMING,
        on_won=lambda: None,
        on_lost=lambda *_: None,
        on_new_leader=lambda _: None,
    )


async def test_the_first_creates_the_lease_and_renews_without_reading(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E3, E8, E12: create, PUT, PUT, each 2 s; times have six digits; renewal keeps the rest."""
    a = Candidate(server, clock)
    async with running(a):
        first = dict(spec(server))
        await clock.advance(4)
    assert server.calls == ["GET", "POST", "PUT", "PUT"]
    assert a.changes == [None]
    assert a.leaders == ["a"]
    assert first["renewTime"] == first["acquireTime"] == "2027-01-15T08:00:00.000000Z"
    now = spec(server)
    assert (now["leaseTransitions"], now["acquireTime"]) == (0, first["acquireTime"])
    assert parse_rfc3339(now["renewTime"]) == parse_rfc3339(first["renewTime"]) + 4
    assert now["leaseDurationSeconds"] == 15


async def test_losing_the_race_to_create_is_a_lost_round(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E3"""
    a = Candidate(server, clock, "a")
    a.client.before = lambda verb: held_by(server, "b") if verb == "POST" else None
    async with running(a):
        assert not a.core.is_leader
    assert a.changes == []


@pytest.mark.parametrize("holder", ["", None])
async def test_a_free_lease_is_taken_at_once(
    server: FakeApiServer, clock: FakeClock, holder: Any
) -> None:
    """E3, E12: transitions + 1, new acquireTime."""
    held_by(server, holder, duration=1, acquireTime="2020-01-01T00:00:00.000000Z")
    a = Candidate(server, clock)
    async with running(a):
        assert a.core.is_leader
    assert spec(server)["leaseTransitions"] == 5
    assert spec(server)["acquireTime"].startswith("2027")


async def test_a_newcomer_waits_a_full_duration_by_its_own_clock(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E4, E5: the record's duration, not ours; its renewTime, years off, means nothing."""
    held_by(server, "dead", duration=40, renewTime="2001-01-01T00:00:00.000000Z")
    a = Candidate(server, clock, uniform=lambda: 0.5)
    async with running(a):
        await clock.advance(39.9)
        assert not a.core.is_leader
        await clock.advance(0.6)  # within half a second of the expiry (E7)
        assert a.core.is_leader
    assert a.leaders == ["dead", "a"]


async def test_a_record_that_changes_starts_the_wait_anew(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E4"""
    held_by(server, "other")
    a = Candidate(server, clock)
    async with running(a):
        for moment in range(20):
            await clock.advance(2)
            held_by(server, "other", renewTime=f"t{moment}")
        assert not a.core.is_leader
        await clock.advance(14.9)
        assert not a.core.is_leader
        await clock.advance(4.5)
        assert a.core.is_leader


async def test_wall_clock_steps_change_nothing(server: FakeApiServer, clock: FakeClock) -> None:
    """E5, P11"""
    held_by(server, "other")
    a = Candidate(server, clock)
    async with running(a):
        clock._offset += 3600
        await clock.advance(10)
        clock._offset -= 7200
        await clock.advance(4.9)
        assert not a.core.is_leader
        await clock.advance(1)
        assert a.core.is_leader
        clock._offset += 3600
        await clock.advance(30)
        assert a.can_write


@pytest.mark.parametrize(("roll", "tries"), [(0.0, 6), (1.0, 3)])
async def test_candidates_try_each_two_to_four_seconds(
    server: FakeApiServer, clock: FakeClock, roll: float, tries: int
) -> None:
    """E7"""
    held_by(server, "other", duration=1000)
    a = Candidate(server, clock, uniform=lambda: roll, watching=False)
    async with running(a):
        await clock.advance(10)
    assert server.calls.count("GET") == tries


async def test_one_conflict_costs_one_read(server: FakeApiServer, clock: FakeClock) -> None:
    """E8, E11, E13: create, PUT, PUT(409), GET, PUT; what others wrote on it survives."""
    slow_path = ("leader_election_slowpath_total", {"name": "leader"})
    before = REGISTRY.get_sample_value(*slow_path) or 0
    a = Candidate(server, clock)
    async with running(a):
        await clock.advance(2)
        obj = server.objects[LEASE]
        labelled = {**obj["metadata"], "labels": {"team": "x"}}
        server.put(LEASES, {**obj, "metadata": labelled, "extra": 1})
        spec(server).update(strategy="OldestEmulationVersion", preferredHolder="c")
        await clock.advance(2)
    assert server.calls == ["GET", "POST", "PUT", "PUT", "GET", "PUT"]
    assert a.core.is_leader
    assert (REGISTRY.get_sample_value(*slow_path) or 0) - before == 1
    stored = server.objects[LEASE]
    assert stored["metadata"]["labels"] == {"team": "x"}
    assert stored["extra"] == 1
    assert stored["spec"]["strategy"] == "OldestEmulationVersion"
    assert stored["spec"]["preferredHolder"] == "c"


async def test_a_write_whose_answer_was_lost_counts_as_renewed(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E11, W16: the stored record is the one we just wrote."""
    a = Candidate(server, clock)

    def lose(verb: str) -> None:
        if verb == "PUT":
            raise TransportError("reset")

    async with running(a):
        a.client.after = lose
        await clock.advance(20)
        assert a.can_write
    assert server.calls[:6] == ["GET", "POST", "PUT", "GET", "PUT", "GET"]


async def test_a_write_of_an_earlier_round_is_not_counted_from_now(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E4, E16: others saw that record change when it was written; it is written anew."""
    a = Candidate(server, clock)
    async with running(a):
        a.client.after = lambda verb: clock.sleep(1000) if verb == "PUT" else None
        await clock.advance(6.9)  # PUT at 2 is stored, given up at 7
        a.client.after = None
        await clock.advance(0.2)
        assert server.calls == ["GET", "POST", "PUT", "GET", "PUT"]
        assert parse_rfc3339(spec(server)["renewTime"]) == clock.now() - 0.1


async def test_a_renewal_counts_from_the_start_of_its_call(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E14, E16: others may have seen the record change as early as that."""
    a = Candidate(server, clock)
    async with running(a):
        a.client.after = lambda verb: clock.sleep(3) if verb == "PUT" else None
        await clock.advance(5)
        assert a.core.seconds_left() == 10
        assert a.core.renewal_age() == 3


async def test_a_renewal_after_a_hung_one_reads_first_and_is_counted(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E8: the slow path."""
    slow_path = ("leader_election_slowpath_total", {"name": "leader"})
    before = REGISTRY.get_sample_value(*slow_path) or 0
    a = Candidate(server, clock)
    async with running(a):
        a.client.before = lambda _: clock.sleep(1000)
        await clock.advance(2)
        a.client.before = None
        await clock.advance(6)
    assert server.calls[:5] == ["GET", "POST", "PUT", "GET", "PUT"]
    assert (REGISTRY.get_sample_value(*slow_path) or 0) - before == 1


async def test_each_call_of_a_round_has_its_own_limit(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E9, E22: a read and a write of 4.9 s each take a Lease over."""
    held_by(server, "")
    a = Candidate(server, clock)
    a.client.before = lambda _: clock.sleep(4.9)
    async with running(a):
        await clock.advance(9.7)
        assert not a.core.is_leader
        await clock.advance(0.2)
        assert a.can_write
        assert a.core.renewal_age() == pytest.approx(5.0)


async def test_every_renewal_is_observed_however_it_ended(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E9, M12: the failed and hung ones are what the histogram is looked at for."""
    name = "leader_election_renew_seconds"
    before = {what: REGISTRY.get_sample_value(f"{name}_{what}") or 0 for what in ("count", "sum")}
    a = Candidate(server, clock)
    async with running(a):
        await clock.advance(2)
        a.client.before = _refuse
        await clock.advance(2)
        a.client.before = lambda _: clock.sleep(1000)
        await clock.advance(2 + 5)
        assert (REGISTRY.get_sample_value(f"{name}_count") or 0) - before["count"] == 3
        assert (REGISTRY.get_sample_value(f"{name}_sum") or 0) - before["sum"] == 5


def test_the_slow_path_is_counted_from_zero(clock: FakeClock) -> None:
    """M12"""
    candidacy(clock, "unseen")
    assert REGISTRY.get_sample_value("leader_election_slowpath_total", {"name": "unseen"}) == 0


async def test_a_create_whose_answer_was_lost_needs_no_wait(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E11, W16: the holder is this very process."""
    a = Candidate(server, clock)

    def lose(verb: str) -> None:
        if verb == "POST":
            raise TransportError("reset")

    a.client.after = lose
    async with running(a):
        assert not a.core.is_leader
        await clock.advance(2)
        assert a.core.is_leader
    assert spec(server)["leaseTransitions"] == 0


async def test_leadership_is_lost_ten_seconds_after_the_last_renewal(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E14: counted from the start of the call that succeeded."""
    a = Candidate(server, clock)
    async with running(a):
        await clock.advance(4)
        a.client.before = _refuse
        await clock.advance(9.9)
        assert a.can_write
        await clock.advance(0.2)
        assert not a.can_write
        assert not a.core.is_leader
        a.client.before = None
        await clock.advance(60)
    assert a.changes == [None, "not renewed for 10.0 s"]
    assert a.left == [pytest.approx(3.0)], "nobody else leads before the lease has run out"
    assert a.core.seconds_left() < 0
    assert spec(server)["holderIdentity"] == "a", "a Lease that was lost is not released"


def suspend(clock: FakeClock, seconds: float) -> None:
    """The boot clock goes on while the machine sleeps; the loop's timers do not."""
    clock._boot += seconds
    clock._timers = [(due + seconds, order, timer) for due, order, timer in clock._timers]


def _refuse(_: str) -> None:
    raise ServerUnavailable("<html>", status=503)


async def test_a_call_that_hangs_does_not_use_up_the_deadline(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E9: ended after 5 s, the next one succeeds."""
    a = Candidate(server, clock)
    hangs = 1

    def hang_once(_: str) -> Any:
        nonlocal hangs
        hangs -= 1
        return clock.sleep(1000) if hangs >= 0 else None

    async with running(a):
        a.client.before = hang_once
        await clock.advance(30)
        assert a.can_write
    assert a.changes == [None]


async def test_all_calls_hanging_lose_it_in_time(server: FakeApiServer, clock: FakeClock) -> None:
    """E9, E14, E22"""
    a = Candidate(server, clock)
    async with running(a):
        a.client.before = lambda _: clock.sleep(1000)
        await clock.advance(9.9)
        assert a.core.is_leader
        await clock.advance(0.2)
        assert not a.core.is_leader


async def test_slow_calls_keep_leadership(server: FakeApiServer, clock: FakeClock) -> None:
    """E22: 4.9 s per call."""
    a = Candidate(server, clock)
    async with running(a):
        a.client.before = lambda _: clock.sleep(4.9)
        await clock.advance(100)
        assert a.can_write


@pytest.mark.parametrize("now", ["other holder", "deleted", "edited empty"])
async def test_a_read_that_shows_another_holder_ends_it_at_once(
    server: FakeApiServer, clock: FakeClock, now: str
) -> None:
    """E15"""
    a = Candidate(server, clock)
    async with running(a):
        match now:
            case "deleted":
                del server.objects[LEASE]
            case other:
                held_by(server, "b" if other == "other holder" else "")
        await clock.advance(2)
        assert not a.core.is_leader
        await clock.advance(60)
    assert len(a.changes) == 2
    assert "POST" not in server.calls[2:]


async def test_the_fence_closes_before_the_lease_can_expire(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E16, E6: 13 s after the start of the last success, by the boot clock alone."""
    a = Candidate(server, clock)
    async with running(a):
        assert a.core.seconds_left() == 13
        suspend(clock, 12.9)
        assert a.can_write
        suspend(clock, 0.2)
        assert not a.can_write
        await clock.advance(2)  # the first thing after resume (E17)
    assert len(a.changes) == 2
    assert a.core.is_leader is False


async def test_a_verdict_of_the_watchdog_is_final(server: FakeApiServer, clock: FakeClock) -> None:
    """E17: a renewal that was under way does not bring leadership back."""
    a = Candidate(server, clock)
    async with running(a):
        a.client.before = lambda _: clock.sleep(3)
        await clock.advance(2.5)
        a.core.lose("stood still")
        a.core.lose("again")
        await clock.advance(10)
        assert not a.core.is_leader
    assert a.changes == [None, "stood still"]


async def test_release_gives_the_lease_up_and_keeps_it(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E19: re-read, holder empty, one second, transitions kept; a conflict is tried again."""
    held_by(server, "")
    a = Candidate(server, clock)
    async with running(a):
        await clock.advance(2)
        puts = 0

        def touch(verb: str) -> None:
            nonlocal puts
            puts += verb == "PUT"
            if puts == 1 and verb == "PUT":
                server.put(LEASES, server.objects[LEASE])

        a.client.before = touch
        a.core.stop()
        await settle(60)
    assert spec(server)["holderIdentity"] == ""
    assert spec(server)["leaseDurationSeconds"] == 1
    assert spec(server)["leaseTransitions"] == 5
    assert server.calls[-4:] == ["GET", "PUT", "GET", "PUT"]
    assert not a.core.is_leader


async def test_the_fence_is_closed_before_the_lease_is_free(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E16, E19: the answer to the release may come when another leads already."""
    a = Candidate(server, clock)
    b = Candidate(server, clock, "b")
    async with running(a, b):
        a.client.after = lambda verb: clock.sleep(3) if verb == "PUT" else None
        a.core.stop()
        await settle(60)
        assert b.can_write
        assert not a.can_write


async def test_release_leaves_anothers_lease_alone(server: FakeApiServer, clock: FakeClock) -> None:
    """E19: still holder? Else nothing is written."""
    a = Candidate(server, clock)
    async with running(a):
        held_by(server, "b")
        a.core.stop()
        await settle(60)
    assert spec(server)["holderIdentity"] == "b"


async def test_release_gives_up_when_the_server_does_not_answer(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E19: within the renew deadline."""
    a = Candidate(server, clock)
    async with running(a):
        a.client.before = lambda _: clock.sleep(1000)
        a.core.stop()
        await clock.advance(10)
        assert not a.core.is_leader


async def test_a_candidate_that_stops_writes_nothing(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E20: also one that was never elected ends."""
    held_by(server, "other")
    a = Candidate(server, clock)
    async with running(a):
        a.core.stop()
        await settle(60)
    assert server.calls == ["GET"]
    assert a.changes == []
