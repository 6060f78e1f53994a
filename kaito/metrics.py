"""Every metric of the program, defined once. Labels come from closed sets only.

Names, types, labels and buckets of controller-runtime and client-go where they have one, so that
existing dashboards work (facts, controllers.md §2). Domain metrics are ``kaito_*``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

disable_created_metrics()  # type: ignore[no-untyped-call]

_RECONCILE: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7),
    *(0.8, 0.9, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10, 15, 20, 25),
    *(30, 40, 50, 60),
)
_QUEUE: Final = (1e-08, 1e-07, 1e-06, 1e-05, 1e-04, 1e-03, 1e-02, 0.1, 1, 10, 100, 1000)
_CLIENT: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
_SIZE: Final = (64, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216)
_LAG: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_PHASE: Final = (1, 5, 10, 30, 60, 120, 180, 240, 300, 420, 600, 900, 1200, 1800, 3600)


class Tally:
    """One series of a ``LoopHistogram``."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value. Only ever from the loop's thread."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Buckets as the page shows them, and the sum."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True)), self._sum


class LoopHistogram(Collector):
    """A histogram for what happens per key: without locks, a third of ``Histogram``'s cost."""

    def __init__(
        self, name: str, text: str, labels: list[str], *, buckets: tuple[float, ...]
    ) -> None:
        self._family = (name, text, None, None, labels)
        self._buckets = buckets
        self._tallies: dict[tuple[str, ...], Tally] = {}
        REGISTRY.register(self)

    def labels(self, *values: str) -> Tally:
        """The series of these label values; to be looked up once."""
        return self._tallies.setdefault(values, Tally(self._buckets))

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """See Collector."""
        yield HistogramMetricFamily(*self._family)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See Collector. In the scrape's thread."""
        family = HistogramMetricFamily(*self._family)
        for values, tally in tuple(self._tallies.items()):
            family.add_metric(values, *tally.read())
        yield family


class Count:
    """One series of a ``LoopCounter``. ``value`` is changed in the loop's thread only."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class LoopCounter(Collector):
    """A counter for what happens per event: adding one to it is nothing but that."""

    def __init__(self, name: str, text: str, labels: list[str]) -> None:
        self._family = (name, text, None, labels)
        self._counts: dict[tuple[str, ...], Count] = {}
        REGISTRY.register(self)

    def labels(self, *values: str) -> Count:
        """The series of these label values; to be looked up once."""
        return self._counts.setdefault(values, Count())

    def describe(self) -> Iterator[CounterMetricFamily]:
        """See Collector."""
        yield CounterMetricFamily(*self._family)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See Collector. In the scrape's thread."""
        family = CounterMetricFamily(*self._family)
        for values, count in tuple(self._counts.items()):
            family.add_metric(values, count.value)
        yield family


# Reconcilers ------------------------------------------------------------------------------------
RECONCILE_TOTAL = Counter(
    "controller_runtime_reconcile_total",
    "Reconciles per controller by result.",
    ["controller", "result"],
)
RECONCILE_ERRORS = Counter(
    "controller_runtime_reconcile_errors_total",
    "Reconciles that ended in an error, terminal ones included.",
    ["controller"],
)
RECONCILE_TERMINAL_ERRORS = Counter(
    "controller_runtime_terminal_reconcile_errors_total",
    "Reconciles that ended in an error no retry can help.",
    ["controller"],
)
RECONCILE_PANICS = Counter(
    "controller_runtime_reconcile_panics_total",
    "Reconciles that raised an exception nobody meant to raise.",
    ["controller"],
)
RECONCILE_TIMEOUTS = Counter(
    "controller_runtime_reconcile_timeouts_total",
    "Reconciles ended by the controller's own time limit.",
    ["controller"],
)
RECONCILE_SECONDS = LoopHistogram(
    "controller_runtime_reconcile_time_seconds",
    "Length of one reconcile.",
    ["controller"],
    buckets=_RECONCILE,
)
MAX_CONCURRENT_RECONCILES = Gauge(
    "controller_runtime_max_concurrent_reconciles", "Workers per controller.", ["controller"]
)
ACTIVE_WORKERS = Gauge(
    "controller_runtime_active_workers", "Workers busy with a key.", ["controller"]
)
EVENT_TO_RECONCILE_SECONDS = LoopHistogram(
    "event_to_reconcile_seconds",
    "From the event's arrival to the start of its reconcile.",
    ["controller"],
    buckets=_RECONCILE,
)
STALE_CACHE_WAITS = Counter(
    "controller_stale_cache_waits_total",
    "Keys parked until the cache had seen their own last write.",
    ["controller"],
)
STALE_CACHE_TIMEOUTS = Counter(
    "controller_stale_cache_timeouts_total",
    "Parked keys that ran although the cache had not caught up.",
    ["controller"],
)
FENCED_WRITES = Counter(
    "controller_fenced_writes_total", "Writes refused because the lease may have run out."
)
LOOP_LAG_SECONDS = Histogram(
    "asyncio_loop_lag_seconds", "How late the event loop runs its timers.", buckets=_LAG
)

