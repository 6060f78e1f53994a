from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from kaito.clock import SystemClock
from kaito.errors import InvalidSettings
from kaito.kube.config import ClusterConfig, from_kubeconfig
from kaito.kube.credentials import Credentials
from kaito.kube.tokens import Plugin
from kaito.kube.transport import Transport
from kaito.sandbox.pki import Authority
from tests.fakes.clock import FakeClock
from tests.unit.kube.server import answer, ok, serving, until
from tests.unit.kube.test_config import kubeconfig
from tests.unit.kube.test_credentials import server_context
from tests.unit.kube.test_transport import GET

V1 = "client.authentication.k8s.io/v1"


def plugin(folder: Path, script: str, *, seconds: float = 30.0, **environment: str) -> Plugin:
    """One whose program is this Python script."""
    path = folder / "plugin.py"
    path.write_text(script)
    return Plugin((sys.executable, str(path)), V1, environment, limit_seconds=seconds)


def prints(version: str = V1, kind: str = "ExecCredential", **status: Any) -> str:
    body = {"apiVersion": version, "kind": kind, "status": status}
    return f"print({json.dumps(json.dumps(body))})\n"


def executable(folder: Path, script: str) -> Path:
    """A program of its own, for a kubeconfig."""
    path = folder / "get-token"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def exec_user(command: str, **more: Any) -> dict[str, Any]:
    return {"exec": {"apiVersion": V1, "command": command, **more}}


def memory_files() -> int:
    handles = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum("memfd" in os.readlink(name) for name in handles if os.path.exists(name))


async def failure(source: Plugin) -> str:
    with pytest.raises(InvalidSettings) as caught:
        await source.read()
    return str(caught.value)


# What comes out -----------------------------------------------------------------------------------


async def test_a_plugins_token_is_kept_until_it_expires(tmp_path: Path) -> None:
    """W21"""
    script = prints(token="abc\n", expirationTimestamp="2027-01-15T08:00:00Z")
    token = await plugin(tmp_path, script).read()
    assert (token.authorization, token.expires) == ("Bearer abc", 1_800_000_000.0)
    assert token.max_age == math.inf


async def test_a_token_without_an_end_is_kept_for_ever(tmp_path: Path) -> None:
    """W21"""
    clock, runs = FakeClock(), tmp_path / "runs"
    script = f"open({str(runs)!r}, 'a').write('x')\n" + prints(token="abc")
    credentials = Credentials(plugin(tmp_path, script), clock)
    for _ in range(3):
        assert (await credentials.current()).authorization == "Bearer abc"
        await clock.advance(1_000_000)
    assert runs.read_text() == "x"


async def test_a_401_runs_the_plugin_again(tmp_path: Path) -> None:
    """W20, W21: what it gave is dropped."""
    runs = tmp_path / "runs"
    script = (
        f"import os; open({str(runs)!r}, 'a').write('x'); n = os.path.getsize({str(runs)!r})\n"
        + prints(token="t%d").replace(")\n", " % n)\n")
    )
    async with serving() as server:
        server.answers = [ok(), answer(401, ""), ok()]
        config = ClusterConfig(host=server.url, token=plugin(tmp_path, script))
        transport = Transport(config, clock=FakeClock(), component="tests")
        for _ in range(2):
            assert (await transport.request(GET)).status == 200
        await transport.close()
    sent = [seen.headers["Authorization"] for seen in server.seen]
    assert sent == ["Bearer t1", "Bearer t1", "Bearer t2"]


async def test_a_plugin_may_give_a_client_certificate_and_then_another(tmp_path: Path) -> None:
    """W21, W22: no token is sent, and the new certificate is shown on a new connection."""
    authority = Authority(tmp_path, now=SystemClock().now())
    pairs = [authority.issue_client(name) for name in ("first", "second")]
    for number, pair in enumerate(pairs):
        texts = (pair.certificate.read_text(), pair.key.read_text())
        status = dict(zip(("clientCertificateData", "clientKeyData"), texts, strict=True))
        (tmp_path / f"out{number}").write_text(
            json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": status})
        )
    current = tmp_path / "out"
    current.symlink_to("out0")
    context = server_context(authority)
    context.load_verify_locations(tmp_path / "ca.crt")
    context.verify_mode = 2  # type: ignore[assignment]  # CERT_REQUIRED
    shown: list[str] = []

    def note(code: int) -> Any:
        async def handler(request: Any) -> Any:
            subject = request.transport.get_extra_info("peercert")["subject"]
            shown.append(dict(part[0] for part in subject)["commonName"])
            return await answer(code, "")(request)

        return handler

    before = memory_files()
    async with serving(context) as server:
        server.answers = [note(200), note(401), note(200)]
        source = plugin(tmp_path, f"print(open({str(current)!r}).read())")
        config = ClusterConfig(host=server.url, ca_file=tmp_path / "ca.crt", token=source)
        transport = Transport(config, clock=FakeClock(), component="tests")
        await transport.prepare()
        await transport.request(GET)
        current.unlink()
        current.symlink_to("out1")
        await transport.request(GET)
        await transport.close()
    assert shown == ["first", "first", "second"]
    assert all("Authorization" not in seen.headers for seen in server.seen)
    assert memory_files() == before  # keys were in memory only, and there while being loaded only


