from __future__ import annotations

import asyncio
import math
import os
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PosixPath

import pytest
import structlog

from kaito.clock import SystemClock
from kaito.errors import InvalidSettings, TransportError
from kaito.kube.config import ClusterConfig, in_cluster
from kaito.kube.credentials import Credentials, Tls
from kaito.kube.tokens import FileToken, Token
from kaito.kube.transport import Transport
from kaito.sandbox.pki import Authority
from tests.fakes.clock import FakeClock, settle
from tests.unit.kube.server import ok, serving
from tests.unit.kube.test_transport import GET, PUT, Tokens


async def test_a_token_file_is_read_again_when_it_is_60_seconds_old(tmp_path: Path) -> None:
    """W19: by the monotonic clock."""
    clock, path = FakeClock(), tmp_path / "token"
    path.write_text("one\n")
    credentials = Credentials(FileToken(path), clock)
    assert (await credentials.current()).authorization == "Bearer one"
    path.write_text("two\n")
    await clock.advance(59)
    assert (await credentials.current()).authorization == "Bearer one"
    await clock.advance(1)
    assert (await credentials.current()).authorization == "Bearer two"


async def test_the_old_token_is_kept_while_the_file_cannot_be_read(tmp_path: Path) -> None:
    """W19"""
    clock, path = FakeClock(), tmp_path / "token"
    path.write_text("one")
    credentials = Credentials(FileToken(path), clock)
    await credentials.current()
    path.unlink()
    await clock.advance(60)
    with structlog.testing.capture_logs() as logs:
        assert (await credentials.current()).authorization == "Bearer one"
    assert [line["event"] for line in logs] == ["kept the old credentials"]


async def test_a_token_that_was_never_readable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings):
        await Credentials(FileToken(tmp_path / "token"), FakeClock()).current()


async def test_all_who_wait_share_one_reading() -> None:
    """W20"""
    source = Tokens()
    credentials = Credentials(source, FakeClock())
    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(credentials.current())
    assert source.reads == 1
    old = await credentials.current()
    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(credentials.current(rejected=old))
    assert source.reads == 2


class Hanging:
    """A plugin that works once and then hangs for half a minute before it fails."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.reads = 0

    async def read(self) -> Token:
        self.reads += 1
        if self.reads > 1:
            await self.clock.sleep(30)
            raise InvalidSettings("no answer in 30 s")
        return Token("Bearer one", max_age=60)


async def test_a_reading_that_failed_is_shared_too() -> None:
    """W20: twenty callers do not wait for it one after another, half a minute each."""
    clock = FakeClock()
    source = Hanging(clock)
    credentials = Credentials(source, clock)
    old = await credentials.current()
    await clock.advance(61)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(credentials.current()) for _ in range(10)]
        calls += [group.create_task(credentials.current(rejected=old)) for _ in range(10)]
        await clock.advance(30)
        assert all(call.done() for call in calls)
    assert {call.result() for call in calls} == {old}
    assert source.reads == 2


async def test_a_call_ends_at_its_deadline_though_its_token_is_not_there() -> None:
    """W2, W20: by the call's own time, not the plugin's."""
    clock = FakeClock()
    async with serving() as server:
        server.answers = [ok()]
        config = ClusterConfig(host=server.url, token=Hanging(clock))
        transport = Transport(config, clock=clock, component="tests")
        await transport.prepare()
        await clock.advance(61)
        async with asyncio.timeout(5):
            with pytest.raises(TransportError, match="no credentials") as caught:
                await transport.request(PUT, timeout=0.05)
        assert not caught.value.may_be_done
        assert not server.seen
        await transport.close()


class Expiring:
    """A plugin whose tokens last for an hour, or as long as said."""

    def __init__(self, clock: FakeClock, seconds: float = 3600.0) -> None:
        self.clock = clock
        self.seconds = seconds
        self.reads = 0

    async def read(self) -> Token:
        self.reads += 1
        return Token(f"Bearer {self.reads}", math.inf, self.clock.now() + self.seconds)


async def test_an_expiring_token_is_replaced_a_minute_before() -> None:
    """W21"""
    clock = FakeClock()
    source = Expiring(clock)
    credentials = Credentials(source, clock)
    await credentials.current()
    await clock.advance(3539)
    await credentials.current()
    assert source.reads == 1
    await clock.advance(1)
    assert (await credentials.current()).authorization == "Bearer 1"  # good for another minute
    await settle()
    assert (await credentials.current()).authorization == "Bearer 2"
    await clock.advance(3600)
    assert (await credentials.current()).authorization == "Bearer 3"  # this one had ended


class Slow(Expiring):
    """One whose first reading is quick, and every later one as the test says."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.go = asyncio.Event()

    async def read(self) -> Token:
        if self.reads:
            await self.go.wait()
        return await super().read()