# Work queues ------------------------------------------------------------------------------------
WORKQUEUE_DEPTH = Gauge(
    "workqueue_depth", "Keys ready to be taken.", ["name", "controller", "priority"]
)
WORKQUEUE_ADDS = Counter("workqueue_adds_total", "Keys that became ready.", ["name", "controller"])
WORKQUEUE_QUEUE_SECONDS = LoopHistogram(
    "workqueue_queue_duration_seconds",
    "From ready to taken.",
    ["name", "controller"],
    buckets=_QUEUE,
)
WORKQUEUE_WORK_SECONDS = LoopHistogram(
    "workqueue_work_duration_seconds", "From taken to done.", ["name", "controller"], buckets=_QUEUE
)
WORKQUEUE_UNFINISHED_SECONDS = Gauge(
    "workqueue_unfinished_work_seconds",
    "Sum of the ages of the keys in process.",
    ["name", "controller"],
)
WORKQUEUE_LONGEST_SECONDS = Gauge(
    "workqueue_longest_running_processor_seconds",
    "Age of the oldest key in process.",
    ["name", "controller"],
)
WORKQUEUE_RETRIES = Counter("workqueue_retries_total", "Adds with a delay.", ["name", "controller"])

_MAX_PRIORITIES: Final = 25


class QueueSeries:
    """The ``workqueue_*`` series of one queue, looked up once.

    What can be read off the queue is computed at the scrape: it costs nothing per key, needs no
    timer, and tells the truth while the loop is held.
    """

    def __init__(self, name: str) -> None:
        self._labels = (name, name)
        self.adds = WORKQUEUE_ADDS.labels(*self._labels)
        self.retries = WORKQUEUE_RETRIES.labels(*self._labels)
        self.queue_seconds = WORKQUEUE_QUEUE_SECONDS.labels(*self._labels)
        self.work_seconds = WORKQUEUE_WORK_SECONDS.labels(*self._labels)
        self._priorities: set[int] = set()

    def show_ages(self, ages: Callable[[], list[float]]) -> None:
        """Tell of the keys in process by their ages."""
        unfinished = WORKQUEUE_UNFINISHED_SECONDS.labels(*self._labels)
        unfinished.set_function(lambda: sum(ages()))
        longest = WORKQUEUE_LONGEST_SECONDS.labels(*self._labels)
        longest.set_function(lambda: max(ages(), default=0.0))

    def show_depth(self, priority: int, levels: Mapping[int, Collection[object]]) -> None:
        """Tell how many keys are ready at a priority. Beyond 25 all others share one series."""
        shown = self._priorities
        if priority in shown:
            return
        if len(shown) < _MAX_PRIORITIES:
            shown.add(priority)
            depth = WORKQUEUE_DEPTH.labels(*self._labels, str(priority))
            depth.set_function(lambda: len(levels.get(priority, ())))
            return
        depth = WORKQUEUE_DEPTH.labels(*self._labels, "exceeded_cardinality_limit")
        depth.set_function(lambda: sum(len(v) for p, v in tuple(levels.items()) if p not in shown))


# Leader election --------------------------------------------------------------------------------
LEADER_STATUS = Gauge("leader_election_master_status", "1 while leading, else 0.", ["name"])
LEADER_SLOWPATH = Counter(
    "leader_election_slowpath_total", "Renewals that had to read the Lease first.", ["name"]
)
LEADER_RENEW_SECONDS = Histogram(
    "leader_election_renew_seconds", "Length of one renewal, failed ones too.", buckets=_CLIENT
)

