"""``/healthz``, ``/readyz`` and ``/metrics``, served by threads of their own.

A stalled loop then answers 500 instead of nothing. Checks are called in those threads: they read
single attributes and never wait.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, cast
from urllib.parse import parse_qs, urlsplit

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from kaito.errors import InvalidSettings

log = structlog.get_logger()

Check = Callable[[], str | None]
"""None: fine. Else the cause, shown to whoever asks the probe."""

_REQUEST_SECONDS: Final = 10.0
_FULL_SECONDS: Final = 0.1
"""Pause when no connection can be served (no file descriptors, no threads left)."""
_LAST_PORT: Final = 65535
Answer = tuple[int, str, bytes]
Route = Callable[[str, Mapping[str, list[str]]], Answer | None]


class Probes:
    """Two servers: health and metrics. An address is ``:8080`` or ``host:port``; ``0`` is off."""

    def __init__(self, *, health_address: str, metrics_address: str) -> None:
        self._addresses = {
            "--health-probe-bind-address": (health_address, self._health),
            "--metrics-bind-address": (metrics_address, _metrics),
        }
        self._live: dict[str, Check] = {}
        self._ready: dict[str, Check] = {}
        self._servers: dict[str, _Server] = {}

    def add_liveness(self, name: str, check: Check) -> None:
        """Make ``/healthz`` depend on it: failing means that a restart would help."""
        self._live[name] = check

    def add_readiness(self, name: str, check: Check) -> None:
        """Make ``/readyz`` depend on it."""
        self._ready[name] = check

    @property
    def health_port(self) -> int:
        """The port that was bound; 0 when off."""
        return self._port("--health-probe-bind-address")

    @property
    def metrics_port(self) -> int:
        """The port that was bound; 0 when off."""
        return self._port("--metrics-bind-address")

    def start(self) -> None:
        """Bind and serve.

        Raises:
            InvalidSettings: an address cannot be bound; names flag and address.
        """
        try:
            for flag, (address, route) in self._addresses.items():
                if address != "0":
                    self._servers[flag] = _Server(_listen(flag, address), route)
        except InvalidSettings:
            self.stop()
            raise

    def stop(self) -> None:
        """Free ports and threads."""
        while self._servers:
            self._servers.popitem()[1].end()

    def _port(self, flag: str) -> int:
        server = self._servers.get(flag)
        return server.server_port if server is not None else 0

    def _health(self, path: str, query: Mapping[str, list[str]]) -> Answer | None:
        for root, checks in (("/healthz", self._live), ("/readyz", self._ready)):
            named = dict(checks) or {"ping": lambda: None}
            if path == root:
                return _report(named, set(query.get("exclude", ())), "verbose" in query)
            name = path.removeprefix(root + "/")
            if name in named and name != path:
                return _report({name: named[name]}, set(), "verbose" in query)
        return None


class _Server(ThreadingHTTPServer):
    """One listening socket and its threads."""

    daemon_threads = True
    block_on_close = False  # a client that keeps its connection must not hold up the stop

    def __init__(self, listener: socket.socket, route: Route) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_port = listener.getsockname()[1]
        self.route = route
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._accept, name=f"http-{self.server_port}", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the accept
        self.server_close()
        self._thread.join(_REQUEST_SECONDS)

    def _accept(self) -> None:
        """In place of ``serve_forever``, which wakes up twice a second to look for its end."""
        while not self._ended.is_set():
            try:
                request, address = self.get_request()
            except OSError:
                self._ended.wait(_FULL_SECONDS)
                continue
            try:
                self.process_request(request, address)
            except RuntimeError as err:  # no thread can be started now; the next may be
                log.warning("request dropped", port=self.server_port, error=str(err))
                self.shutdown_request(request)
                self._ended.wait(_FULL_SECONDS)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Let no error reach socketserver, which prints it. In the request's thread."""
        try:
            super().finish_request(request, client_address)
        except OSError as err:
            log.debug("client hung up", port=self.server_port, error=str(err))
        except Exception:
            log.exception("request failed", port=self.server_port)


class _Handler(BaseHTTPRequestHandler):
    """GET to the server's route."""

    timeout = _REQUEST_SECONDS

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        answer = cast(_Server, self.server).route(url.path.rstrip("/"), query)
        status, content_type, body = answer or (404, "text/plain; charset=utf-8", b"not found\n")
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: probes come each few seconds."""


def _report(checks: Mapping[str, Check], excluded: set[str], verbose: bool) -> Answer:
    failed = False
    lines: list[str] = []
    for name, check in checks.items():
        if name in excluded:
            lines.append(f"[+]{name} excluded: ok")
            continue
        cause = _cause(name, check)
        failed = failed or cause is not None
        lines.append(f"[+]{name} ok" if cause is None else f"[-]{name} failed: {cause}")
    lines += [f"warn: no check to exclude: {name}" for name in sorted(excluded - checks.keys())]
    lines.append("healthz check failed" if failed else "healthz check passed")
    text = "\n".join(lines) + "\n" if failed or verbose else "ok"
    return (500 if failed else 200), "text/plain; charset=utf-8", text.encode()


def _cause(name: str, check: Check) -> str | None:
    try:
        return check()
    except Exception:
        log.exception("check failed", check=name)
        return "reason withheld"


def _metrics(path: str, query: Mapping[str, list[str]]) -> Answer | None:  # noqa: ARG001 - a Route
    return (200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY)) if path == "/metrics" else None


def _listen(flag: str, address: str) -> socket.socket:
    """Bind ``host:port``; without a host, on every address of both families."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if ":" not in address or not port.isdecimal() or int(port) > _LAST_PORT:
        raise InvalidSettings(f"{flag}: {address!r} is not of the form :8080, host:8080 or 0")
    where = (host, int(port))
    try:
        if not host and socket.has_dualstack_ipv6():
            return socket.create_server(where, family=socket.AF_INET6, dualstack_ipv6=True)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server(where, family=family)
    except OSError as err:
        raise InvalidSettings(
            f"{flag}: cannot listen on {address!r}: {err}; choose another address, or 0 for none"
        ) from err
