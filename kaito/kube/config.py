"""How the API server is reached and what we say who we are.

Inside a cluster: the service account's folder, read by hand. Elsewhere: kubeconfig files, merged
and read by kubernetes_asyncio, whose import (66 MB) is paid on that path alone; its plugins are
ours (``tokens.py``). No request is made here, but by OIDC.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kaito.errors import InvalidSettings
from kaito.kube.tokens import LIMIT_SECONDS, FileToken, Token, TokenSource, plugin

# What the loader meets in a file that is none, or has a list where a mapping should be.
_UNUSABLE = (OSError, ValueError, LookupError, AssertionError, TypeError, AttributeError)


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
class KubeconfigToken:
    """What a kubeconfig's user says: a token, a password, OIDC."""

    path: Path | None

    async def read(self) -> Token:
        """See TokenSource."""
        _, authorization = await _load(self.path)
        if not authorization:
            raise InvalidSettings(f"{_named(self.path)} has no token any more")
        return Token(authorization)


def in_cluster(*, folder: Path, host: str, port: str) -> ClusterConfig:
    """As a pod: ``folder`` is its service account's mount, host and port its environment's."""
    address = f"[{host}]" if ":" in host else host
    url, token = f"https://{address}:{port}", FileToken(folder / "token")
    return ClusterConfig(url, ca_file=folder / "ca.crt", token=token)


async def from_kubeconfig(path: Path | None) -> ClusterConfig:
    """As kubectl would with this file; None: with ``KUBECONFIG`` or ``~/.kube/config``.

    Raises:
        InvalidSettings: it cannot be read or used; names the file.
    """
    return (await _load(path))[0]


def tls_files(config: ClusterConfig) -> tuple[object, ...]:
    """Changes when a CA or client certificate file does. Reads file times: call it in a thread.

    Raises:
        InvalidSettings: one is missing; names it.
    """
    try:
        stats = [f.stat() for f in (config.ca_file, config.cert_file, config.key_file) if f]
    except OSError as err:
        raise InvalidSettings(f"cannot read the certificate {err.filename}: {err}") from err
    return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in stats)


def tls_context(config: ClusterConfig, certificate: bytes = b"") -> ssl.SSLContext:
    """Reads files, and takes 25 ms with the system's CA bundle: call it in a thread.

    ``certificate``: a client certificate and its key, in place of the config's.

    Raises:
        InvalidSettings: a CA or client certificate cannot be used; names the files.
    """
    try:
        context = ssl.create_default_context(cafile=str(config.ca_file) if config.ca_file else None)
        if not config.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if certificate:
            with _in_memory(certificate) as file:
                context.load_cert_chain(_path_of(file.fileno()))
        elif config.cert_file is not None:
            context.load_cert_chain(config.cert_file, config.key_file)
    except OSError as err:  # ssl.SSLError is one
        files = [str(f) for f in (config.ca_file, config.cert_file, config.key_file) if f]
        files += ["the credential plugin's"] if certificate else []
        raise InvalidSettings(f"cannot use the certificates {', '.join(files)}: {err}") from err
    return context


async def _load(path: Path | None) -> tuple[ClusterConfig, str]:
    # A loop of its own, as all but OIDC is done by blocking.
    return await asyncio.to_thread(lambda: asyncio.run(_read(path)))


async def _read(path: Path | None) -> tuple[ClusterConfig, str]:
    """What the files say, and the Authorization header when they, or OIDC, say that too."""
    import yaml
    from kubernetes_asyncio.client import Configuration
    from kubernetes_asyncio.config import ConfigException, kube_config

    try:
        merged = kube_config.KubeConfigMerger(str(path or kube_config.KUBE_CONFIG_DEFAULT_LOCATION))
        _choose_context(merged)
        loader: Any = kube_config.KubeConfigLoader(merged.config, config_base_path=None)
        user, cluster = loader._user, loader._cluster
        # Taken out first: the loader would run the one and write the others to the disk.
        program = user.value.pop("exec", None) if user else None
        _keep_in_memory(cluster, "certificate-authority")
        _keep_in_memory(user, "client-certificate")
        _keep_in_memory(user, "client-key")
        found = Configuration()
        async with asyncio.timeout(LIMIT_SECONDS):
            await loader.load_and_set(found)
        ca_file, cert_file, key_file = (
            Path(name) if name else None
            for name in (found.ssl_ca_cert, found.cert_file, found.key_file)
        )
        authorization: str = found.api_key.get("BearerToken", "").strip()
        token: TokenSource | None = KubeconfigToken(path) if authorization else None
        if program is not None:
            ca = ca_file.read_bytes() if ca_file else b""
            token = plugin(program, cluster.value, ca=ca, folder=_folder(user))
        elif token and "tokenFile" in user and "token" not in user:
            token = FileToken(_folder(user) / user["tokenFile"])
    except TimeoutError as err:
        raise InvalidSettings(f"{_named(path)}: no token in {LIMIT_SECONDS:.0f} s") from err
    except (ConfigException, yaml.YAMLError, *_UNUSABLE) as err:
        raise InvalidSettings(f"cannot use {_named(path)}: {err}") from err
    host, verify = str(found.host).rstrip("/"), bool(found.verify_ssl)
    config = ClusterConfig(
        host, ca_file, cert_file, key_file, token, verify, found.tls_server_name, found.proxy
    )
    return config, authorization


def _choose_context(merged: Any) -> None:
    """As kubectl: that of the first file that has one. The merger lets the last win."""
    for content in merged.config_files.values():
        if current := content.get("current-context"):
            merged.config.value["current-context"] = current
            return


def _keep_in_memory(node: Any, name: str) -> None:
    if node and (data := node.value.pop(f"{name}-data", None)):
        node.value[name] = str(_kept(base64.standard_b64decode(data)))


def _in_memory(content: bytes) -> BinaryIO:
    """A file without a name, gone when closed or with the process: ssl reads keys from files."""
    file = os.fdopen(os.memfd_create("credentials"), "wb", buffering=0)
    file.write(content)
    return file


@functools.cache
def _kept(content: bytes) -> Path:
    """One for each content, open for as long as the process lives."""
    with _in_memory(content) as file:
        return _path_of(os.dup(file.fileno()))


def _path_of(handle: int) -> Path:
    return Path(f"/proc/self/fd/{handle}")


def _folder(node: Any) -> Path:
    return Path(node.path).absolute().parent


def _named(path: Path | None) -> str:
    return f"the kubeconfig {path}" if path is not None else "the default kubeconfig"