# API client -------------------------------------------------------------------------------------
REST_REQUESTS = Counter(
    "rest_client_requests_total",
    "Requests to the API server by code (<error> without an answer).",
    ["code", "method", "host"],
)
REST_SECONDS = Histogram(
    "rest_client_request_duration_seconds",
    "Length of one request.",
    ["verb", "host"],
    buckets=_CLIENT,
)
REST_LIMITER_SECONDS = Histogram(
    "rest_client_rate_limiter_duration_seconds",
    "Wait for a free slot before a request.",
    ["verb", "host"],
    buckets=_CLIENT,
)
REST_REQUEST_BYTES = Histogram(
    "rest_client_request_size_bytes", "Request body size.", ["verb", "host"], buckets=_SIZE
)
REST_RESPONSE_BYTES = Histogram(
    "rest_client_response_size_bytes", "Response body size.", ["verb", "host"], buckets=_SIZE
)
REST_RETRIES = Counter(
    "rest_client_request_retries_total", "Requests sent again.", ["code", "verb", "host"]
)

# Informers --------------------------------------------------------------------------------------
_INFORMER: Final = ["kind", "representation"]
INFORMER_OBJECTS = Gauge("informer_objects", "Objects in the store.", _INFORMER)
INFORMER_SYNCED = Gauge("informer_synced", "1 once the first list is in the store.", _INFORMER)
INFORMER_EVENTS = LoopCounter("informer_events_total", "Events applied.", [*_INFORMER, "type"])
INFORMER_LISTS = Counter("informer_lists_total", "Lists started.", [*_INFORMER, "reason"])
INFORMER_WATCH_RESTARTS = Counter(
    "informer_watch_restarts_total", "Watches started anew.", [*_INFORMER, "reason"]
)
INFORMER_LIST_SECONDS = Histogram(
    "informer_list_duration_seconds", "Length of one list.", _INFORMER, buckets=_CLIENT
)
INFORMER_LAST_EVENT_AGE = Gauge(
    "informer_last_event_age_seconds", "Seconds since the last byte of the watch.", _INFORMER
)
INFORMER_SKIPPED = Counter(
    "informer_skipped_total", "Objects or lines not stored.", [*_INFORMER, "reason"]
)
INFORMER_HANDLER_ERRORS = Counter(
    "informer_handler_errors_total", "Handlers that raised.", _INFORMER
)
INFORMER_DECODE_SECONDS = Counter(
    "informer_decode_seconds_total", "Time spent decoding.", _INFORMER
)

# Events -----------------------------------------------------------------------------------------
EVENTS_SENT = Counter("events_sent_total", "Kubernetes Events by outcome.", ["outcome"])

# Kaito: clouds and claims -----------------------------------------------------------------------
ARM_REQUESTS = Counter(
    "kaito_arm_requests_total",
    "Calls to ARM by operation, HTTP status and known error code.",
    ["operation", "status", "code"],
)
ARM_SECONDS = Histogram(
    "kaito_arm_request_seconds", "Length of one ARM call.", ["operation"], buckets=_CLIENT
)
INVENTORY_AGE = Gauge("kaito_inventory_age_seconds", "Age of the last complete list of instances.")
INVENTORY_FAILURES = Counter(
    "kaito_inventory_list_failures_total", "Lists of instances that failed."
)
CLAIMS = Gauge("kaito_claims", "Claims of ours by phase.", ["phase"])
CLAIM_PHASE_SECONDS = Histogram(
    "kaito_claim_phase_seconds", "Time a claim spent in a phase.", ["phase"], buckets=_PHASE
)
LAUNCH_FAILURES = Counter(
    "kaito_launch_failures_total", "Launches refused or failed, by reason.", ["reason"]
)
INSTANCES = Gauge("kaito_instances", "Instances of ours by instance type.", ["instance_type"])
WORKSPACE_PHASE_SECONDS = Histogram(
    "kaito_workspace_phase_seconds",
    "Time from a Workspace's creation until a condition first turned True.",
    ["condition"],
    buckets=_PHASE,
)