async def test_a_slow_plugin_holds_up_no_call_while_its_token_is_good() -> None:
    """P18, W21: the election's calls are shorter than a plugin may take."""
    clock = FakeClock()
    source = Slow(clock)
    credentials = Credentials(source, clock)
    await credentials.current()
    await clock.advance(3550)
    for _ in range(5):
        assert (await credentials.current()).authorization == "Bearer 1"
    source.go.set()
    await settle()
    assert (await credentials.current()).authorization == "Bearer 2"
    assert source.reads == 2


async def test_a_caller_who_gives_up_does_not_end_the_reading_others_need() -> None:
    """W20, W21: each waits by its own deadline for the one reading."""
    clock = FakeClock()
    source = Slow(clock)
    credentials = Credentials(source, clock)
    refused = await credentials.current()
    async with asyncio.TaskGroup() as group:
        first, second = (group.create_task(credentials.current(refused)) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        source.go.set()
    assert second.result().authorization == "Bearer 2"
    assert source.reads == 2


async def test_a_reading_under_way_ends_with_its_owner() -> None:
    """M7"""
    clock = FakeClock()
    source = Slow(clock)
    credentials = Credentials(source, clock)
    refused = await credentials.current()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(credentials.current(refused))
        await settle()
        await credentials.close()
        source.go.set()
    assert waiting.cancelled()
    assert source.reads == 1


async def test_a_plugin_with_very_short_tokens_is_not_run_per_request() -> None:
    """W21"""
    clock = FakeClock()
    source = Expiring(clock, seconds=30)
    credentials = Credentials(source, clock)
    for _ in range(5):
        await credentials.current()
    assert source.reads == 1
    await clock.advance(10)
    await credentials.current()
    await settle()
    assert source.reads == 2


# TLS ----------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, now=SystemClock().now())


def server_context(authority: Authority, host: str = "127.0.0.1") -> ssl.SSLContext:
    pair = authority.issue_server("server", hosts=[host])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


async def test_certificates_are_made_anew_when_their_file_changed(
    authority: Authority, tmp_path: Path
) -> None:
    """W22: looked at each 60 s; a broken file keeps the old ones."""
    clock, ca = FakeClock(), tmp_path / "ca.crt"
    tls = Tls(in_cluster(folder=tmp_path, host="a", port="1"), clock)
    first = await tls.context()
    await clock.advance(60)
    assert await tls.context() is first
    content = ca.read_bytes()
    ca.write_bytes(b"half a certif")
    assert await tls.context() is first
    await clock.advance(60)
    with structlog.testing.capture_logs() as logs:
        assert await tls.context() is first
    assert [line["event"] for line in logs] == ["kept the old certificates"]
    ca.write_bytes(content)
    os.utime(ca, ns=(0, 0))
    await clock.advance(60)
    assert await tls.context() is not first


class WatchedPath(PosixPath):
    """Remembers which threads looked at it, and which took its name to read it."""

    stats: set[int] = set()  # noqa: RUF012 - one test's
    names: set[int] = set()  # noqa: RUF012

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        self.stats.add(threading.get_ident())
        return super().stat(follow_symlinks=follow_symlinks)

    def __str__(self) -> str:
        self.names.add(threading.get_ident())
        return super().__str__()


async def test_certificates_are_looked_at_and_read_in_a_thread(
    authority: Authority, tmp_path: Path
) -> None:
    """W22: 25 ms with the system's bundle."""
    ca = WatchedPath(tmp_path / "ca.crt")
    tls = Tls(ClusterConfig(host="https://a", ca_file=ca), FakeClock())
    ca.stats.clear()
    ca.names.clear()
    await tls.context()
    assert ca.stats
    assert ca.names
    assert threading.get_ident() not in ca.stats | ca.names


async def test_concurrent_calls_make_one_context(authority: Authority, tmp_path: Path) -> None:
    """W22"""
    tls = Tls(in_cluster(folder=tmp_path, host="a", port="1"), FakeClock())
    async with asyncio.TaskGroup() as group:
        made = [group.create_task(tls.context()) for _ in range(5)]
    assert len({id(task.result()) for task in made}) == 1


async def test_missing_certificates_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings):
        await Tls(in_cluster(folder=tmp_path, host="a", port="1"), FakeClock()).context()


