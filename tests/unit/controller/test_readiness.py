"""M9, M14: what the probes say of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from kaito.assembly import assembled
from kaito.controller.manager import Manager
from kaito.errors import InvalidSettings
from kaito.kube.config import ClusterConfig
from kaito.kube.tokens import FileToken
from tests.fakes.clock import FakeClock
from tests.unit.controller.fakes import FakeInformer
from tests.unit.controller.stage import FakeElector, FakeInformers, FakeProbes, Stage
from tests.unit.informers.fake import Feed, bookmark
from tests.unit.informers.scene import Scene


async def test_readiness_says_which_cache_is_missing_or_stale(clock: FakeClock) -> None:
    """M9, M14: also one whose CRD vanished, unless it is optional; a standby is ready."""
    stage = Stage(clock)
    probes = FakeProbes(stage)
    stage.manager = Manager(
        clock=clock, probes=cast(Any, probes), elector=cast(Any, FakeElector(stage))
    )
    stage.manager.add_informers(cast(Any, FakeInformers(stage)))
    optional, missing = FakeInformer(synced=False), FakeInformer(synced=False)
    optional.optional, optional.is_served = True, False
    missing.last_error = "403 list things"
    stage.informers += [optional, missing]
    stage.synced.set()
    async with stage.running():
        ready = probes.checks["caches"]
        assert ready() == "waiting for cache: things (403 list things)"
        missing.synced.set()
        assert ready() is None
        missing.silent, missing.last_error = 200, None
        assert ready() == "waiting for cache: things (no answer for 200 s)"
        missing.last_error = "401 list things"
        assert ready() == "waiting for cache: things (401 list things for 200 s)"
        missing.last_error = None
        missing.is_served, missing.silent = False, 0.0
        assert ready() == "waiting for cache: things (not served)"
        missing.last_error = "404 list things"
        assert ready() == "waiting for cache: things (404 list things)"
        missing.is_served = True
        assert ready() is None
        assert set(probes.checks) == {"loop", "leader-election", "caches"}
        assert probes.checks["loop"]() is None


async def test_with_credentials_that_cannot_be_read_nothing_is_ever_ready(tmp_path: Path) -> None:
    """M9, M13: they are read before the probes are served; later refusals show as stale caches."""
    config = ClusterConfig(host="http://127.0.0.1:1", token=FileToken(tmp_path / "token"))
    with pytest.raises(InvalidSettings, match="token"):
        async with assembled(config, name="unready", health_address="127.0.0.1:0"):
            raise AssertionError("there are no probes yet")


@pytest.mark.parametrize(("limit", "silent", "fresh"), [(90, 180, 1), (90, 181, 0), (610, 900, 1)])
async def test_a_cache_is_stale_after_twice_its_own_idle_limit(
    clock: FakeClock, limit: float, silent: float, fresh: int
) -> None:
    """M9: kinds without bookmarks may be silent for a whole watch."""
    stage = Stage(clock)
    probes = FakeProbes(stage)
    stage.manager = Manager(clock=clock, probes=cast(Any, probes))
    stage.manager.add_informers(cast(Any, FakeInformers(stage)))
    cache = FakeInformer()
    cache.idle_limit, cache.silent = limit, silent
    stage.informers.append(cache)
    stage.synced.set()
    async with stage.running():
        assert (probes.checks["caches"]() is None) == bool(fresh)


async def test_a_watch_that_shows_bookmarks_may_be_silent_for_less() -> None:
    """M9, R23: the limit that readiness doubles is the one that ends the watch."""
    scene = Scene()
    feed = Feed(bookmark(5, marker=True))
    scene.kube.feeds.append(feed)
    async with scene.running():
        await scene.clock.advance(10)
        assert scene.watcher.idle_limit == 310
        feed.send(bookmark(6))
        await scene.clock.advance(10)
        assert scene.watcher.idle_limit == 90
