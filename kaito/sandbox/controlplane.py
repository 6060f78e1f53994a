"""A real control plane on loopback: etcd, API server, controller manager, scheduler.

Authentication and RBAC are real. Everything lives in one folder and is thrown away with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from kaito.clock import SystemClock
from kaito.sandbox.binaries import Binaries
from kaito.sandbox.errors import ProgramFailed
from kaito.sandbox.pki import Authority, KeyPair, write_private
from kaito.sandbox.processes import Program, last_lines

_LOOPBACK = "127.0.0.1"
_SERVICE_RANGE, _SERVICE_ADDRESS = "10.96.0.0/16", "10.96.0.1"
_START_SECONDS = 60.0
_LOOK_SECONDS = 0.05
_REQUEST_SECONDS = 5.0
_TOKEN_SECONDS = 24 * 3600
_CLIENT_GRACE_SECONDS = 2.0
_ETCD_GRACE_SECONDS = 2.0
_APISERVER_GRACE_SECONDS = 0.5  # it drains for a minute otherwise, and its data is thrown away

_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
"""


class ControlPlane:
    """One control plane in ``folder``; certificates, data and logs are made there at ``start``.

    ``audit``: write ``audit.log`` (one JSON line a request, metadata level). ``start_seconds``: how
    long to wait for readiness; the usual is 4 s, a machine busy with other things gets its time.
    ``kubeconfig``: of an administrator; ``server`` and ``ca_file`` are what it says.
    """

    def __init__(
        self,
        folder: Path,
        *,
        binaries: Binaries,
        audit: bool = False,
        start_seconds: float = _START_SECONDS,
    ) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self.audit_log = folder / "audit.log"
        self.ca_file = folder / "pki" / "ca.crt"
        self.server = ""
        self._binaries = binaries
        self._audit = audit
        self._start_seconds = start_seconds
        self._programs: dict[str, Program] = {}
        self._tls: ssl.SSLContext | None = None

    async def start(self) -> None:
        """Start all and return when an object can be written and a pod can be made.

        Raises:
            ProgramFailed: a program ended or is not ready in time; shows its log. All are stopped.
        """
        try:
            async with asyncio.timeout(self._start_seconds):
                await self._start()
        except TimeoutError:
            words = "\n".join(last_lines(program.log) for program in self._programs.values())
            await self.stop()
            raise ProgramFailed(
                f"the control plane was not ready within {self._start_seconds:.0f} s.\n{words}"
            ) from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop what ``start`` started: clients before servers. May be called at any time."""
        clients = [p for p in self._programs.values() if p.name in ("scheduler", "manager")]
        try:
            async with asyncio.TaskGroup() as group:
                for program in clients:
                    group.create_task(program.stop(grace_seconds=_CLIENT_GRACE_SECONDS))
            await self._stop("apiserver", _APISERVER_GRACE_SECONDS)
            await self._stop("etcd", _ETCD_GRACE_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        """Stop all at once, without a loop."""
        for program in reversed(self._programs.values()):
            program.kill()
        self._programs.clear()

    def require_running(self) -> None:
        """Raise ProgramFailed for the first program that has ended by itself."""
        for program in self._programs.values():
            program.require_running()

    @property
    def pids(self) -> tuple[int, ...]:
        """Pids of the programs that run."""
        return tuple(p.pid for p in self._programs.values() if p.pid is not None)

    async def guard(self) -> None:
        """Wait until a program has ended by itself, and raise ProgramFailed for it (in a group)."""
        async with asyncio.TaskGroup() as group:
            for program in self._programs.values():
                group.create_task(_guard(program))

    async def wait_documented(self, api_versions: Iterable[str]) -> None:
        """Return when ``kubectl explain`` knows these: half a second after their CRD is served."""
        async with asyncio.timeout(self._start_seconds):
            for version in api_versions:
                path = f"/openapi/v3/apis/{version}"
                await self._until(self._programs["apiserver"], partial(self._answers, path))

    def kill_apiserver(self) -> None:
        """SIGKILL the API server: watches break in the middle, new connections are refused."""
        self._programs["apiserver"].kill()

    async def restart_apiserver(self) -> None:
        """Stop the API server, start it again on the same port and wait until it is ready."""
        program = self._programs["apiserver"]
        await program.stop(grace_seconds=_APISERVER_GRACE_SECONDS)
        program.start()
        async with asyncio.timeout(self._start_seconds):
            await self._until(program, lambda: self._answers("/readyz"))

    def service_account_folder(self, namespace: str, name: str) -> Path:
        """A folder as a pod of that service account has it mounted: token, ca.crt, namespace.

        Raises:
            ProgramFailed: the API server gives no token (no such service account, for one).
        """
        status, body = self._request(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": _TOKEN_SECONDS},
            },
        )
        if status != http.HTTPStatus.CREATED:
            raise ProgramFailed(f"no token for {namespace}/{name}: {status} {body.decode()}")
        folder = self.folder / "serviceaccounts" / namespace / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(folder / "token", json.loads(body)["status"]["token"].encode())
        write_private(folder / "ca.crt", self.ca_file.read_bytes())
        write_private(folder / "namespace", namespace.encode())
        return folder

    async def _start(self) -> None:
        for name in ("logs", "etcd"):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        authority = Authority(self.folder / "pki", now=SystemClock().now())
        with contextlib.ExitStack() as held:
            client_port, peer_port, api_port = (
                held.enter_context(_reserved_port()) for _ in range(3)
            )
            self.server = f"https://{_LOOPBACK}:{api_port}"
            admin = authority.issue_client("kubernetes-admin", groups=["system:masters"])
            self._write_kubeconfig(self.kubeconfig, authority, admin)
            self._tls = ssl.create_default_context(cafile=str(self.ca_file))
            self._tls.load_cert_chain(admin.certificate, admin.key)

            etcd = self._run("etcd", self._binaries.etcd, self._etcd_flags(client_port, peer_port))
            etcd_url = f"http://{_LOOPBACK}:{client_port}"
            await self._until(etcd, lambda: _get(etcd_url, "/health"))
            apiserver = self._run(
                "apiserver",
                self._binaries.apiserver,
                self._apiserver_flags(authority, etcd_url, api_port),
            )
            await self._until(apiserver, lambda: self._answers("/readyz"))
        signing_key = self.folder / "pki" / "service-accounts.key"
        manager = self._run(
            "manager",
            self._binaries.controller_manager,
            self._manager_flags(authority, signing_key),
        )
        self._run("scheduler", self._binaries.scheduler, self._client_flags(authority, "scheduler"))
        # The controller manager's first visible work, and what a pod needs to be admitted.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        await self._until(manager, lambda: self._answers(account))
        self.require_running()

    def _etcd_flags(self, client_port: int, peer_port: int) -> dict[str, object]:
        client, peer = (f"http://{_LOOPBACK}:{port}" for port in (client_port, peer_port))
        return {
            "data-dir": self.folder / "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "socket-reuse-port": "true",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
        }

    def _apiserver_flags(self, authority: Authority, etcd_url: str, port: int) -> dict[str, object]:
        serving = authority.issue_server(
            "kube-apiserver",
            hosts=[_LOOPBACK, _SERVICE_ADDRESS, "localhost", "kubernetes.default.svc"],
        )
        tokens = authority.signing_key("service-accounts")
        flags: dict[str, object] = {
            "etcd-servers": etcd_url,
            "secure-port": port,
            "bind-address": _LOOPBACK,
            "advertise-address": _LOOPBACK,
            "permit-port-sharing": "true",
            "service-cluster-ip-range": _SERVICE_RANGE,
            "tls-cert-file": serving.certificate,
            "tls-private-key-file": serving.key,
            "client-ca-file": authority.ca.certificate,
            "authorization-mode": "Node,RBAC",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-signing-key-file": tokens.key,
            "service-account-key-file": tokens.certificate,
            "endpoint-reconciler-type": "none",
            "allow-privileged": "true",
            "profiling": "false",
        }
        if self._audit:
            policy = self.folder / "audit-policy.yaml"
            policy.write_text(_AUDIT_POLICY)
            flags |= {
                "audit-policy-file": policy,
                "audit-log-path": self.audit_log,
                "audit-log-mode": "batch",
            }
        return flags

    def _manager_flags(self, authority: Authority, signing_key: Path) -> dict[str, object]:
        return self._client_flags(authority, "controller-manager") | {
            "use-service-account-credentials": "true",
            "service-account-private-key-file": signing_key,
            "root-ca-file": authority.ca.certificate,
            "cluster-signing-cert-file": authority.ca.certificate,
            "cluster-signing-key-file": authority.ca.key,
            "allocate-node-cidrs": "false",
        }

    def _client_flags(self, authority: Authority, name: str) -> dict[str, object]:
        kubeconfig = self.folder / f"{name}.kubeconfig"
        pair = authority.issue_client(f"system:kube-{name}")
        self._write_kubeconfig(kubeconfig, authority, pair)
        return {
            "kubeconfig": kubeconfig,
            "leader-elect": "false",
            "secure-port": 0,
            "kube-api-qps": 200,
            "kube-api-burst": 400,
        }

    def _run(self, name: str, binary: Path, flags: Mapping[str, object]) -> Program:
        program = Program(
            name,
            [str(binary), *(f"--{flag}={value}" for flag, value in flags.items())],
            log=self.folder / "logs" / f"{name}.log",
            environ={"HOME": str(self.folder), "PATH": "/usr/bin:/bin"},
        )
        self._programs[name] = program
        program.start()
        return program

    async def _stop(self, name: str, grace_seconds: float) -> None:
        if (program := self._programs.get(name)) is not None:
            await program.stop(grace_seconds=grace_seconds)

    async def _until(self, program: Program, is_ready: Callable[[], bool]) -> None:
        while not await asyncio.to_thread(is_ready):
            program.require_running()
            await asyncio.sleep(_LOOK_SECONDS)

    def _answers(self, path: str) -> bool:
        try:
            return self._request("GET", path)[0] == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def _request(
        self, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> tuple[int, bytes]:
        """One request as the administrator. Blocks: for the start, before there is a client."""
        connection = http.client.HTTPSConnection(
            urlsplit(self.server).netloc, timeout=_REQUEST_SECONDS, context=self._tls
        )
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def _write_kubeconfig(self, path: Path, authority: Authority, pair: KeyPair) -> None:
        cluster = {
            "server": self.server,
            "certificate-authority-data": _base64(authority.ca.certificate),
        }
        user = {
            "client-certificate-data": _base64(pair.certificate),
            "client-key-data": _base64(pair.key),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "kaito-sandbox", "cluster": cluster}],
            "users": [{"name": pair.certificate.stem, "user": user}],
            "contexts": [
                {
                    "name": "kaito-sandbox",
                    "context": {"cluster": "kaito-sandbox", "user": pair.certificate.stem},
                }
            ],
            "current-context": "kaito-sandbox",
        }
        write_private(path, yaml.safe_dump(config).encode())


async def _guard(program: Program) -> None:
    await program.wait()
    program.require_running()


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """A free port that stays ours until the program that is to listen on it does.

    Bound and never listened on, with SO_REUSEPORT, as the programs bind it: nobody else gets the
    port between our choice and their start.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((_LOOPBACK, 0))
        yield holder.getsockname()[1]


def _get(url: str, path: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_REQUEST_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False


def _base64(path: Path) -> str:
    return b64encode(path.read_bytes()).decode()
