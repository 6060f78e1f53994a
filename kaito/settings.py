"""Frozen settings from flags and environment, validated once. The only reader of ``os.environ``.

Each flag is also an environment variable, ``KAITO_`` and its name in capitals; the flag wins. The
original's variables (``ARM_SUBSCRIPTION_ID``, ``PRESET_REGISTRY_NAME`` …) are read as they are.
Errors name the flag and the variable: InvalidSettings ends the process with 2.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from kaito import constants
from kaito.errors import InvalidSettings
from kaito.logs import LogFormat

T = TypeVar("T")
W = TypeVar("W", bound=str)
Controller = Literal["workspace", "machine"]
NodeApi = Literal["machine", "nodeclaim"]
CloudProvider = Literal["azure", "aws"]
Provisioner = Literal["agentpool", "byo"]

NODE_APIS: tuple[NodeApi, ...] = ("machine", "nodeclaim")
CLOUD_PROVIDERS: tuple[CloudProvider, ...] = ("azure", "aws")
PROVISIONERS: tuple[Provisioner, ...] = ("agentpool", "byo")
LOG_FORMATS: tuple[LogFormat, ...] = ("json", "console")
LOG_LEVELS = ("debug", "info", "warning", "error")

SERVICE_ACCOUNT_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"
PUBLIC_ARM = "https://management.azure.com"


@dataclass(frozen=True, slots=True)
class InClusterSettings:
    """Where a pod finds its API server and its token."""

    service_account_dir: Path
    host: str
    port: str


@dataclass(frozen=True, slots=True)
class AzureSettings:
    """The AKS cluster that the node side orders machines for."""

    arm_url: str
    subscription_id: str
    resource_group: str
    cluster_name: str
    tenant_id: str
    client_id: str
    federated_token_file: str
    authority_host: str

    @property
    def is_loopback(self) -> bool:
        """A stand-in for ARM on this computer: plain http, and no credential is asked for."""
        return urlsplit(self.arm_url).scheme == "http"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything ``kaito operator`` can be told. Durations in seconds."""

    controllers: tuple[Controller, ...]
    kubeconfig: Path | None
    in_cluster: InClusterSettings | None
    namespace: str
    metrics_bind_address: str
    health_probe_bind_address: str
    leader_elect: bool
    leader_election_namespace: str
    workers: int
    node_api: NodeApi
    cloud_provider: CloudProvider
    provisioner: Provisioner
    webhook: bool
    launch_retry_max: float | None
    log_level: str
    log_format: LogFormat
    preset_registry: str
    identity: str
    azure: AzureSettings | None
    feature_gates: Mapping[str, bool] = field(default_factory=dict)


def from_environment(flags: Mapping[str, str | None]) -> Settings:
    """Settings of this process. ``flags``: flag name to its text, None where not given.

    Raises:
        InvalidSettings: as ``resolve`` does, or there is no cluster to be found.
    """
    settings = resolve(flags, os.environ)
    if settings.in_cluster is None and settings.kubeconfig is None:
        named = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
        if not any(Path(path).is_file() for path in named.split(os.pathsep) if path):
            raise InvalidSettings(
                f"--kubeconfig (KAITO_KUBECONFIG): no cluster to be found: this is no pod, and "
                f"{named} is no file. Name a kubeconfig by the flag or by KUBECONFIG"
            )
    return settings


def environment() -> Mapping[str, str]:
    """The process's environment, for rooms that may not read it themselves."""
    return os.environ


