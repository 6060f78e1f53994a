from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito.errors import InvalidSettings
from kaito.kube.config import KubeconfigToken, from_kubeconfig, in_cluster, tls_context, tls_files
from kaito.kube.tokens import FileToken
from kaito.sandbox.pki import Authority


def kubeconfig(folder: Path, *, user: dict[str, Any] | None = None, **cluster: Any) -> Path:
    path = folder / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://10.0.0.1:6443/", **cluster}}],
        "users": [{"name": "u", "user": user or {}}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("host", "url"), [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_in_a_cluster_the_address_is_the_environments(tmp_path: Path, host: str, url: str) -> None:
    """W23: IPv6 in brackets."""
    config = in_cluster(folder=tmp_path, host=host, port="443")
    assert config.host == url
    assert config.ca_file == tmp_path / "ca.crt"
    assert config.verify


async def test_a_token_files_white_space_is_no_part_of_the_token(tmp_path: Path) -> None:
    """W19"""
    (tmp_path / "token").write_text(" abc\n")
    token = await FileToken(tmp_path / "token").read()
    assert (token.authorization, token.max_age) == ("Bearer abc", 60.0)


@pytest.mark.parametrize("content", [None, "", " \n", b"\xff\xfe"])
async def test_a_token_file_that_holds_no_token_is_named(
    tmp_path: Path, content: str | bytes | None
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidSettings, match=str(path)):
        await FileToken(path).read()


async def test_a_kubeconfig_says_where_and_how(tmp_path: Path) -> None:
    """W23: relative paths are relative to the file."""
    Authority(tmp_path, now=1_800_000_000.0)
    path = kubeconfig(
        tmp_path,
        user={"token": "abc"},
        **{
            "certificate-authority": "ca.crt",
            "tls-server-name": "kubernetes",
            "proxy-url": "http://proxy:3128",
            "insecure-skip-tls-verify": True,
        },
    )
    config = await from_kubeconfig(path)
    assert config.host == "https://10.0.0.1:6443"
    assert config.ca_file == tmp_path / "ca.crt"
    assert (config.server_name, config.proxy, config.verify) == (
        *("kubernetes", "http://proxy:3128"),
        False,
    )
    assert config.token == KubeconfigToken(path)
    token = await KubeconfigToken(path).read()
    assert token.authorization == "Bearer abc"
    assert token.max_age == token.expires == float("inf")


async def test_a_kubeconfigs_token_file_is_read_again_each_minute(tmp_path: Path) -> None:
    """W19, W23: relative to the kubeconfig."""
    (tmp_path / "t").write_text("abc\n")
    source = (await from_kubeconfig(kubeconfig(tmp_path, user={"tokenFile": "t"}))).token
    assert source == FileToken(tmp_path / "t")
    (tmp_path / "t").write_text("def\n")
    token = await source.read()
    assert (token.authorization, token.max_age) == ("Bearer def", 60.0)


async def test_a_user_and_a_password_are_sent_as_such(tmp_path: Path) -> None:
    """W23"""
    path = kubeconfig(tmp_path, user={"username": "u", "password": "p"})
    assert (await KubeconfigToken(path).read()).authorization == "Basic dTpw"


def merged(tmp_path: Path) -> str:
    """Two kubeconfigs in two folders, both with a cluster, a user and a context of one name."""
    for number, (name, more) in enumerate((("a", {}), ("b", {"tls-server-name": "second"}))):
        (tmp_path / name).mkdir()
        path = kubeconfig(tmp_path / name, user={"tokenFile": f"t{number}"}, **more)
        (tmp_path / name / f"t{number}").write_text(name)
        content = yaml.safe_load(path.read_text())
        content["clusters"][0]["cluster"]["server"] = f"https://{name}"
        content["users"].append({"name": f"only-{name}", "user": {"token": name}})
        content["contexts"].append(
            {"name": f"only-{name}", "context": {"cluster": "k", "user": f"only-{name}"}}
        )
        content["current-context"] = "c" if name == "a" else "only-b"
        path.write_text(yaml.safe_dump(content))
    return f"{tmp_path / 'a' / 'kubeconfig'}:{tmp_path / 'none'}:{tmp_path / 'b' / 'kubeconfig'}"


async def test_of_several_kubeconfigs_the_first_wins(tmp_path: Path) -> None:
    """W23: for clusters, users and the current context; each path is relative to its own file."""
    config = await from_kubeconfig(Path(merged(tmp_path)))
    assert (config.host, config.server_name) == ("https://a", None)
    assert config.token == FileToken(tmp_path / "a" / "t0")


async def test_the_environment_names_the_kubeconfigs(tmp_path: Path) -> None:
    """W23"""
    script = (
        "import asyncio; from kaito.kube.config import from_kubeconfig;"
        "print(asyncio.run(from_kubeconfig(None)).host)"
    )
    done = await asyncio.to_thread(
        lambda: subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "KUBECONFIG": merged(tmp_path)},
        )
    )
    assert done.stdout.strip() == "https://a"


async def test_a_kubeconfig_without_token_has_none(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path)
    assert (await from_kubeconfig(path)).token is None
    with pytest.raises(InvalidSettings, match="no token"):
        await KubeconfigToken(path).read()


async def test_keys_in_the_kubeconfig_itself_are_never_left_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W23: each kill -9 of the operator once left a private key in the temporary folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "mkstemp", None)  # not for a moment either
    authority = Authority(tmp_path / "pki", now=1_800_000_000.0)
    pair = authority.issue_client("admin")
    data = {"client-certificate-data": pair.certificate, "client-key-data": pair.key}
    user = {name: base64.b64encode(file.read_bytes()).decode() for name, file in data.items()}
    ca = base64.b64encode(authority.ca.certificate.read_bytes()).decode()
    path = kubeconfig(tmp_path, user=user, **{"certificate-authority-data": ca})
    first, again = await from_kubeconfig(path), await from_kubeconfig(path)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert first.key_file is not None
    assert first.key_file.read_bytes() == pair.key.read_bytes()
    assert first == again
    tls_context(first)
    assert tls_files(first) == tls_files(again)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "apiVersion: v1",
        "{",
        "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]",
        "current-context: c\ncontexts: 5\nclusters: 7\nusers: 8",
    ],
)
async def test_a_kubeconfig_that_cannot_be_used_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(content)
    with pytest.raises(InvalidSettings, match=str(path)):
        await from_kubeconfig(path)


async def test_a_missing_kubeconfig_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="nowhere"):
        await from_kubeconfig(tmp_path / "nowhere")


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """W22"""
    config = in_cluster(folder=tmp_path, host="a", port="1")
    with pytest.raises(InvalidSettings, match=r"ca\.crt"):
        tls_files(config)
    (tmp_path / "ca.crt").write_text("no certificate")
    assert tls_files(config)
    with pytest.raises(InvalidSettings, match=r"ca\.crt"):
        tls_context(config)


def test_the_room_imports_neither_kubernetes_asyncio_nor_yaml() -> None:
    """Facts §3: 66 MB that only a kubeconfig needs."""
    script = (
        "import sys, kaito.kube.client;"
        "print([m for m in ('kubernetes_asyncio','yaml','pydantic','azure') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