async def test_an_unusable_certificate_leaves_the_old_one(tmp_path: Path) -> None:
    """W21, W22"""
    authority = Authority(tmp_path, now=SystemClock().now())
    async with serving(server_context(authority)) as server:
        server.answers = [ok(), answer(401, ""), ok()]
        good = authority.issue_client("good")
        certificate, key = good.certificate.read_text(), good.key.read_text()
        script = (
            f"import os; first = not os.path.exists({str(tmp_path / 'ran')!r})\n"
            f"open({str(tmp_path / 'ran')!r}, 'w')\n"
            f"if first: {prints(clientCertificateData=certificate, clientKeyData=key)}"
            f"else: {prints(clientCertificateData='none', clientKeyData='none')}"
        )
        config = ClusterConfig(
            host=server.url, ca_file=tmp_path / "ca.crt", token=plugin(tmp_path, script)
        )
        transport = Transport(config, clock=FakeClock(), component="tests")
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                assert (await transport.request(GET)).status == 200
        await transport.close()
    assert [line["event"] for line in logs] == ["kept the old certificates"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("", "JSON|truncated"),
        ("print('hunter2')", "JSON"),
        ("print('{\"kind\": 5}')", "kind"),
        (prints(), "neither a token"),
        (prints(token=" "), "neither a token"),
        (prints(clientCertificateData="hunter2"), "come together"),
        (prints(version="v9", token="hunter2"), f"no ExecCredential of {V1}"),
        (prints(kind="Status", token="hunter2"), "no ExecCredential"),
        (prints(token="hunter2", expirationTimestamp="soon"), "isoformat|time"),
        ("import sys; print('hunter2', file=sys.stderr); sys.exit(3)", "status 3"),
        ("print('hunter2' * 9); import os; os.kill(os.getpid(), 9)", "status -9"),
    ],
)
async def test_a_failed_plugin_is_named_and_nothing_it_wrote_is_repeated(
    tmp_path: Path, script: str, said: str
) -> None:
    """W27"""
    source = plugin(tmp_path, script)
    with pytest.raises(InvalidSettings, match=said) as caught:
        await source.read()
    assert source.command[0] in str(caught.value)
    chain = [caught.value, caught.value.__cause__]
    assert "hunter2" not in f"{chain} {source!r}"


async def test_a_plugin_that_is_not_installed_is_named() -> None:
    assert "no-such-plugin" in await failure(Plugin(("no-such-plugin",), V1, {}))


# How it runs --------------------------------------------------------------------------------------


async def test_both_outputs_are_drained_together(tmp_path: Path) -> None:
    """W21: one that first fills the pipe of stderr once hung for ever."""
    script = "import sys; sys.stderr.write('x' * 1_000_000)\n" + prints(token="abc")
    async with asyncio.timeout(20):
        assert (await plugin(tmp_path, script).read()).authorization == "Bearer abc"


async def test_a_plugin_cannot_read_our_stdin(tmp_path: Path) -> None:
    """W21"""
    script = "import sys; assert sys.stdin.read() == ''\n" + prints(token="abc")
    async with asyncio.timeout(20):
        assert (await plugin(tmp_path, script).read()).authorization == "Bearer abc"


async def test_a_plugin_that_hangs_is_ended_at_its_limit(tmp_path: Path) -> None:
    """W21: with the programs it started, which hold its output open."""
    script = f"import subprocess, sys; subprocess.run(['sleep', '60'])\n{prints(token='abc')}"
    async with asyncio.timeout(20):
        assert "no answer in 0.3 s" in await failure(plugin(tmp_path, script, seconds=0.3))
    assert Plugin(("x",), V1, {}).limit_seconds == 30.0


