"""M8, M10, M11, M13: probes and metrics over real loopback sockets."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from kaito.clock import SystemClock
from kaito.controller.looplag import LoopWatch
from kaito.controller.probes import Probes, _Server
from kaito.errors import InvalidSettings


@contextmanager
def serving(probes: Probes) -> Iterator[None]:
    probes.start()
    try:
        yield
    finally:
        probes.stop()


@pytest.fixture
def probes() -> Probes:
    return Probes(health_address="127.0.0.1:0", metrics_address="127.0.0.1:0")


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as err:
        with err:
            return err.code, err.read().decode()


def test_without_checks_the_process_answers_a_ping(probes: Probes) -> None:
    """M8"""
    with serving(probes):
        port = probes.health_port
        assert get(port, "/healthz") == (200, "ok")
        assert get(port, "/readyz/") == (200, "ok")
        assert get(port, "/healthz/ping") == (200, "ok")
        assert get(port, "/healthz?verbose") == (200, "[+]ping ok\nhealthz check passed\n")


def test_a_failing_check_says_what_is_missing(probes: Probes) -> None:
    """M8, M14: one line per check, ours with their cause."""
    probes.add_readiness("leader", lambda: None)
    probes.add_readiness("caches", lambda: "waiting for cache: nodes (403 list nodes)")
    with serving(probes):
        port = probes.health_port
        cause = "[-]caches failed: waiting for cache: nodes (403 list nodes)\n"
        assert get(port, "/readyz") == (500, f"[+]leader ok\n{cause}healthz check failed\n")
        assert get(port, "/healthz") == (200, "ok")
        assert get(port, "/readyz/leader") == (200, "ok")
        assert get(port, "/readyz/caches") == (500, f"{cause}healthz check failed\n")
        assert get(port, "/readyz?exclude=caches") == (200, "ok")
        _, text = get(port, "/readyz?exclude=caches&exclude=typo&verbose")
        assert "[+]caches excluded: ok" in text
        assert "warn: no check to exclude: typo" in text


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz/none", "/readyz/healthz", "/x"])
def test_unknown_names_are_404(probes: Probes, path: str) -> None:
    """M8"""
    with serving(probes):
        assert get(probes.health_port, path)[0] == 404


def test_the_text_of_an_exception_is_withheld_and_logged(probes: Probes) -> None:
    """M8"""

    def crash() -> str | None:
        raise ValueError("secret")

    probes.add_liveness("odd", crash)
    with serving(probes), capture_logs() as logs:
        status, text = get(probes.health_port, "/healthz")
    assert (status, text.splitlines()[0]) == (500, "[-]odd failed: reason withheld")
    assert logs[0]["exc_info"]


def test_metrics_have_an_address_of_their_own(probes: Probes) -> None:
    """M11, M12"""
    with serving(probes):
        status, text = get(probes.metrics_port, "/metrics")
        assert status == 200
        assert "# TYPE python_info gauge" in text
        assert "_created" not in text
        assert get(probes.metrics_port, "/healthz")[0] == 404


def test_0_is_off() -> None:
    """M11"""
    off = Probes(health_address="0", metrics_address="0")
    with serving(off):
        assert (off.health_port, off.metrics_port) == (0, 0)


@pytest.mark.parametrize("flag", ["--health-probe-bind-address", "--metrics-bind-address"])
def test_a_port_in_use_names_flag_and_address(flag: str) -> None:
    """M11, M13: names the variable too; and the other server does not stay behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        is_health = flag == "--health-probe-bind-address"
        probes = Probes(
            health_address=address if is_health else "127.0.0.1:0",
            metrics_address="127.0.0.1:0" if is_health else address,
        )
        with pytest.raises(InvalidSettings, match=rf"{flag} \(KAITO_\w+_ADDRESS\).*{address}"):
            probes.start()
    assert (probes.health_port, probes.metrics_port) == (0, 0)


