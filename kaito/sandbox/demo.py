"""``make demo``: one Workspace from YAML to Ready to gone, live on the screen, with the bill.

Everything a user would do is done by kubectl; what is shown while waiting is read from the API
server and from the sandbox's ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

import kaito
from kaito.api.meta import Owned
from kaito.api.views import decode_owned
from kaito.clock import Clock, SystemClock
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import from_kubeconfig
from kaito.kube.resources import Kind
from kaito.sandbox import lifecycle
from kaito.sandbox.errors import SandboxError
from kaito.sandbox.plan import OPERATOR_LOG
from kaito.sandbox.processes import last_lines

EXAMPLE = "inference/kaito_workspace_phi_3.yaml"
PATIENCE_SECONDS = 240.0
LOOK_SECONDS = 0.25
HTTP_OK = 200

WORKSPACES = Kind("kaito.sh", "v1alpha1", "Workspace", "workspaces", True, decode_owned)
MACHINES = Kind("karpenter.sh", "v1alpha5", "Machine", "machines", False, decode_owned)
NODES = Kind("", "v1", "Node", "nodes", False, decode_owned)
DEPLOYMENTS = Kind("apps", "v1", "Deployment", "deployments", True, decode_owned)


@dataclass(frozen=True, slots=True)
class Scene:
    """What the cluster and the cloud show at one moment."""

    workspaces: tuple[Owned, ...]
    machines: tuple[Owned, ...]
    nodes: tuple[Owned, ...]
    deployments: tuple[Owned, ...]
    ledger: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Phase:
    """One line of the show. ``reached``: a detail (may be empty) once it is, None before."""

    title: str
    reached: Callable[[Scene], str | None]


def condition(obj: Owned, type_: str) -> str:
    """Status of a condition: ``True``, ``False``, ``Unknown``, or empty when it is not there."""
    status = obj.body.get("status")
    found = (status.get("conditions") if isinstance(status, Mapping) else None) or ()
    return next((str(c["status"]) for c in found if c["type"] == type_), "")


def _any_name(objects: tuple[Owned, ...], type_: str = "") -> str | None:
    return next(
        (o.metadata.name for o in objects if not type_ or condition(o, type_) == "True"), None
    )


def _gpu_node(scene: Scene) -> str | None:
    for node in scene.nodes:
        status = node.body.get("status")
        capacity = status.get("allocatable", {}) if isinstance(status, Mapping) else {}
        if condition(node, "Ready") == "True" and capacity.get("nvidia.com/gpu", "0") != "0":
            return f"{node.metadata.name}, {capacity['nvidia.com/gpu']} GPU"
    return None


def _live_vm(scene: Scene) -> str | None:
    alive = [vm for vm in scene.ledger["vms"] if vm["deleted"] is None]
    return f"agent pool {alive[0]['pool']}, {alive[0]['vm_size']}" if alive else None


RISE = (
    Phase("Machine written for slot 0", lambda s: _any_name(s.machines)),
    Phase("VM ordered from AKS", _live_vm),
    Phase("node joined the cluster", lambda s: _any_name(s.nodes)),
    Phase("node Ready, GPU allocatable", _gpu_node),
    Phase("Machine Ready", lambda s: _any_name(s.machines, "Ready")),
    Phase("ResourceReady", lambda s: _any_name(s.workspaces, "ResourceReady")),
    Phase("Deployment created", lambda s: _any_name(s.deployments)),
    Phase("InferenceReady", lambda s: _any_name(s.workspaces, "InferenceReady")),
    Phase("WorkspaceReady", lambda s: _any_name(s.workspaces, "WorkspaceReady")),
)
FALL = (
    Phase("Workspace deleted", lambda s: None if s.workspaces else ""),
    Phase("Machine gone", lambda s: None if s.machines else ""),
    Phase("node gone", lambda s: None if s.nodes else ""),
    Phase("VM gone", lambda s: None if s.ledger["live"] else ""),
)


class DemoFailed(SandboxError):
    """The road was not walked to its end; the message says where it stopped."""

    reason = "DemoFailed"


class Board:
    """The screen: a live table on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._began = clock.monotonic()
        self._rows: list[tuple[str, str, str]] = []
        self._live: Live | None = None

    def progress(self, line: str) -> None:
        """Something that takes a while has come a step further."""
        self._console.print(f"           {line}", style="dim", highlight=False)

    def reached(self, title: str, detail: str = "") -> None:
        """A phase was reached now."""
        seconds = f"{self._clock.monotonic() - self._began:6.1f} s"
        self._rows.append((title, seconds, detail))
        if self._live is None:
            tail = f": {detail}" if detail else ""
            self._console.print(f"{seconds}   {title}{tail}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print as it is, unmarked."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Callable[[str], None]]:
        """Within, a terminal shows a live table of what is reached; yields "now waiting for"."""
        if not self._console.is_terminal:
            yield lambda _title: None
            return
        self._rows.clear()
        with Live(console=self._console, refresh_per_second=8) as live:
            self._live = live
            try:
                yield lambda title: live.update(self._table(title))
                live.update(self._table(""))
            finally:
                self._live = None

    def _table(self, waiting_for: str) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False)
        for title, seconds, detail in self._rows:
            table.add_row(seconds, f"[green]✔[/] {title}", f"[dim]{escape(detail)}[/]")
        if waiting_for:
            seconds = f"{self._clock.monotonic() - self._began:6.1f} s"
            table.add_row(seconds, f"[yellow]…[/] {waiting_for}", "")
        return table


