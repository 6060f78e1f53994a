"""The protocol of list and watch by plain calls."""

from __future__ import annotations

import pytest

from kaito.errors import (
    ApiError,
    Expired,
    Forbidden,
    InvalidRequest,
    KindNotServed,
    ResourceVersionTooLarge,
    ServerUnavailable,
    TooManyRequests,
    TransportError,
    Unauthorized,
)
from kaito.informers.course import Course, List, Pause, State, Stream, Waits, Watch, query


def course(*, stream: bool = True, current: bool = False) -> Course:
    made = Course(chance=lambda: 0.0)
    made.can_stream = stream
    if current:
        made.synced()
    return made


def fail(made: Course, error: ApiError, *, last: str = "7", now: float = 0.0) -> None:
    """Take the next ask (over a pause) and report that it failed."""
    ask = made.next(last)
    while isinstance(ask, Pause):
        ask = made.next(last)
    made.failed(ask, error, now)


def test_the_first_sync_is_a_stream_without_a_version():
    """R2."""
    assert course().next("") == Stream("")
    assert query(Stream(""), 300) == {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "300",
    }


def test_after_the_sync_it_watches_from_the_last_version():
    """R12, R13."""
    assert course(current=True).next("7") == Watch("7")
    assert query(Watch("7"), 412) == {
        "resourceVersion": "7",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "412",
    }


def test_a_clean_end_is_followed_by_a_watch_at_once():
    """R16."""
    made = course(current=True)
    made.ended(seconds=400, was_silent=False, now=0)
    assert made.next("9") == Watch("9")


def test_a_stream_that_ends_before_its_marker_starts_again_with_backoff():
    """R4."""
    made = course()
    made.ended(seconds=20, was_silent=False, now=0)
    assert made.next("") == Pause(0.8)
    assert made.next("") == Stream("")


def test_a_server_that_closes_at_once_is_asked_six_times_in_thirty_seconds():
    """R17, R20."""
    made, now, asked = course(current=True), 0.0, []
    while now < 30:
        ask = made.next("7")
        if isinstance(ask, Pause):
            now += ask.seconds
        else:
            asked.append(now)
            made.ended(seconds=0.1, was_silent=True, now=now)
    assert len(asked) <= 6


def test_backoff_doubles_to_its_cap_and_starts_anew_after_two_quiet_minutes():
    """R20."""
    waits = Waits(lambda: 0.0)
    assert [waits.next(0) for _ in range(8)] == [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]
    assert waits.next(119) == 30
    assert waits.next(239) == 0.8


def test_backoff_has_jitter_of_up_to_its_own_length():
    """R20: so at most 60."""
    waits = Waits(lambda: 0.5)
    assert waits.next(0) == pytest.approx(1.2)


def test_an_absurd_retry_after_silences_no_informer():
    """R20: five minutes at most; none at all is not a loop without a pause."""
    made = course()
    fail(made, TooManyRequests("slow", status=429, retry_after=1e9))
    assert made.next("") == Pause(300)
    fail(made, TooManyRequests("slow", status=429, retry_after=0.0))
    assert made.next("") == Pause(1.6)


def test_a_missing_right_is_asked_for_from_one_second_up():
    """R22, W9."""
    made = course()
    waits = []
    for _ in range(3):
        fail(made, Forbidden("no", status=403))
        waits.append(made.next(""))
    assert waits == [Pause(1.0), Pause(1.6), Pause(3.2)]


def test_retry_after_raises_a_wait_and_never_lowers_it():
    """R20."""
    made = course()
    fail(made, TooManyRequests("slow", status=429, retry_after=5.0))
    assert made.next("") == Pause(5.0)
    for _ in range(6):
        fail(made, TooManyRequests("slow", status=429, retry_after=0.1))
    assert made.next("") == Pause(30)


@pytest.mark.parametrize("status", [400, 405, 406, 422])
def test_a_refused_stream_makes_way_for_lists_for_good(status):
    """R5."""
    made = course()
    fail(made, InvalidRequest("no", status=status), last="")
    assert made.next("") == List("0", 500)
    made.synced()
    fail(made, Expired("old"))
    assert made.next("7") == List("7")


@pytest.mark.parametrize(
    "error", [TooManyRequests("x"), ServerUnavailable("x"), TransportError("x")]
)
def test_an_overloaded_server_is_asked_for_a_stream_again(error):
    """R5."""
    made = course()
    fail(made, error, last="")
    assert made.next("") == Pause(0.8)
    assert made.next("") == Stream("")


def test_a_stream_without_events_falls_back_to_a_list():
    """R6."""
    made = course()
    made.fell_silent(was_silent=True)
    assert isinstance(made.next(""), List)


def test_servers_that_page_from_their_cache_are_listed_without_a_version():
    """R7."""
    made = course(stream=False)
    made.first_version = ""
    assert made.next("") == List("", 500)


def test_relists_ask_for_the_last_version_and_expired_ones_for_none_once():
    """R8, R9: 0, 10, "" for expired at 10."""
    made = course(stream=False)
    asked = [made.next("")]
    made.synced()
    fail(made, Expired("watch"), last="10")
    asked.append(made.next("10"))
    fail(made, Expired("list"), last="10")
    asked.append(made.next("10"))
    assert [ask.resource_version for ask in asked] == ["0", "10", ""]