async def test_a_plugin_nobody_waits_for_any_more_is_ended(tmp_path: Path) -> None:
    """W26, M7: neither program nor thread outlives the cancelled call."""
    pid = tmp_path / "pid"
    script = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    before = threading.active_count()
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(plugin(tmp_path, script).read())
        await until(lambda: pid.exists() and pid.read_text())
        reading.cancel()
    await until(lambda: threading.active_count() <= before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_a_plugin_runs_under_the_operators_loop_and_the_electors(tmp_path: Path) -> None:
    """W21, E10: uvloop in the main thread, asyncio's own in another, both at the same time."""
    path = tmp_path / "plugin.py"
    path.write_text(prints(token="abc"))
    script = (
        "import asyncio, sys, threading, uvloop\n"
        "from kaito.kube.tokens import Plugin\n"
        f"plugin = Plugin((sys.executable, {str(path)!r}), {V1!r}, {{}})\n"
        "async def read():\n"
        "    for _ in range(3): read_tokens.append((await plugin.read()).authorization)\n"
        "read_tokens = []\n"
        "elector = threading.Thread(target=lambda: asyncio.run(read()))\n"
        "elector.start()\n"
        "with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner: runner.run(read())\n"
        "elector.join()\n"
        "print(*read_tokens)\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", script), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert output.split() == b"Bearer abc".split() * 6


async def test_hanging_plugins_delay_no_call(tmp_path: Path) -> None:
    """P18: nor what else needs the loop's pool, which has 32 places at most."""
    gate = tmp_path / "gate"
    script = (
        f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.05)\n"
        + prints(token="abc")
    )
    async with serving() as server, asyncio.timeout(60), asyncio.TaskGroup() as group:
        source = plugin(tmp_path, script)
        hanging = [group.create_task(source.read()) for _ in range(32)]
        await until(lambda: threading.active_count() > 32)
        server.answers = [ok()]
        transport = Transport(server.config, clock=FakeClock(), component="tests")
        assert (await transport.request(GET)).status == 200
        await asyncio.to_thread(lambda: None)
        assert not any(task.done() for task in hanging)
        await transport.close()
        gate.touch()


# What a kubeconfig says of it ---------------------------------------------------------------------


async def told(folder: Path, user: Callable[[str], dict[str, Any]], **cluster: Any) -> Any:
    """The KUBERNETES_EXEC_INFO that the plugin of this kubeconfig sees."""
    out = folder / "told"
    script = f"import os; open({str(out)!r}, 'w').write(os.environ['KUBERNETES_EXEC_INFO'])\n"
    command = executable(folder, script + prints(token="abc"))
    config = await from_kubeconfig(kubeconfig(folder, user=user(str(command)), **cluster))
    assert config.token is not None
    assert (await config.token.read()).authorization == "Bearer abc"
    return json.loads(out.read_text())


async def test_a_plugin_is_told_that_it_is_alone(tmp_path: Path) -> None:
    """W21: there is no terminal, and nothing of the cluster unless it asks."""
    info = await told(tmp_path, lambda c: exec_user(c, interactiveMode="IfAvailable"))
    assert info == {"apiVersion": V1, "kind": "ExecCredential", "spec": {"interactive": False}}


async def test_a_plugin_may_ask_for_the_cluster(tmp_path: Path) -> None:
    """W21: provideClusterInfo."""
    authority = Authority(tmp_path / "pki", now=1_800_000_000.0)
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "x"}}
    info = await told(
        tmp_path,
        lambda c: exec_user(c, provideClusterInfo=True, interactiveMode="Never"),
        **{
            "certificate-authority": "pki/ca.crt",
            "tls-server-name": "kubernetes",
            "proxy-url": "http://proxy:3128",
            "extensions": [{"name": "other", "extension": 1}, extension],
        },
    )
    assert info["spec"]["cluster"] == {
        "server": "https://10.0.0.1:6443/",
        "tls-server-name": "kubernetes",
        "proxy-url": "http://proxy:3128",
        "certificate-authority-data": base64.b64encode(
            authority.ca.certificate.read_bytes()
        ).decode(),
        "config": {"audience": "x"},
    }


async def test_a_plugin_gets_its_arguments_and_variables(tmp_path: Path) -> None:
    """W21, W23: a relative command is relative to the kubeconfig."""
    out = tmp_path / "seen"
    script = f"import os, sys; open({str(out)!r}, 'w').write(sys.argv[1] + os.environ['WHO'])\n"
    executable(tmp_path, script + prints(token="abc"))
    user = exec_user("./get-token", args=["--for="], env=[{"name": "WHO", "value": "me"}])
    config = await from_kubeconfig(kubeconfig(tmp_path, user=user))
    assert config.token is not None
    await config.token.read()
    assert out.read_text() == "--for=me"


@pytest.mark.parametrize(
    ("user", "said"),
    [
        (exec_user("x", interactiveMode="Always"), "terminal"),
        ({"exec": {"command": "x"}}, "apiVersion"),
        (exec_user("x", args="--flag"), "args"),
    ],
)
async def test_a_plugin_that_cannot_be_run_is_an_error(
    tmp_path: Path, user: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidSettings, match=said):
        await from_kubeconfig(kubeconfig(tmp_path, user=user))


async def test_reading_a_kubeconfig_runs_nothing(tmp_path: Path) -> None:
    """W21: a plugin may open a browser; it runs when its credential is needed."""
    config = await from_kubeconfig(kubeconfig(tmp_path, user=exec_user("no-such-plugin")))
    assert isinstance(config.token, Plugin)


async def test_a_daemon_that_a_plugin_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    """W21: it is in a session of its own and holds the plugin's output open."""
    pid = tmp_path / "pid"
    daemon = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],\n"
        "                         start_new_session=True)\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
    )
    source = plugin(tmp_path, daemon + prints(token="t"))
    try:
        async with asyncio.timeout(60):  # a daemon that is waited for takes ten minutes
            assert (await source.read()).authorization == "Bearer t"
    finally:
        os.kill(int(pid.read_text()), 9)
