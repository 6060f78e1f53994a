import pytest

from kaito.clock import SystemClock, parse_rfc3339, rfc3339, rfc3339_micro


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01T02:00:10+02:00", 10.0),
        ("1970-01-01T00:00:10.5Z", 10.5),
        ("1970-01-01T00:00:10.123456789Z", 10.123456),
        ("1970-01-01T02:00:10.250+02:00", 10.25),
    ],
)
def test_server_times_are_read_in_every_form_it_sends(text, seconds):
    """P10: Z or an offset, 0 to 9 fraction digits."""
    assert parse_rfc3339(text) == seconds


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="without zone"):
        parse_rfc3339("1970-01-01T00:00:10")


def test_times_are_written_as_the_server_wants_them():
    """E12: MicroTime has exactly six fraction digits; Time has none."""
    assert rfc3339(10.9) == "1970-01-01T00:00:10Z"
    assert rfc3339_micro(10.5) == "1970-01-01T00:00:10.500000Z"


def test_the_servers_clock_decides_and_noise_under_a_second_does_not():
    """P11: server time = boot clock + offset from the Date header."""
    clock = SystemClock()
    clock.observe_server_date(1_000_000.0)
    assert clock.now() == pytest.approx(1_000_000.5, abs=0.2)
    clock.observe_server_date(1_000_000.0)
    first = clock.now()
    clock.observe_server_date(999_999.5)
    assert clock.now() >= first


async def test_a_callback_runs_once_and_a_sleep_ends():
    clock = SystemClock()
    ran = []
    clock.call_later(0, lambda: ran.append(1))
    clock.call_later(60, lambda: ran.append(2)).cancel()
    await clock.sleep(0.001)
    assert ran == [1]
