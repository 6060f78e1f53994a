"""How the API server is reached and what we say who we are.

Inside a cluster: the service account's folder, read by hand. Elsewhere: kubeconfig files, read by
kubernetes_asyncio, whose import (66 MB) is paid on that path alone. No request is made here.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from kaito.errors import InvalidSettings

_FILE_SECONDS: Final = 60.0
_PLUGIN_SECONDS: Final = 30.0

R = TypeVar("R")


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """A value of the Authorization header, and how long it may be used without another look.

    ``max_age``: seconds since it was read. ``expires``: seconds since the epoch, when known.
    """

    authorization: str
    max_age: float = math.inf
    expires: float = math.inf


class TokenSource(Protocol):
    """Where tokens come from."""

    async def read(self) -> Token:
        """Read it anew.

        Raises:
            InvalidSettings: it cannot be read; names the file or plugin.
        """
        ...


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """All that a connection needs. ``host``: URL without a trailing slash.

    ``server_name``: the name expected in the server's certificate, None: the host's.
    """

    host: str
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    token: TokenSource | None = None
    verify: bool = True
    server_name: str | None = None
    proxy: str | None = None


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


@dataclass(frozen=True, slots=True)
class KubeconfigToken:
    """What a kubeconfig's user says: a token, a token file, a password, a plugin, OIDC."""

    path: Path | None

    async def read(self) -> Token:
        """See TokenSource."""
        _, token = await _load(self.path)
        if token is None:
            raise InvalidSettings(f"{_named(self.path)} has no token any more")
        return token


def in_cluster(*, folder: Path, host: str, port: str) -> ClusterConfig:
    """As a pod: ``folder`` is its service account's mount, host and port its environment's."""
    address = f"[{host}]" if ":" in host else host
    return ClusterConfig(
        host=f"https://{address}:{port}",
        ca_file=folder / "ca.crt",
        token=FileToken(folder / "token"),
    )


async def from_kubeconfig(path: Path | None) -> ClusterConfig:
    """As kubectl would with this file; None: with ``KUBECONFIG`` or ``~/.kube/config``.

    Raises:
        InvalidSettings: it cannot be read or used; names the file.
    """
    config, _ = await _load(path)
    return config


def tls_files(config: ClusterConfig) -> tuple[object, ...]:
    """Changes when a CA or client certificate file does. Reads file times: call it in a thread.

    Raises:
        InvalidSettings: one is missing; names it.
    """
    paths = (config.ca_file, config.cert_file, config.key_file)
    try:
        stats = [path.stat() for path in paths if path]
    except OSError as err:
        raise InvalidSettings(f"cannot read the certificate {err.filename}: {err}") from err
    return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in stats)


def tls_context(config: ClusterConfig) -> ssl.SSLContext:
    """Reads files, and takes 25 ms with the system's CA bundle: call it in a thread.

    Raises:
        InvalidSettings: a CA or client certificate cannot be used; names the files.
    """
    try:
        context = ssl.create_default_context(cafile=str(config.ca_file) if config.ca_file else None)
        if not config.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if config.cert_file is not None:
            context.load_cert_chain(config.cert_file, config.key_file)
    except OSError as err:  # ssl.SSLError is one
        files = [str(f) for f in (config.ca_file, config.cert_file, config.key_file) if f]
        raise InvalidSettings(f"cannot use the certificates {', '.join(files)}: {err}") from err
    return context


async def _load(path: Path | None) -> tuple[ClusterConfig, Token | None]:
    try:
        return await _in_own_thread(lambda: _load_blocking(path))
    except TimeoutError as err:
        raise InvalidSettings(
            f"{_named(path)}: its credential plugin gave no answer in {_PLUGIN_SECONDS:.0f} s"
        ) from err


async def _in_own_thread(function: Callable[[], R]) -> R:
    """Not to_thread: a plugin that hangs would hold a place of the pool that DNS needs too."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="kubeconfig")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, function)
    finally:
        executor.shutdown(wait=False)


def _load_blocking(path: Path | None) -> tuple[ClusterConfig, Token | None]:
    import yaml
    from kubernetes_asyncio import config as kubeconfig
    from kubernetes_asyncio.client import Configuration
    from kubernetes_asyncio.config.kube_config import _cleanup_temp_files, _temp_files

    # It logs what a failed plugin wrote, and what is raised here anyway.
    logging.getLogger("kubernetes_asyncio.config.kube_config").setLevel(logging.CRITICAL)
    found = Configuration()

    async def load() -> object:
        async with asyncio.timeout(_PLUGIN_SECONDS):
            return await kubeconfig.load_kube_config(
                config_file=None if path is None else str(path),
                client_configuration=found,
                persist_config=False,
            )

    try:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            loader = runner.run(load())
    except TimeoutError:
        raise
    except (
        kubeconfig.ConfigException,
        yaml.YAMLError,
        OSError,
        ValueError,
        LookupError,
        TypeError,  # a list where a mapping should be
        AttributeError,
        AssertionError,
    ) as err:
        raise InvalidSettings(f"cannot use {_named(path)}: {_redacted(err)}") from err
    authorization = found.api_key.get("BearerToken")
    inline = set(_temp_files.values())
    ca_file, cert_file, key_file = (
        _in_memory(name) if name in inline else _path(name)
        for name in (found.ssl_ca_cert, found.cert_file, found.key_file)
    )
    _cleanup_temp_files()  # at exit is too late: a killed process would leave its key on the disk
    config = ClusterConfig(
        host=str(found.host).rstrip("/"),
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        token=KubeconfigToken(path) if authorization else None,
        verify=bool(found.verify_ssl),
        server_name=found.tls_server_name,
        proxy=found.proxy,
    )
    return config, _token(authorization, loader) if authorization else None


def _redacted(err: Exception) -> str:
    """Without what a credential plugin wrote, which may be anything."""
    text = str(err)
    return text.partition(". ")[0] if text.startswith("exec: ") else text


def _token(authorization: str, loader: object) -> Token:
    """The loader keeps the kubeconfig's user, and a plugin's expiry, to itself."""
    user = getattr(getattr(loader, "_user", None), "value", {})
    expiry = getattr(loader, "exec_plugin_expiry", None)
    return Token(
        authorization.strip(),
        max_age=_FILE_SECONDS if "tokenFile" in user and "token" not in user else math.inf,
        expires=math.inf if expiry is None else expiry.timestamp(),
    )


@functools.cache
def _memory_file(content: bytes) -> Path:
    """A file without a name, which ends with the process: ssl reads keys from files only."""
    handle = os.memfd_create("kubeconfig")
    os.write(handle, content)
    return Path(f"/proc/self/fd/{handle}")


def _in_memory(name: str) -> Path:
    return _memory_file(Path(name).read_bytes())


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _named(path: Path | None) -> str:
    return f"the kubeconfig {path}" if path is not None else "the default kubeconfig"