async def test_a_server_is_trusted_by_its_ca_alone(authority: Authority, tmp_path: Path) -> None:
    async with serving(server_context(authority)) as server:
        server.answers = [ok()]
        stranger = Transport(ClusterConfig(host=server.url), clock=FakeClock(), component="tests")
        with pytest.raises(TransportError):
            await stranger.request(GET)
        await stranger.close()
        for config in (
            ClusterConfig(host=server.url, ca_file=tmp_path / "ca.crt"),
            ClusterConfig(host=server.url, verify=False),
        ):
            transport = Transport(config, clock=FakeClock(), component="tests")
            await transport.prepare()
            assert (await transport.request(GET)).status == 200
            await transport.close()


async def test_the_servers_name_may_be_another_than_the_hosts(
    authority: Authority, tmp_path: Path
) -> None:
    """W23: tls-server-name."""
    async with serving(server_context(authority, "kubernetes.default.svc")) as server:
        server.answers = [ok()]
        config = ClusterConfig(
            host=server.url, ca_file=tmp_path / "ca.crt", server_name="kubernetes.default.svc"
        )
        transport = Transport(config, clock=FakeClock(), component="tests")
        assert (await transport.request(GET)).status == 200
        await transport.close()


async def test_a_client_certificate_is_shown(authority: Authority, tmp_path: Path) -> None:
    """W23"""
    context = server_context(authority)
    context.load_verify_locations(tmp_path / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    pair = authority.issue_client("somebody")
    async with serving(context) as server:
        server.answers = [ok()]
        config = ClusterConfig(
            host=server.url,
            ca_file=tmp_path / "ca.crt",
            cert_file=pair.certificate,
            key_file=pair.key,
        )
        transport = Transport(config, clock=FakeClock(), component="tests")
        assert (await transport.request(GET)).status == 200
        await transport.close()


async def test_a_caller_cancelled_while_a_certificate_is_read_has_looked_at_nothing(
    authority: Authority, tmp_path: Path
) -> None:
    """W22: the next caller gets the new one, not the old one for another minute."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    clock, ca = FakeClock(), tmp_path / "ca.crt"
    tls = Tls(in_cluster(folder=tmp_path, host="a", port="1"), clock)
    first = await tls.context()
    os.utime(ca, ns=(0, 0))
    await clock.advance(60)
    gate = threading.Event()
    async with asyncio.TaskGroup() as group:
        busy = group.create_task(asyncio.to_thread(gate.wait))
        cancelled = group.create_task(tls.context())
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        gate.set()
        await busy
    assert await tls.context() is not first
