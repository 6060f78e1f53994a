"""The cloud's informer, on a hand-turned clock."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from kaito.provisioner.asks import Call
from kaito.provisioner.interface import LaunchRequest
from kaito.provisioner.inventory import Inventory
from tests.fakes.backend import InMemoryBackend, refusal
from tests.fakes.clock import FakeClock, settle


def order(name: str = "pool1") -> LaunchRequest:
    return LaunchRequest(name, "uid-1", "Standard_NC6s_v3", 0, {}, (), 0.0, 0.0)


class Bench:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.backend = InMemoryBackend(self.clock)
        self.inventory = Inventory(self.backend, self.clock, jitter=lambda: 1.0)
        self.told: list[str] = []
        self.inventory.add_listener(self.told.append)

    @property
    def lists(self) -> int:
        return self.backend.calls["list"]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.inventory.run())
        await settle()
        yield bench
        task.cancel()


async def test_idle_it_lists_every_two_minutes(bench: Bench):
    """P3.8."""
    await bench.clock.advance(119)
    assert bench.lists == 1
    await bench.clock.advance(1)
    assert bench.lists == 2


async def test_while_something_is_under_way_it_lists_every_ten_seconds(bench: Bench):
    """P3.8."""
    await bench.clock.advance(5)
    await bench.backend.launch(order())
    bench.inventory.look_soon()
    await settle()
    assert bench.lists == 2
    await bench.clock.advance(30)
    assert bench.lists == 5
    await bench.clock.advance(60)
    assert bench.lists == 5  # created: idle again


async def test_a_strangers_operation_does_not_quicken_it(bench: Bench):
    """P4.12."""
    bench.backend.add_foreign("theirs")
    await bench.clock.advance(120)
    await bench.clock.advance(60)
    assert bench.lists == 2


async def test_many_wishes_to_look_soon_are_one_list(bench: Bench):
    """P4.12: coalesced, and never two within a second."""
    await bench.clock.advance(5)
    for _ in range(50):
        bench.inventory.look_soon()
    await settle()
    assert bench.lists == 2
    bench.inventory.look_soon()
    await settle()
    assert bench.lists == 2
    await bench.clock.advance(1)
    assert bench.lists == 3


async def test_changes_are_told_by_claim_name(bench: Bench):
    """Design §3: the inventory says which claims changed."""
    await bench.backend.launch(order("a"))
    bench.inventory.look_soon()
    await bench.clock.advance(5)
    assert bench.told == ["a"]
    await bench.clock.advance(40)
    assert bench.told == ["a", "a"]  # created
    await bench.backend.terminate("a")
    bench.inventory.look_soon()
    await bench.clock.advance(40)
    assert bench.told == ["a"] * 4  # deleting, gone


async def test_a_waiter_is_woken_by_a_later_list_whatever_it_shows(bench: Bench):
    """G16."""
    bench.inventory.wake_after("a")
    assert bench.inventory.is_awaited("a")
    await bench.clock.advance(120)
    assert bench.told == ["a"]
    assert not bench.inventory.is_awaited("a")


async def test_a_list_under_way_does_not_serve_who_asks_meanwhile():
    """P3.16: absence only from a list that began after our own call."""
    bench = Bench()
    gate = asyncio.Event()

    class Slow(InMemoryBackend):
        async def list(self):
            found = await super().list()
            await gate.wait()
            return found

    bench.backend = bench.inventory.backend = Slow(bench.clock)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.inventory.run())
        await settle()
        bench.inventory.wake_after("a")
        bench.inventory.look_soon()
        gate.set()
        await settle()
        assert bench.told == []
        await bench.clock.advance(1)
        assert bench.told == ["a"]
        task.cancel()


async def test_a_failed_list_is_no_absence(bench: Bench):
    """G9, P3.16: the last good snapshot stays and the failure is known."""
    await bench.backend.launch(order())
    bench.inventory.look_soon()
    await bench.clock.advance(5)
    before = bench.inventory.latest
    bench.backend.list_failure = refusal("PermissionDenied", waits=(300.0,))
    await bench.clock.advance(10)
    assert bench.inventory.latest is before
    assert bench.inventory.failure is bench.backend.list_failure
    bench.backend.list_failure = None
    await bench.clock.advance(300)
    assert bench.inventory.failure is None


async def test_nobodys_haste_cuts_a_throttles_wait_short(bench: Bench):
    """P6.2: Retry-After holds for every call of the bucket."""
    bench.backend.list_failure = refusal("Throttled", waits=(60.0,))
    bench.inventory.look_soon()
    await bench.clock.advance(1)
    assert bench.lists == 2
    bench.inventory.look_soon()
    await bench.clock.advance(59)
    assert bench.lists == 2
    await bench.clock.advance(1)
    assert bench.lists == 3


async def test_readiness_knows_what_only_a_person_can_mend():
    """W25, P6.2: wrong credentials are not ready, a bad minute of the cloud is."""
    bench = Bench()
    assert bench.inventory.problem() is not None
    await bench.inventory._list()
    assert bench.inventory.problem() is None
    bench.backend.list_failure = refusal("CloudUnavailable")
    await bench.inventory._list()
    assert bench.inventory.problem() is None
    bench.backend.list_failure = refusal("CredentialInvalid")
    await bench.inventory._list()
    assert "Do something" in (bench.inventory.problem() or "")


async def test_waiters_hear_of_a_failure_once_and_go_on_waiting(bench: Bench):
    """So that a claim can say what it waits for."""
    bench.backend.list_failure = refusal("CredentialInvalid", waits=(60.0,))
    bench.inventory.wake_after("a")
    bench.inventory.look_soon()
    await bench.clock.advance(200)
    assert bench.told == ["a"]
    assert bench.inventory.is_awaited("a")


async def test_it_lists_often_until_a_call_of_ours_shows(bench: Bench):
    """P3.8: a list that is behind shows nothing under way; once the next was two minutes off."""
    bench.backend.stale_seconds = 35.0
    await bench.clock.advance(5)
    await bench.backend.launch(order())
    bench.inventory.asked("pool1", Call.LAUNCH)
    bench.inventory.look_soon()
    await settle()
    await bench.clock.advance(30)
    assert bench.lists == 5
    assert bench.inventory.asks.waits("pool1", bench.clock.monotonic()) == {Call.LAUNCH: 0.0}
    await bench.clock.advance(10)
    assert not bench.inventory.asks.is_any_unshown
