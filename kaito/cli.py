"""The command line, thin: a command resolves its input and calls the room that does the work."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer.models import OptionInfo

from kaito import settings
from kaito.errors import InvalidSettings, KaitoError

app = typer.Typer(
    name="kaito",
    help="Kaito: one small YAML becomes a running model, with the GPU nodes it needs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
sandbox = typer.Typer(
    help="A whole Kaito on one computer: real control plane, simulated AKS, no GPU, no cloud.",
    no_args_is_help=True,
)
app.add_typer(sandbox, name="sandbox")


def _flag(help_text: str, variable: str) -> OptionInfo:
    option: OptionInfo = typer.Option(help=f"{help_text} [{variable}]", show_default=False)
    return option


@app.command()
def operator(
    controllers: Annotated[
        str | None, _flag("Which controllers run: workspace,machine", "KAITO_CONTROLLERS")
    ] = None,
    kubeconfig: Annotated[
        str | None, _flag("Else in-cluster, else the default kubeconfig", "KAITO_KUBECONFIG")
    ] = None,
    namespace: Annotated[
        str | None, _flag("Watch Workspaces of one namespace; default all", "KAITO_NAMESPACE")
    ] = None,
    metrics_bind_address: Annotated[
        str | None, _flag("Default :8080; 0 is off", "KAITO_METRICS_BIND_ADDRESS")
    ] = None,
    health_probe_bind_address: Annotated[
        str | None, _flag("Default :8081; 0 is off", "KAITO_HEALTH_PROBE_BIND_ADDRESS")
    ] = None,
    leader_elect: Annotated[
        bool | None,
        typer.Option(
            "--leader-elect/--no-leader-elect",
            help="Run only while holding the Lease; default on [KAITO_LEADER_ELECT]",
            show_default=False,
        ),
    ] = None,
    leader_election_namespace: Annotated[
        str | None, _flag("Where the Lease is", "KAITO_LEADER_ELECTION_NAMESPACE")
    ] = None,
    workers: Annotated[
        str | None, _flag("Workers per controller; default 8", "KAITO_WORKERS")
    ] = None,
    node_api: Annotated[
        str | None, _flag("machine or nodeclaim; default machine", "KAITO_NODE_API")
    ] = None,
    cloud_provider: Annotated[
        str | None, _flag("azure or aws; default azure", "KAITO_CLOUD_PROVIDER")
    ] = None,
    provisioner: Annotated[
        str | None, _flag("agentpool or byo; default agentpool", "KAITO_PROVISIONER")
    ] = None,
    webhook: Annotated[
        bool | None,
        typer.Option(
            "--webhook/--no-webhook",
            help="Serve admission; default off [KAITO_WEBHOOK]",
            show_default=False,
        ),
    ] = None,
    feature_gates: Annotated[str | None, _flag("name=bool,…", "KAITO_FEATURE_GATES")] = None,
    launch_retry_max: Annotated[
        str | None,
        _flag("Seconds; caps every wait after a refused launch", "KAITO_LAUNCH_RETRY_MAX"),
    ] = None,
    log_level: Annotated[
        str | None, _flag("debug, info, warning or error", "KAITO_LOG_LEVEL")
    ] = None,
    log_format: Annotated[str | None, _flag("json or console", "KAITO_LOG_FORMAT")] = None,
    service_account_dir: Annotated[
        str | None,
        _flag("Folder of the pod's token, for in-cluster use", "KAITO_SERVICE_ACCOUNT_DIR"),
    ] = None,
) -> None:
    """Run the operator until SIGTERM. Exit codes: 0 clean, 1 leadership lost, 2 bad settings."""
    flags = {
        "controllers": controllers,
        "kubeconfig": kubeconfig,
        "namespace": namespace,
        "metrics-bind-address": metrics_bind_address,
        "health-probe-bind-address": health_probe_bind_address,
        "leader-elect": _text(leader_elect),
        "leader-election-namespace": leader_election_namespace,
        "workers": workers,
        "node-api": node_api,
        "cloud-provider": cloud_provider,
        "provisioner": provisioner,
        "webhook": _text(webhook),
        "feature-gates": feature_gates,
        "launch-retry-max": launch_retry_max,
        "log-level": log_level,
        "log-format": log_format,
        "service-account-dir": service_account_dir,
    }
    try:
        resolved = settings.from_environment(flags)
    except InvalidSettings as err:
        _fail(err, code=2)
    from kaito.app import main

    raise typer.Exit(main(resolved))


@app.command()
def crds(
    write: Annotated[
        Path | None, typer.Option(help="Write one file per CRD into this folder instead.")
    ] = None,
) -> None:
    """Print the CustomResourceDefinitions, generated from the models: pipe into kubectl apply."""
    from kaito.api.crd import documents

    if write is None:
        typer.echo("---\n".join(text for _, text in sorted(documents().items())), nl=False)
        return
    write.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (write / name).write_text(text, encoding="utf-8")


@app.command()
def presets() -> None:
    """List the model presets with what each needs."""
    from rich.console import Console
    from rich.table import Table

    from kaito.catalog.presets import load_presets

    table = Table("PRESET", "IMAGE TAG", "GPUS", "GPU MEMORY GIB", "DISK GIB", box=None)
    for preset in sorted(load_presets().values(), key=lambda p: p.name):
        need = preset.inference
        table.add_row(
            preset.name,
            preset.image.tag,
            str(need.gpu_count),
            str(need.total_gpu_memory_gib),
            str(need.disk_gib),
        )
    Console().print(table)


SandboxDir = Annotated[
    Path | None,
    typer.Option("--dir", help="Folder of the sandbox's data and state.", show_default=False),
]


@sandbox.command("up")
def sandbox_up(
    directory: SandboxDir = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Use this cluster instead of an own control plane.")
    ] = None,
) -> None:
    """Start it in the background; print the variables that kubectl and the operator need.

    Use it as: eval "$(kaito sandbox up)"
    """
    from kaito.sandbox import lifecycle

    try:
        exports = lifecycle.up(
            directory, kubeconfig=kubeconfig, environ=settings.environment(), progress=_progress
        )
    except lifecycle.SandboxError as err:
        _fail(err)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    for name, value in exports.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@sandbox.command("build")
def sandbox_build() -> None:
    """Find the control plane's programs, or build them into the user's cache; print where."""
    from kaito.sandbox import binaries
    from kaito.sandbox.errors import SandboxError

    try:
        found = binaries.ensure(settings.environment(), progress=_progress)
    except SandboxError as err:
        _fail(err)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    for program in (found.etcd, found.apiserver, found.controller_manager, found.scheduler):
        typer.echo(program)
    typer.echo(found.kubectl)


@sandbox.command("down")
def sandbox_down(directory: SandboxDir = None) -> None:
    """Stop exactly what ``up`` started, and remove its data."""
    from kaito.sandbox import lifecycle

    try:
        was_up = lifecycle.down(directory)
    except lifecycle.SandboxError as err:
        _fail(err)
    _progress("sandbox stopped" if was_up else "no sandbox was up")


@sandbox.command("demo")
def sandbox_demo(
    keep: Annotated[bool, typer.Option(help="Leave everything up at the end.")] = False,
    directory: SandboxDir = None,
) -> None:
    """Bring up a Workspace from nothing, show each phase, delete it, show the bill."""
    from kaito.sandbox import demo

    raise typer.Exit(demo.run(keep=keep, folder=directory, environ=settings.environment()))


def _text(flag: bool | None) -> str | None:
    return None if flag is None else str(flag).lower()


def _progress(line: str) -> None:
    typer.echo(line, err=True)


def _fail(err: KaitoError, code: int = 1) -> NoReturn:
    typer.echo(f"kaito: {err}", err=True)
    sys.exit(code)