def resolve(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Settings:
    """Flags over environment over defaults.

    Raises:
        InvalidSettings: names the flag, its variable, what was given and what is allowed.
    """
    source = _Source(flags, environ)
    controllers = source.get("controllers", _controllers, "workspace,machine")
    provisioner = source.get("provisioner", _one_of(PROVISIONERS), "agentpool")
    kubeconfig = source.get("kubeconfig", _path, "")
    in_cluster = _in_cluster(source) if kubeconfig is None else None
    webhook = source.get("webhook", _boolean, "false")
    if webhook:
        raise InvalidSettings(
            "--webhook (KAITO_WEBHOOK): this release has no admission server; the CRD's rules and "
            "the validate step check every Workspace. Leave it off"
        )
    node_api = source.get("node-api", _one_of(NODE_APIS), "machine")
    if node_api == "nodeclaim":
        raise InvalidSettings(
            "--node-api (KAITO_NODE_API): this release orders nodes by Machine only; use machine"
        )
    cloud = source.get(
        "cloud-provider", _one_of(CLOUD_PROVIDERS), environ.get("CLOUD_PROVIDER", "azure")
    )
    orders_nodes = "machine" in controllers and provisioner == "agentpool"
    if orders_nodes and cloud == "aws":
        raise InvalidSettings(
            "--provisioner (KAITO_PROVISIONER): agentpool orders AKS nodes; with --cloud-provider "
            "aws use byo, or run the node side of another provisioner with --controllers workspace"
        )
    return Settings(
        controllers=controllers,
        kubeconfig=kubeconfig,
        in_cluster=in_cluster,
        namespace=source.get("namespace", lambda text: text and _dns_label(text), ""),
        metrics_bind_address=source.get("metrics-bind-address", _address, ":8080"),
        health_probe_bind_address=source.get("health-probe-bind-address", _address, ":8081"),
        leader_elect=source.get("leader-elect", _boolean, "true"),
        leader_election_namespace=source.get(
            "leader-election-namespace", _dns_label, _own_namespace(environ, in_cluster)
        ),
        workers=source.get("workers", _positive_int, "8"),
        node_api=node_api,
        cloud_provider=cloud,
        provisioner=provisioner,
        webhook=webhook,
        launch_retry_max=source.get("launch-retry-max", _optional_seconds, ""),
        log_level=source.get("log-level", _one_of(LOG_LEVELS), "info"),
        log_format=source.get("log-format", _one_of(LOG_FORMATS), "json"),
        preset_registry=environ.get("PRESET_REGISTRY_NAME", constants.DEFAULT_PRESET_REGISTRY),
        identity=environ.get("POD_NAME", "") or socket.gethostname(),
        azure=_azure(environ) if orders_nodes else None,
        feature_gates=source.get("feature-gates", _gates, ""),
    )


class _Source:
    """One place that knows how a setting is spelt, so that every error can say it."""

    def __init__(self, flags: Mapping[str, str | None], environ: Mapping[str, str]) -> None:
        self._flags = flags
        self.environ = environ

    def get(self, flag: str, parse: Callable[[str], T], default: str) -> T:
        variable = "KAITO_" + flag.upper().replace("-", "_")
        given = self._flags.get(flag)
        text = (self.environ.get(variable) or default) if given is None else given
        try:
            return parse(text)
        except ValueError as err:
            raise InvalidSettings(f"--{flag} ({variable}): {text!r} is wrong: {err}") from err


def _one_of(words: Sequence[W]) -> Callable[[str], W]:
    def parse(text: str) -> W:
        for word in words:
            if word == text:
                return word
        raise ValueError(f"use one of {', '.join(words)}")

    return parse


def _controllers(text: str) -> tuple[Controller, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names or not set(names) <= {"workspace", "machine"}:
        raise ValueError("use workspace, machine or workspace,machine")
    return names  # type: ignore[return-value]  # checked against the two literals above


def _boolean(text: str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    try:
        return known[text.strip().lower()]
    except KeyError:
        raise ValueError("use true or false") from None


def _positive_int(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError("use a whole number from 1 up")
    return int(text)


def _dns_label(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError("use the name of a namespace")
    return text


def _optional_seconds(text: str) -> float | None:
    if not text:
        return None
    with suppress(ValueError):
        if 0 < (seconds := float(text)) < float("inf"):
            return seconds
    raise ValueError("use a number of seconds over 0, or leave it out for no cap")


def _path(text: str) -> Path | None:
    if not text:
        return None
    path = Path(text).expanduser()
    if not path.is_file():
        raise ValueError("there is no such file")
    return path


def _token_folder(text: str) -> Path | None:
    if not text:
        return None
    if not (Path(text) / "token").is_file():
        raise ValueError("there is no file called token in it")
    return Path(text)


def _address(text: str) -> str:
    if text == "0":
        return text
    _, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError("use :PORT, HOST:PORT, or 0 for off")
    return text


def _gates(text: str) -> Mapping[str, bool]:
    """``name=bool,…``; the last of two equal names wins, as upstream's parser has it."""
    gates: dict[str, bool] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name != "Karpenter":
            raise ValueError(
                f"invalid feature gate {part!r}; the only gate is Karpenter=true|false"
            )
        gates[name] = _boolean(value)
    if gates.get("Karpenter"):
        raise ValueError("this release orders nodes by Machine only: Karpenter must be false")
    return gates


def _in_cluster(source: _Source) -> InClusterSettings | None:
    """A pod's way in: it has the folder, host and port. Else the default kubeconfig is used."""
    folder = source.get("service-account-dir", _token_folder, "") or Path(SERVICE_ACCOUNT_DIR)
    host = source.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = source.environ.get("KUBERNETES_SERVICE_PORT", "")
    if not (host and port and (folder / "token").is_file()):
        return None
    return InClusterSettings(folder, host, port)


def _own_namespace(environ: Mapping[str, str], in_cluster: InClusterSettings | None) -> str:
    if named := environ.get("SYSTEM_NAMESPACE") or environ.get("POD_NAMESPACE"):
        return named
    if in_cluster is not None:
        file = in_cluster.service_account_dir / "namespace"
        if file.is_file():
            return file.read_text(encoding="utf-8").strip()
    return "default"


def _azure(environ: Mapping[str, str]) -> AzureSettings:
    arm_url = environ.get("AZURE_RESOURCE_MANAGER_URL", PUBLIC_ARM).strip().rstrip("/")
    parts = urlsplit(arm_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidSettings(
            f"AZURE_RESOURCE_MANAGER_URL: {arm_url!r} is no http(s) address of ARM"
        )
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise InvalidSettings(
            f"AZURE_RESOURCE_MANAGER_URL: {arm_url!r}: plain http is for loopback only; use https"
        )

    def required(name: str) -> str:
        value = environ.get(name, "").strip()
        if not value:
            raise InvalidSettings(
                f"{name} is not set: the machine controller needs it to find the AKS cluster. Set "
                "it, or run with --controllers workspace or --provisioner byo"
            )
        return value

    loopback = parts.scheme == "http"
    return AzureSettings(
        arm_url=arm_url,
        subscription_id=required("ARM_SUBSCRIPTION_ID"),
        resource_group=required("ARM_RESOURCE_GROUP"),
        cluster_name=required("AZURE_CLUSTER_NAME"),
        tenant_id=environ.get("AZURE_TENANT_ID", "") if loopback else required("AZURE_TENANT_ID"),
        client_id=environ.get("AZURE_CLIENT_ID", "").strip(),
        federated_token_file=environ.get("AZURE_FEDERATED_TOKEN_FILE", "").strip(),
        authority_host=environ.get("AZURE_AUTHORITY_HOST", "").strip(),
    )
