"""What a request says who we are, and the sources it is read from: a file, a credential plugin.

A plugin is a program that a kubeconfig names; it prints a token, or a client certificate. It runs
as a child of its own process group, is never interactive, and what it writes appears nowhere else.
"""

from __future__ import annotations

import asyncio
import base64
import math
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from kaito.clock import parse_rfc3339
from kaito.errors import InvalidSettings

_FILE_SECONDS: Final = 60.0
LIMIT_SECONDS: Final = 30.0
_CONFIG_EXTENSION: Final = "client.authentication.k8s.io/exec"
_TOLD: Final = ("server", "tls-server-name", "insecure-skip-tls-verify", "proxy-url")


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """A credential, and how long it may be used without another look.

    ``authorization``: value of that header, empty: none is sent. ``max_age``: seconds since it was
    read. ``expires``: seconds since the epoch, when known. ``certificate``: a client certificate's
    chain and key (PEM), for connections; empty: the cluster's own, if any.
    """

    authorization: str
    max_age: float = math.inf
    expires: float = math.inf
    certificate: bytes = b""


class TokenSource(Protocol):
    """Where tokens come from."""

    async def read(self) -> Token:
        """Read it anew.

        Raises:
            InvalidSettings: it cannot be read; names the file or plugin.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileToken:
    """A bearer token in a file that someone else renews."""

    path: Path

    async def read(self) -> Token:
        """See TokenSource."""
        try:
            text = await asyncio.to_thread(self.path.read_text)
        except (OSError, ValueError) as err:
            raise InvalidSettings(f"cannot read the token file {self.path}: {err}") from err
        if not (token := text.strip()):
            raise InvalidSettings(f"the token file {self.path} is empty")
        return Token(f"Bearer {token}", max_age=_FILE_SECONDS)


class _Exec(msgspec.Struct, frozen=True, rename="camel"):
    """``users[].user.exec`` of a kubeconfig."""

    api_version: str
    command: str
    args: tuple[str, ...] | None = None
    env: tuple[dict[str, str], ...] | None = None
    interactive_mode: str = "IfAvailable"
    provide_cluster_info: bool = False


class _Credential(msgspec.Struct, frozen=True, rename="camel"):
    """What a plugin prints."""

    kind: str
    api_version: str
    status: dict[str, str]


@dataclass(frozen=True, slots=True, repr=False)
class Plugin:
    """A program and what it is told: a TokenSource."""

    command: tuple[str, ...]
    api_version: str
    environment: Mapping[str, str]
    limit_seconds: float = LIMIT_SECONDS

    async def read(self) -> Token:
        """See TokenSource."""
        try:
            return _token(await self._output(), self.api_version)
        except (OSError, ValueError) as err:  # msgspec's are ValueErrors, and quote nothing
            what = f"the credential plugin {self.command[0]}"
            raise InvalidSettings(f"cannot use {what}: {err}") from None

    async def _output(self) -> bytes:
        # Into memory, not a pipe: that would be waited for as long as anything it left behind,
        # a daemon in a session of its own say, holds the other end.
        with os.fdopen(os.memfd_create("credential"), "r+b", buffering=0) as output:
            process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.DEVNULL,
                env={**os.environ, **self.environment},  # noqa: TID251 - inherited, not read
                start_new_session=True,  # ended together with the programs it starts
            )
            try:
                async with asyncio.timeout(self.limit_seconds):
                    await process.wait()
            except TimeoutError:
                raise TimeoutError(f"no answer in {self.limit_seconds:g} s") from None
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
            if process.returncode:
                raise ValueError(f"it ended with status {process.returncode}")
            output.seek(0)
            return output.read()


def plugin(
    config: Mapping[str, Any], cluster: Mapping[str, Any], *, ca: bytes, folder: Path
) -> Plugin:
    """The plugin of a kubeconfig's user, for one of its clusters, whose certificates are ``ca``.

    ``folder``: where the kubeconfig is, which a relative command is relative to.

    Raises:
        InvalidSettings: it is not described as one, or needs a terminal.
    """
    try:
        spec = msgspec.convert(config, _Exec)
        environment = {variable["name"]: variable["value"] for variable in spec.env or ()}
    except (msgspec.ValidationError, LookupError) as err:
        raise InvalidSettings(f"users.user.exec of the kubeconfig: {err}") from err
    if spec.interactive_mode == "Always":
        raise InvalidSettings(f"the credential plugin {spec.command} needs a terminal")
    told: dict[str, Any] = {"interactive": False}
    if spec.provide_cluster_info:
        told["cluster"] = _cluster_info(cluster, ca)
    info = {"apiVersion": spec.api_version, "kind": "ExecCredential", "spec": told}
    environment["KUBERNETES_EXEC_INFO"] = msgspec.json.encode(info).decode()
    command = str(folder / spec.command) if "/" in spec.command else spec.command
    return Plugin((command, *(spec.args or ())), spec.api_version, environment)


def _cluster_info(cluster: Mapping[str, Any], ca: bytes) -> dict[str, Any]:
    info = {name: cluster[name] for name in _TOLD if cluster.get(name)}
    if ca:
        info["certificate-authority-data"] = base64.b64encode(ca).decode()
    for extension in cluster.get("extensions") or ():
        if extension["name"] == _CONFIG_EXTENSION:
            info["config"] = extension["extension"]
    return info


def _token(output: bytes, api_version: str) -> Token:
    answer = msgspec.json.decode(output, type=_Credential)
    if (answer.kind, answer.api_version) != ("ExecCredential", api_version):
        raise ValueError(f"no ExecCredential of {api_version}")
    certificate = answer.status.get("clientCertificateData", "")
    key = answer.status.get("clientKeyData", "")
    if bool(certificate) != bool(key):
        raise ValueError("a client certificate and its key come together")
    if not (token := answer.status.get("token", "").strip()) and not key:
        raise ValueError("neither a token nor a client certificate")
    until = answer.status.get("expirationTimestamp")
    return Token(
        f"Bearer {token}" if token else "",
        expires=parse_rfc3339(until) if until else math.inf,
        certificate=f"{certificate}\n{key}".encode() if key else b"",
    )