def run(*, keep: bool, folder: Path | None, environ: Mapping[str, str]) -> int:
    """The whole demo; the exit code. Leaves nothing running unless ``keep``.

    Ctrl-C, SIGTERM and SIGHUP at any moment stop everything that was started.
    """
    console = Console()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    folder = folder or lifecycle.default_folder()
    try:
        if lifecycle.status(folder) is not None:
            raise DemoFailed(f"a sandbox is up in {folder}. End it: {_down(folder)}")
        _show(Board(console, SystemClock()), folder, environ, keep=keep)
    except KeyboardInterrupt:
        console.print("interrupted: everything that was started is stopped", style="dim")
        return 130
    except SandboxError as err:
        Console(stderr=True).print(
            f"demo failed: {err}", style="red", highlight=False, markup=False, soft_wrap=True
        )
        return 1
    return 0


def _interrupt(_signum: int, _frame: object) -> None:
    signal.raise_signal(signal.SIGINT)  # asyncio's own way out, wherever the loop is


def _show(board: Board, folder: Path, environ: Mapping[str, str], *, keep: bool) -> None:
    done = False
    probe = _free_port()
    flags = (
        *("--log-format=console", "--metrics-bind-address=0"),
        f"--health-probe-bind-address=127.0.0.1:{probe}",
    )
    try:
        exports = lifecycle.up(
            folder, environ=environ, parent_bound=not keep, operator=flags, progress=board.progress
        )
        board.reached("sandbox is up", "Kubernetes API server, simulated AKS, node agent")
        asyncio.run(_walk(board, folder, probe, {**environ, **exports}, keep=keep))
        done = True
    finally:
        if not (keep and done):
            lifecycle.down(folder, keep_logs=not done)
    if keep:
        board.say("\nLeft up. For kubectl in this shell:\n")
        for name, value in exports.items():
            board.say(f"export {name}={shlex.quote(value)}")
        board.say(f"\nThe operator's log: {folder / OPERATOR_LOG}\nEnd it: {_down(folder)}")
    else:
        board.say("\nEverything is stopped, nothing is left.")


def _down(folder: Path) -> str:
    """The command that ends it, as this shell has to spell it."""
    program = shutil.which("kaito") or str(Path(sys.executable).with_name("kaito"))
    where = "" if folder == lifecycle.default_folder() else f" --dir {shlex.quote(str(folder))}"
    return f"{program} sandbox down{where}"


