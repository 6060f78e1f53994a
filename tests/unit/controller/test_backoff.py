"""L1 to L6: how long to wait."""

from __future__ import annotations

import pytest

from kaito.controller.backoff import ExponentialBackoff, FastSlow, MaxOf, TokenBucket
from tests.fakes.clock import FakeClock


@pytest.fixture
def backoff(clock: FakeClock) -> ExponentialBackoff[str]:
    return ExponentialBackoff(clock=clock, jitter=0)


def test_waits_double_from_5_ms_and_stop_at_the_cap(backoff: ExponentialBackoff[str]) -> None:
    """L1, L2: 5, 10, 20, 40 ms …; n = 18 and 10,000 give the cap."""
    waits = [backoff.when("a") for _ in range(10_000)]
    assert waits[:4] == [0.005, 0.01, 0.02, 0.04]
    assert waits[17] < 1000
    assert waits[18] == waits[-1] == 1000


def test_keys_are_independent_and_forget_starts_anew(backoff: ExponentialBackoff[str]) -> None:
    """L1"""
    backoff.when("a")
    assert backoff.when("b") == 0.005
    assert (backoff.num_requeues("a"), backoff.when("a")) == (1, 0.01)
    backoff.forget("a")
    assert (backoff.num_requeues("a"), backoff.when("a")) == (0, 0.005)


@pytest.mark.parametrize(("roll", "wait"), [(0.0, 0.005), (1.0, 0.0055)])
def test_jitter_adds_up_to_a_tenth(clock: FakeClock, roll: float, wait: float) -> None:
    """L3"""
    backoff: ExponentialBackoff[str] = ExponentialBackoff(clock=clock, uniform=lambda: roll)
    assert backoff.when("a") == pytest.approx(wait)


async def test_a_key_unseen_for_twice_the_cap_is_evicted(
    clock: FakeClock, backoff: ExponentialBackoff[str]
) -> None:
    """L6"""
    backoff.when("old")
    await clock.advance(1500)
    backoff.when("young")
    await clock.advance(501)
    backoff.when("other")
    assert (backoff.num_requeues("old"), backoff.num_requeues("young")) == (0, 1)


async def test_a_bucket_hands_out_its_burst_then_reservations(clock: FakeClock) -> None:
    """L4: the 101st call at once waits 0.1, the 200th 10.0."""
    bucket = TokenBucket(clock=clock)
    waits = [bucket.when() for _ in range(200)]
    assert waits[99] == 0
    assert waits[100] == pytest.approx(0.1)
    assert waits[199] == pytest.approx(10.0)
    await clock.advance(10)
    assert bucket.when() == pytest.approx(0.1)
    assert bucket.num_requeues("a") == 0


async def test_take_reserves_nothing_and_a_bucket_never_overflows(clock: FakeClock) -> None:
    """V6: what is refused costs nothing later; idle time fills the bucket to its burst only."""
    bucket = TokenBucket(clock=clock, rate=1, burst=2)
    assert [bucket.take() for _ in range(4)] == [True, True, False, False]
    await clock.advance(100)
    assert [bucket.take() for _ in range(3)] == [True, True, False]


def test_a_clock_that_steps_back_fills_nothing(clock: FakeClock) -> None:
    """L4"""
    bucket = TokenBucket(clock=clock, rate=1, burst=1)
    bucket.take()
    clock._boot -= 100
    assert not bucket.take()
    clock._boot += 100
    assert not bucket.take()


def test_max_of_asks_all_and_takes_the_longest(clock: FakeClock) -> None:
    """L5"""
    slow: ExponentialBackoff[str] = ExponentialBackoff(clock=clock, base=7, jitter=0)
    fast: ExponentialBackoff[str] = ExponentialBackoff(clock=clock, jitter=0)
    both = MaxOf(fast, slow, TokenBucket(clock=clock, rate=1, burst=10))
    assert both.when("a") == 7
    assert (fast.num_requeues("a"), both.num_requeues("a")) == (1, 1)
    both.forget("a")
    assert fast.num_requeues("a") == slow.num_requeues("a") == 0


def test_a_longest_wait_cuts(clock: FakeClock) -> None:
    """L5"""
    inner: ExponentialBackoff[str] = ExponentialBackoff(clock=clock, jitter=0)
    limiter = MaxOf(inner, at_most=0.015)
    assert [limiter.when("a") for _ in range(4)] == [0.005, 0.01, 0.015, 0.015]
    assert limiter.num_requeues("a") == 4


def test_fast_waits_come_first_then_slow_ones(clock: FakeClock) -> None:
    """L5: per key, until it is forgotten."""
    limiter: FastSlow[str] = FastSlow(clock=clock, fast=0.1, slow=60, tries=3)
    assert [limiter.when("a") for _ in range(5)] == [0.1, 0.1, 0.1, 60, 60]
    assert (limiter.when("b"), limiter.num_requeues("a")) == (0.1, 5)
    limiter.forget("a")
    assert limiter.when("a") == 0.1
