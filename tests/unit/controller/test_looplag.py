"""C19, M9, M10: a loop that is held is noticed from outside."""

from __future__ import annotations

import asyncio
import threading
import time

from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from kaito.clock import SystemClock
from kaito.controller.looplag import LoopWatch
from tests.fakes.clock import FakeClock


def held_by_this_function() -> None:
    time.sleep(0.4)


async def test_a_held_loop_is_logged_once_with_its_stack() -> None:
    """C19: times shortened."""
    before = threading.active_count()
    watch = LoopWatch(clock=SystemClock(), beat=0.01, late=0.1)
    with capture_logs() as logs:
        watch.start()
        await asyncio.sleep(0.05)
        held_by_this_function()
        await asyncio.sleep(0.05)
        watch.stop()
    assert [entry["event"] for entry in logs] == ["event loop held"]
    assert "held_by_this_function" in logs[0]["stack"]
    assert threading.active_count() == before


async def test_a_loop_that_turns_is_left_alone() -> None:
    """C19"""
    watch = LoopWatch(clock=SystemClock(), beat=0.01, late=0.1)
    with capture_logs() as logs:
        watch.start()
        await asyncio.sleep(0.3)
        watch.stop()
    assert logs == []


async def test_lag_is_observed_and_five_seconds_are_not_alive(clock: FakeClock) -> None:
    """C19, M9: live = the loop answered within 5 s."""
    count = "asyncio_loop_lag_seconds_count"
    before = REGISTRY.get_sample_value(count) or 0
    watch = LoopWatch(clock=clock)
    watch.start()
    await clock.advance(1)
    assert (REGISTRY.get_sample_value(count) or 0) - before == 4
    assert watch.health() is None
    clock._boot += 6
    assert watch.health() == "the event loop is held since 6 s"
    watch.stop()


def test_stop_before_start_is_nothing(clock: FakeClock) -> None:
    """M7"""
    LoopWatch(clock=clock).stop()
