"""M12: the page of a wired process against the table of facts §2, written out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import aiohttp
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from kaito.api.meta import Key
from kaito.api.views import decode_owned
from kaito.assembly import assembled
from kaito.controller.result import Result
from kaito.kube.config import ClusterConfig
from kaito.kube.resources import Kind
from tests.fakes.clock import settle

NAME: Final = "metrics-page"
THINGS: Kind[Any] = Kind("page.io", "v1", "Thing", "things", True, decode_owned)

RB: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8),
    *(0.9, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10, 15, 20, 25, 30, 40),
    *(50, 60),
)
WB: Final = (1e-08, 1e-07, 1e-06, 1e-05, 1e-04, 1e-03, 1e-02, 0.1, 1, 10, 100, 1000)
CB: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
SB: Final = (64, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216)
LAG: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
COUNTER, GAUGE = "counter", "gauge"
CONTROLLER, QUEUE, REST = "controller", "name controller", "verb host"
INFORMER: Final = "kind representation"

TABLE: Final = {
    "controller_runtime_reconcile": (COUNTER, "controller result"),
    "controller_runtime_reconcile_errors": (COUNTER, CONTROLLER),
    "controller_runtime_terminal_reconcile_errors": (COUNTER, CONTROLLER),
    "controller_runtime_reconcile_panics": (COUNTER, CONTROLLER),
    "controller_runtime_reconcile_timeouts": (COUNTER, CONTROLLER),
    "controller_runtime_reconcile_time_seconds": (RB, CONTROLLER),
    "controller_runtime_max_concurrent_reconciles": (GAUGE, CONTROLLER),
    "controller_runtime_active_workers": (GAUGE, CONTROLLER),
    "workqueue_depth": (GAUGE, f"{QUEUE} priority"),
    "workqueue_adds": (COUNTER, QUEUE),
    "workqueue_queue_duration_seconds": (WB, QUEUE),
    "workqueue_work_duration_seconds": (WB, QUEUE),
    "workqueue_unfinished_work_seconds": (GAUGE, QUEUE),
    "workqueue_longest_running_processor_seconds": (GAUGE, QUEUE),
    "workqueue_retries": (COUNTER, QUEUE),
    "leader_election_master_status": (GAUGE, "name"),
    "leader_election_slowpath": (COUNTER, "name"),
    "leader_election_renew_seconds": (CB, ""),
    "rest_client_requests": (COUNTER, "code method host"),
    "rest_client_request_duration_seconds": (CB, REST),
    "rest_client_rate_limiter_duration_seconds": (CB, REST),
    "rest_client_request_size_bytes": (SB, REST),
    "rest_client_response_size_bytes": (SB, REST),
    "rest_client_request_retries": (COUNTER, "code verb host"),
    "informer_objects": (GAUGE, INFORMER),
    "informer_synced": (GAUGE, INFORMER),
    "informer_events": (COUNTER, f"{INFORMER} type"),
    "informer_lists": (COUNTER, f"{INFORMER} reason"),
    "informer_watch_restarts": (COUNTER, f"{INFORMER} reason"),
    "informer_list_duration_seconds": (CB, INFORMER),
    "informer_last_event_age_seconds": (GAUGE, INFORMER),
    "informer_skipped": (COUNTER, f"{INFORMER} reason"),
    "informer_handler_errors": (COUNTER, INFORMER),
    "informer_decode_seconds": (COUNTER, INFORMER),
    "controller_stale_cache_waits": (COUNTER, CONTROLLER),
    "controller_stale_cache_timeouts": (COUNTER, CONTROLLER),
    "controller_fenced_writes": (COUNTER, ""),
    "event_to_reconcile_seconds": (RB, CONTROLLER),
    "asyncio_loop_lag_seconds": (LAG, ""),
    "events_sent": (COUNTER, "outcome"),
}

OURS: Final = {"controller": NAME}
OUR_QUEUE: Final = {"name": NAME, **OURS}
ZERO: Final[tuple[tuple[str, Mapping[str, str]], ...]] = (
    *(
        ("controller_runtime_reconcile_total", {**OURS, "result": result})
        for result in ("success", "error", "requeue", "requeue_after")
    ),
    ("controller_runtime_reconcile_errors_total", OURS),
    ("controller_runtime_terminal_reconcile_errors_total", OURS),
    ("controller_runtime_reconcile_panics_total", OURS),
    ("controller_runtime_reconcile_timeouts_total", OURS),
    ("controller_runtime_reconcile_time_seconds_count", OURS),
    ("controller_runtime_active_workers", OURS),
    ("workqueue_depth", {**OUR_QUEUE, "priority": "0"}),
    ("workqueue_adds_total", OUR_QUEUE),
    ("workqueue_queue_duration_seconds_count", OUR_QUEUE),
    ("workqueue_work_duration_seconds_count", OUR_QUEUE),
    ("workqueue_unfinished_work_seconds", OUR_QUEUE),
    ("workqueue_longest_running_processor_seconds", OUR_QUEUE),
    ("workqueue_retries_total", OUR_QUEUE),
    ("leader_election_master_status", {"name": NAME}),
    ("leader_election_slowpath_total", {"name": NAME}),
    ("controller_stale_cache_waits_total", OURS),
    ("controller_stale_cache_timeouts_total", OURS),
    ("event_to_reconcile_seconds_count", OURS),
    ("informer_synced", {"kind": THINGS.resource, "representation": "full"}),
    ("informer_objects", {"kind": THINGS.resource, "representation": "full"}),
)

CLOSED: Final = {
    "result": {"success", "error", "requeue", "requeue_after"},
    "outcome": {"created", "patched", "dropped_full", "dropped_spam", "failed"},
    "representation": {"full", "metadata"},
    "verb": {"GET", "POST", "PUT", "PATCH", "DELETE", "LIST", "WATCH"},
    "method": {"GET", "POST", "PUT", "PATCH", "DELETE"},
    "type": {"added", "modified", "deleted", "bookmark"},
}


@pytest.fixture
async def page() -> dict[str, Metric]:
    """What a scraper gets of a process whose API server is not there."""

    async def reconcile(_: Key) -> Result:
        raise AssertionError

    with capture_logs():
        async with assembled(
            ClusterConfig(host="http://127.0.0.1:9"),
            name=NAME,
            election_namespace="kaito",
            health_address="0",
            metrics_address="127.0.0.1:0",
        ) as parts:
            parts.informers.informer(THINGS)
            parts.controller(NAME, reconcile)
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(parts.manager.run(stop))
                await settle()
                url = f"http://127.0.0.1:{parts.probes.metrics_port}/metrics"
                async with aiohttp.ClientSession() as session, session.get(url) as answer:
                    text = await answer.text()
                stop.set()
    return {family.name: family for family in text_string_to_metric_families(text)}


async def test_the_page_has_the_names_types_labels_and_buckets_of_the_table(
    page: dict[str, Metric],
) -> None:
    """M12"""
    for name, (kind, labels) in TABLE.items():
        family = page[name]
        assert family.type == (kind if isinstance(kind, str) else "histogram"), name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(labels.split()), sample
        if not isinstance(kind, str):
            for bounds in _buckets(family):
                assert bounds == (*map(float, kind), math.inf), name


def _buckets(family: Metric) -> Iterator[tuple[float, ...]]:
    series: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            labels = dict(sample.labels)
            bound = float(labels.pop("le"))
            series.setdefault(tuple(sorted(labels.items())), []).append(bound)
    yield from map(tuple, series.values())


async def test_the_page_has_nothing_else_but_what_is_ours_and_pythons(
    page: dict[str, Metric],
) -> None:
    """M12: labels from closed sets, no ``_created`` series."""
    others = {name for name in page if name not in TABLE}
    assert {n for n in others if not n.startswith(("kaito_", "python_", "process_"))} == set()
    assert {"python_info", "process_resident_memory_bytes"} <= others
    for family in page.values():
        for sample in family.samples:
            assert not sample.name.endswith("_created")
            for label, allowed in CLOSED.items():
                if family.name in TABLE and label in sample.labels:
                    assert sample.labels[label] in allowed, sample


async def test_outcomes_are_there_from_the_start(page: dict[str, Metric]) -> None:
    """C12, E23, M12: a rate over them is right from the first one on."""
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in page.values()
        for sample in family.samples
    }
    for name, labels in ZERO:
        assert values[name, tuple(sorted(labels.items()))] == 0, name
    for outcome in CLOSED["outcome"]:
        assert ("events_sent_total", (("outcome", outcome),)) in values
    assert values["controller_runtime_max_concurrent_reconciles", (("controller", NAME),)] == 8