async def _walk(
    board: Board, folder: Path, probe: int, env: Mapping[str, str], *, keep: bool
) -> None:
    """Apply, watch it rise, show it; then delete, watch it fall, show the bill."""
    clock = SystemClock()
    client = await connect(
        await from_kubeconfig(Path(env["KUBECONFIG"])), clock=clock, component="demo"
    )
    try:
        async with aiohttp.ClientSession() as http:
            stage = Stage(board, client, http, folder, env, clock)
            await stage.operator_ready(probe)
            stage.kubectl("apply", "-f", str(example()))
            board.reached("applied", f"kubectl apply -f {EXAMPLE}")
            await stage.watch(RISE)
            stage.show("get", "workspace,machine,node,deploy,svc")
            if keep:
                return
            name = next(w.metadata.name for w in await client.list(WORKSPACES))
            stage.kubectl("delete", "workspace", name, "--wait=false")
            board.reached("deletion asked for", f"kubectl delete workspace {name}")
            await stage.watch(FALL)
            ledger = await stage.ledger()
    finally:
        await client.close()
    board.say(
        f"\nAKS ledger: VMs created {len(ledger['vms'])}, left {ledger['live']}, "
        f"most at one time {ledger['peak']}, "
        f"billed {sum(vm['billed_seconds'] for vm in ledger['vms']):.0f} s"
    )
    if ledger["live"] or len(ledger["vms"]) != 1:
        raise DemoFailed("the ledger is not what it should be: one VM created, none left")


@dataclass(frozen=True, slots=True)
class Stage:
    """What the show is played on."""

    board: Board
    client: KubeClient
    http: aiohttp.ClientSession
    folder: Path
    env: Mapping[str, str]
    clock: Clock

    def kubectl(self, *args: str) -> str:
        """Run kubectl; what it printed."""
        done = subprocess.run(
            ["kubectl", *args], env=dict(self.env), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DemoFailed(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def show(self, *args: str) -> None:
        """Run kubectl and print both the command and its answer."""
        self.board.say(f"\n$ kubectl {' '.join(args)}\n{self.kubectl(*args)}")

    async def operator_ready(self, port: int) -> None:
        """Until its readiness probe says so."""
        url = f"http://127.0.0.1:{port}/readyz"
        ends = self.clock.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with self.http.get(url) as answer:
                    if answer.status == HTTP_OK:
                        break
            self._still_hopeful("the operator is ready", ends)
            await self.clock.sleep(LOOK_SECONDS)
        self.board.reached("operator is ready", "workspace and machine controllers, own process")

    async def watch(self, phases: Sequence[Phase]) -> None:
        """Until each phase in turn was reached."""
        ends = self.clock.monotonic() + PATIENCE_SECONDS
        waiting = list(phases)
        with self.board.watching() as waits_for:
            while waiting:
                scene = await self._scene()
                while waiting and (detail := waiting[0].reached(scene)) is not None:
                    self.board.reached(waiting.pop(0).title, detail)
                if waiting:
                    waits_for(waiting[0].title)
                    self._still_hopeful(waiting[0].title, ends)
                    await self.clock.sleep(LOOK_SECONDS)

    async def ledger(self) -> Mapping[str, Any]:
        """The simulated cloud's bill."""
        url = f"{self.env['AZURE_RESOURCE_MANAGER_URL']}/sandbox/ledger"
        async with self.http.get(url) as answer:
            bill: Mapping[str, Any] = await answer.json()
            return bill

    async def _scene(self) -> Scene:
        listed = self.client.list
        return Scene(
            await listed(WORKSPACES),
            await listed(MACHINES),
            await listed(NODES),
            await listed(DEPLOYMENTS),
            await self.ledger(),
        )

    def _still_hopeful(self, title: str, ends: float) -> None:
        log = last_lines(self.folder / OPERATOR_LOG)
        if lifecycle.status(self.folder) is None:
            raise DemoFailed(f"the operator or the sandbox ended. {log}")
        if self.clock.monotonic() > ends:
            raise DemoFailed(f"not reached in {PATIENCE_SECONDS:.0f} s: {title}. {log}")


def example() -> Path:
    """The manifest, inside an installed package or at the root of a checkout."""
    package = Path(kaito.__file__).parent
    packed = package / "_examples"
    return (packed if packed.is_dir() else package.parent / "examples") / EXAMPLE


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
