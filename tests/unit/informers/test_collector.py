"""When Python's garbage collector runs, by a stand-in that writes down what it was told."""

from __future__ import annotations

import gc

from kaito.informers.collector import Collector
from tests.fakes.clock import FakeClock

SETTLED = ["collect", "freeze", "thresholds 50000 50 100", "enable"]


class FakeGc:
    def __init__(self) -> None:
        self.told: list[str] = []

    def enable(self) -> None:
        self.told.append("enable")

    def disable(self) -> None:
        self.told.append("disable")

    def collect(self) -> int:
        self.told.append("collect")
        return 0

    def freeze(self) -> None:
        self.told.append("freeze")

    def set_threshold(self, *thresholds: int) -> None:
        self.told.append(f"thresholds {' '.join(map(str, thresholds))}")


class Scene:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.gc = FakeGc()
        self.collector = Collector(clock=self.clock, collector=self.gc)

    def told(self) -> list[str]:
        told, self.gc.told = self.gc.told, []
        return told


def test_nothing_is_collected_while_caches_fill_and_then_all_is_frozen():
    """S18: collected first, so that no garbage is frozen; on again last."""
    scene = Scene()
    scene.collector.pause()
    assert scene.told() == ["disable"]
    scene.collector.settle()
    assert scene.told() == SETTLED


async def test_a_large_relist_is_frozen_too_at_most_once_an_hour():
    """S18: what came too soon is seen to when the hour is over, once for all."""
    scene = Scene()
    scene.collector.settle()
    scene.told()
    scene.collector.relisted(1_000)
    await scene.clock.advance(3_600)
    assert scene.told() == []
    scene.collector.relisted(1_001)
    await scene.clock.advance(0)
    assert scene.told() == SETTLED
    await scene.clock.advance(600)
    scene.collector.relisted(5_000)
    scene.collector.relisted(5_000)
    await scene.clock.advance(2_999)
    assert scene.told() == []
    await scene.clock.advance(1)
    assert scene.told() == SETTLED
    await scene.clock.advance(9_999)
    assert scene.told() == []


async def test_before_the_first_sync_no_list_is_a_relist():
    """S18: informers that share a kind sync one after the other."""
    scene = Scene()
    scene.collector.pause()
    scene.collector.relisted(5_000)
    await scene.clock.advance(9_999)
    assert scene.told() == ["disable"]


async def test_a_closed_one_leaves_no_timer_and_the_collector_on():
    """S18, M7."""
    scene = Scene()
    scene.collector.settle()
    scene.collector.relisted(5_000)
    scene.told()
    scene.collector.close()
    await scene.clock.advance(9_999)
    assert scene.told() == ["enable"]


def test_the_real_collector_is_what_it_speaks_to():
    """S18: the words of the module gc."""
    before = gc.get_threshold()
    collector = Collector(clock=FakeClock())
    try:
        collector.pause()
        assert not gc.isenabled()
        collector.settle()
        assert gc.isenabled()
        assert gc.get_threshold() == (50_000, 50, 100)
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
        gc.enable()