def test_each_version_too_large_is_answered_by_one_list_without_it():
    """R9: 0, 20, "", 30, "", 40, "" for three times too large."""
    made, asked = course(stream=False), []

    def ask(last: str) -> str:
        it = made.next(last)
        while isinstance(it, Pause):
            it = made.next(last)
        asked.append(it.resource_version)
        return it

    ask("")
    made.synced()
    for last in ("20", "30", "40"):
        made.progressed()
        fail(made, Expired("watch"), last=last)
        made.failed(ask(last), ResourceVersionTooLarge("list"), 0)
        ask(last)
        made.synced()
    assert asked == ["0", "20", "", "30", "", "40", ""]


def test_an_expired_list_without_a_version_is_tried_again_with_backoff():
    """R9: at once only when there is a version to leave out."""
    made = course(stream=False)
    fail(made, Expired("list"), last="10")
    fail(made, Expired("list"), last="10")
    assert made.next("10") == Pause(0.8)


def test_pages_carry_limit_and_token_and_no_version():
    """R10."""
    made = course(stream=False)
    made.first_version = ""
    made.paged(made.next(""), "abc")
    page = made.next("")
    assert query(page) == {"limit": "500", "continue": "abc"}


def test_a_concrete_version_is_listed_whole_unless_the_first_list_came_in_pages():
    """R10."""
    made = course(stream=False)
    made.paged(made.next(""), "abc")
    made.synced()
    fail(made, Expired("watch"))
    assert query(made.next("7")) == {"resourceVersion": "7", "limit": "500"}


def test_a_refused_token_drops_the_pages_for_one_whole_list():
    """R11."""
    made = course(stream=False)
    made.paged(made.next(""), "abc")
    made.failed(made.next(""), Expired("continue"), 0)
    assert made.next("") == List("0")
    assert query(List("0")) == {"resourceVersion": "0"}


def test_throttled_watches_keep_their_version_and_list_nothing():
    """R18: four 429s, then success: five watches, no list."""
    made, asks = course(current=True), []
    for _ in range(4):
        ask = made.next("7")
        asks.append(ask)
        made.failed(ask, TooManyRequests("x"), 0)
        assert isinstance(made.next("7"), Pause)
    asks.append(made.next("7"))
    assert asks == [Watch("7")] * 5


def test_server_errors_of_a_watch_lead_to_a_list_after_thirty_seconds():
    """R18."""
    made = course(current=True)
    for now in (0.0, 10.0, 29.0):
        fail(made, ServerUnavailable("x"), now=now)
        assert made.is_current
    fail(made, ServerUnavailable("x"), now=30.0)
    assert isinstance(made.next("7"), Pause)
    assert made.next("7") == Stream("7")


def test_an_unknown_error_of_a_watch_backs_off_and_lists():
    """R18."""
    made = course(current=True)
    fail(made, ApiError("no Status"))
    assert isinstance(made.next("7"), Pause)
    assert made.next("7") == Stream("7")


def test_expired_is_answered_at_once_the_first_time_and_with_backoff_from_the_second():
    """R19."""
    made = course(current=True)
    fail(made, Expired("x"))
    assert made.next("7") == Stream("7")
    made.synced()
    fail(made, Expired("x"))
    assert made.next("7") == Pause(0.8)
    made.synced()
    made.progressed()
    fail(made, Expired("x"))
    assert made.next("7") == Stream("7")


@pytest.mark.parametrize("error", [TransportError("x"), Unauthorized("x"), Forbidden("x")])
def test_lost_connections_and_rights_keep_the_version(error):
    """R21, R22."""
    made = course(current=True)
    fail(made, error)
    assert isinstance(made.next("7"), Pause)
    assert made.next("7") == Watch("7")


def test_two_silent_watches_in_a_row_lead_to_a_list_without_a_version():
    """R25."""
    made = course(current=True)
    made.fell_silent(was_silent=True)
    assert made.next("7") == Watch("7")
    made.fell_silent(was_silent=True)
    assert made.next("7") == Stream("")


def test_a_whole_watch_without_a_line_counts_as_silent_though_it_ended_cleanly():
    """R25: a server behind our version ends such a watch by its timeout."""
    made = course(current=True)
    made.ended(seconds=310, was_silent=True, now=0)
    made.ended(seconds=310, was_silent=True, now=0)
    assert made.next("7") == Stream("")


def test_an_idle_watch_that_had_lines_is_just_opened_again():
    """R23."""
    made = course(current=True)
    for _ in range(3):
        made.fell_silent(was_silent=False)
        assert made.next("7") == Watch("7")


@pytest.mark.parametrize("current", [False, True])
def test_a_kind_that_is_not_served_is_asked_for_every_ten_seconds(current):
    """R26."""
    made = course(current=current)
    for _ in range(3):
        fail(made, KindNotServed("x"), last="")
        assert made.next("") == Pause(10.0, State.NOT_SERVED)
    assert made.next("") == Stream("")


def test_three_bad_lines_in_a_row_lead_to_a_list():
    """W7."""
    made = course(current=True)
    for expected in (Watch("7"), Watch("7"), Stream("7")):
        made.spoiled(0)
        assert isinstance(made.next("7"), Pause)
        assert made.next("7") == expected


def test_progress_ends_what_counts_in_a_row():
    """R18, W7."""
    made = course(current=True)
    fail(made, ServerUnavailable("x"), now=0)
    made.spoiled(0)
    made.spoiled(0)
    made.progressed()
    made.spoiled(0)
    fail(made, ServerUnavailable("x"), now=40)
    assert made.is_current