@pytest.mark.parametrize("address", ["8080", ":x", "127.0.0.1:99999", "no.such.host.invalid:80"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """M13"""
    with pytest.raises(InvalidSettings, match="--metrics-bind-address"):
        Probes(health_address="0", metrics_address=address).start()


def test_stop_frees_ports_and_threads(probes: Probes) -> None:
    """M7"""
    before = threading.active_count()
    with serving(probes):
        port = probes.health_port
    probes.stop()
    assert threading.active_count() == before
    socket.create_server(("127.0.0.1", port)).close()


def test_a_client_that_hangs_up_leaves_no_traceback(
    probes: Probes, capsys: pytest.CaptureFixture[str]
) -> None:
    """M8, M11"""
    asked, hung_up, before = threading.Event(), threading.Event(), set(threading.enumerate())

    def slow() -> str | None:
        asked.set()
        hung_up.wait(5)
        return None

    probes.add_liveness("slow", slow)
    with serving(probes), capture_logs() as logs:
        with socket.create_connection(("127.0.0.1", probes.health_port)) as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert asked.wait(5)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        hung_up.set()
        for thread in set(threading.enumerate()) - before:
            if not thread.name.startswith("http-"):
                thread.join(5)
    assert capsys.readouterr().err == ""
    assert [entry["log_level"] for entry in logs] == ["debug"]


async def test_a_stalled_loop_answers_500_instead_of_nothing(probes: Probes) -> None:
    """C19, M9, M10: this loop stands while it asks its own probe."""
    clock = Skipping()
    watch = LoopWatch(clock=clock)
    probes.add_liveness("loop", watch.health)
    with serving(probes), capture_logs():
        watch.start()
        assert get(probes.health_port, "/healthz") == (200, "ok")
        clock.skipped = 6
        status, text = get(probes.health_port, "/healthz")
        watch.stop()
    assert status == 500
    assert text.startswith("[-]loop failed: the event loop is held since ")


class Skipping(SystemClock):
    """A boot clock that a test moves on."""

    skipped = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.skipped


def test_a_client_that_keeps_silent_holds_up_neither_the_others_nor_the_stop(
    probes: Probes,
) -> None:
    """M7, M10"""
    with serving(probes), socket.create_connection(("127.0.0.1", probes.health_port)):
        assert get(probes.health_port, "/healthz") == (200, "ok")


def test_without_descriptors_it_waits_and_goes_on() -> None:
    """M10: and does not spin meanwhile."""

    class Full(_Server):
        tries = 3

        def get_request(self) -> Any:
            if self.tries:
                self.tries -= 1
                self.socket.accept()[0].close()
                raise OSError(errno.EMFILE, "too many open files")
            return super().get_request()

    server = Full(socket.create_server(("127.0.0.1", 0)), lambda *_: (200, "text/plain", b"ok"))
    try:
        for _ in range(3):
            with pytest.raises(OSError):  # noqa: PT011 - closed or reset, as it comes
                get(server.server_port, "/")
        assert get(server.server_port, "/") == (200, "ok")
    finally:
        server.end()


def test_a_thread_that_cannot_be_started_costs_one_request() -> None:
    """M10: the next probe is answered."""

    class Crowded(_Server):
        is_crowded = True

        def process_request(self, request: Any, client_address: Any) -> None:
            if self.is_crowded:
                self.is_crowded = False
                raise RuntimeError("can't start new thread")
            super().process_request(request, client_address)

    server = Crowded(socket.create_server(("127.0.0.1", 0)), lambda *_: (200, "text/plain", b"ok"))
    try:
        with capture_logs() as logs:
            with pytest.raises(OSError):  # noqa: PT011 - closed or reset, as it comes
                get(server.server_port, "/")
            assert get(server.server_port, "/") == (200, "ok")
        assert [entry["event"] for entry in logs] == ["request failed"]
    finally:
        server.end()


@pytest.mark.parametrize("address", [":0", "[::1]:0", "localhost:0"])
def test_forms_of_an_address(address: str) -> None:
    """M11"""
    if address.startswith("[") and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    probes = Probes(health_address=address, metrics_address="0")
    with serving(probes):
        assert probes.health_port > 0
