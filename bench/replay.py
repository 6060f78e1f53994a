"""A recorded API server: Pods of 6.4 KB as a list, as a stream and as watch events, over loopback.

``python -m bench.replay`` builds every byte first, prints its port and then only writes, so that
it is never the bottleneck of what reads from it. Each watch line is an HTTP chunk of its own, as
the API server's are.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

POD_BYTES = 6_356
OBJECTS = 10_000
EVENTS = 60_000
WATCHED = 1_000
EVENTS_AFTER_SECONDS = 0.5
LAST_VERSION = 10_000_000
_VERSION = b"@version"
_WRITE_BYTES = 1 << 20
_SERVER_CORE, _CLIENT_CORE = 1, 0


@contextmanager
def replaying(module: str = "bench.replay") -> Iterator[str]:
    """A module that prints its port and serves, as a process of its own; yields its address."""
    process = subprocess.Popen([sys.executable, "-m", module], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


def pin_client() -> None:
    """Keep this process on the core that the server does not use."""
    _pin(_CLIENT_CORE)


def pod(number: int) -> bytes:
    """A running Pod of a Deployment, as the server writes it; ``@version`` for its version."""
    name, uid = f"web-7c5ddbdf54-{number:05d}", f"0b8e2f66-1d3c-4a57-9f10-{number:012d}"
    owner = f"f4a1c2d3-0000-4b1e-8c6d-{number // 10:012d}"
    stamp = "2026-03-14T09:26:53Z"
    body: dict[str, Any] = {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "generateName": "web-7c5ddbdf54-",
            "namespace": f"team-{number % 20:02d}",
            "uid": uid,
            "resourceVersion": _VERSION.decode(),
            "generation": 1,
            "creationTimestamp": stamp,
            "labels": {
                "app.kubernetes.io/name": "web",
                "app.kubernetes.io/component": "frontend",
                "pod-template-hash": "7c5ddbdf54",
            },
            "annotations": {"prometheus.io/scrape": "true", "checksum/config": ""},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": "web-7c5ddbdf54",
                    "uid": owner,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
            "managedFields": _managed_fields(owner, stamp),
        },
        "spec": {
            "volumes": [_token_volume(), {"name": "tmp", "emptyDir": {}}],
            "containers": [_container("web", 8080), _container("proxy", 15001)],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "web",
            "nodeName": f"aks-pool-{number % 100:03d}-vmss000000",
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "tolerations": [
                {
                    "key": f"node.kubernetes.io/{state}",
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": 300,
                }
                for state in ("not-ready", "unreachable")
            ],
            "priority": 0,
            "enableServiceLinks": True,
        },
        "status": {
            "phase": "Running",
            "conditions": [
                {
                    "type": type_,
                    "status": "True",
                    "lastProbeTime": None,
                    "lastTransitionTime": stamp,
                }
                for type_ in (
                    "PodReadyToStartContainers",
                    "Initialized",
                    "Ready",
                    "ContainersReady",
                    "PodScheduled",
                )
            ],
            "hostIP": "10.224.0.7",
            "podIP": "10.244.1.23",
            "podIPs": [{"ip": "10.244.1.23"}],
            "startTime": stamp,
            "containerStatuses": [_status("web", uid, stamp), _status("proxy", uid, stamp)],
            "qosClass": "Burstable",
        },
    }
    short = POD_BYTES - len(_dump(body))
    body["metadata"]["annotations"]["checksum/config"] = "5f" * (short // 2)
    return _dump(body)


def _managed_fields(owner: str, stamp: str) -> list[dict[str, Any]]:
    def leaves(*names: str) -> dict[str, Any]:
        return {f"f:{name}": {} for name in names}

    container = {
        ".": {},
        **leaves("image", "imagePullPolicy", "name", "terminationMessagePath"),
        "f:env": {
            f'k:{{"name":"{name}"}}': {".": {}, **leaves("name", "value")}
            for name in ("LOG_LEVEL", "UPSTREAM", "REGION")
        },
        "f:ports": {
            'k:{"containerPort":8080,"protocol":"TCP"}': {".": {}, **leaves("name", "protocol")}
        },
        "f:resources": {".": {}, "f:limits": leaves("memory"), "f:requests": leaves("cpu")},
    }
    spec = {
        "f:containers": {'k:{"name":"web"}': container, 'k:{"name":"proxy"}': container},
        **leaves("dnsPolicy", "enableServiceLinks", "restartPolicy", "schedulerName"),
    }
    condition = {".": {}, **leaves("lastProbeTime", "lastTransitionTime", "status", "type")}
    status = {
        "f:conditions": {
            f'k:{{"type":"{type_}"}}': condition
            for type_ in ("ContainersReady", "Initialized", "Ready")
        },
        **leaves("containerStatuses", "hostIP", "phase", "podIP", "startTime"),
    }
    metadata = {
        **leaves("generateName"),
        "f:labels": leaves("app.kubernetes.io/name", "pod-template-hash"),
        "f:ownerReferences": {".": {}, f'k:{{"uid":"{owner}"}}': {}},
    }
    return [
        {
            "manager": manager,
            "operation": "Update",
            "apiVersion": "v1",
            "time": stamp,
            "fieldsType": "FieldsV1",
            "fieldsV1": fields,
            **more,
        }
        for manager, fields, more in (
            ("kube-controller-manager", {"f:metadata": metadata, "f:spec": spec}, {}),
            ("kubelet", {"f:status": status}, {"subresource": "status"}),
        )
    ]


def _token_volume() -> dict[str, Any]:
    sources = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    ]
    return {"name": "kube-api-access-5wvxn", "projected": {"sources": sources, "defaultMode": 420}}


def _container(name: str, port: int) -> dict[str, Any]:
    return {
        "name": name,
        "image": f"registry.example.com/team/{name}:v1.27.3",
        "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}],
        "env": [
            {"name": "LOG_LEVEL", "value": "info"},
            {"name": "UPSTREAM", "value": "backend.team.svc.cluster.local:9090"},
            {"name": "REGION", "value": "westeurope"},
        ],
        "resources": {"limits": {"memory": "256Mi"}, "requests": {"cpu": "100m"}},
        "volumeMounts": [
            {
                "name": "kube-api-access-5wvxn",
                "readOnly": True,
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
            }
        ],
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": port, "scheme": "HTTP"},
            "timeoutSeconds": 1,
            "periodSeconds": 10,
        },
        "terminationMessagePath": "/dev/termination-log",
        "imagePullPolicy": "IfNotPresent",
    }


def _status(name: str, uid: str, stamp: str) -> dict[str, Any]:
    return {
        "name": name,
        "state": {"running": {"startedAt": stamp}},
        "lastState": {},
        "ready": True,
        "restartCount": 0,
        "image": f"registry.example.com/team/{name}:v1.27.3",
        "imageID": f"registry.example.com/team/{name}@sha256:{uid.replace('-', '') * 2}",
        "containerID": f"containerd://{uid.replace('-', '') * 2}",
        "started": True,
    }


def _dump(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


class _Recording:
    """Every answer, as bytes with their chunked framing."""

    def __init__(self) -> None:
        pods = [pod(number) for number in range(OBJECTS)]
        stored = [pod.replace(_VERSION, b"%08d" % number) for number, pod in enumerate(pods, 1)]
        self.initial = _joined(_line("ADDED", raw) for raw in stored)
        self.watched = _joined(_line("ADDED", raw) for raw in stored[:WATCHED])
        first = LAST_VERSION - EVENTS + 1
        self.events = _joined(
            _line("MODIFIED", pods[number % WATCHED].replace(_VERSION, b"%08d" % (first + number)))
            for number in range(EVENTS)
        )
        head = _dump({"kind": "PodList", "apiVersion": "v1", "metadata": _meta(OBJECTS)})
        # Items of a built-in kind's list carry no kind.
        items = b",".join(raw.replace(b'"kind":"Pod","apiVersion":"v1",', b"") for raw in stored)
        body = head[:-1] + b',"items":[' + items + b"]}\n"
        self.list = [
            _chunk(body[start : start + _WRITE_BYTES])
            for start in range(0, len(body), _WRITE_BYTES)
        ]


def _meta(version: int) -> dict[str, str]:
    return {"resourceVersion": f"{version:08d}"}


def _marker(version: int) -> bytes:
    annotations = {"k8s.io/initial-events-end": "true"}
    meta = {**_meta(version), "annotations": annotations}
    return _line("BOOKMARK", _dump({"kind": "Pod", "apiVersion": "v1", "metadata": meta}))


def _line(type_: str, raw: bytes) -> bytes:
    return _chunk(b'{"type":"%s","object":%s}\n' % (type_.encode(), raw))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _joined(chunks: Iterator[bytes]) -> list[bytes]:
    """Pieces of about a megabyte: one write each."""
    pieces, open_ = [], bytearray()
    for chunk in chunks:
        open_ += chunk
        if len(open_) >= _WRITE_BYTES:
            pieces.append(bytes(open_))
            open_.clear()
    return [*pieces, bytes(open_)]


_HEAD = (
    b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\nDate: Sat, 14 Mar 2026 09:26:53 GMT\r\n\r\n"
)
_REFUSED = _dump(
    {"kind": "Status", "status": "Failure", "message": "no", "reason": "Invalid", "code": 422}
)
_OLD_SERVER = _dump({"major": "1", "minor": "33"})


async def _answer(
    recording: _Recording, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One connection. The first word of the path is what to replay: stream, list or events."""
    try:
        while request := await reader.readuntil(b"\r\n\r\n"):
            path = request.split(b" ", 2)[1]
            what = path.split(b"/", 2)[1]
            is_first = b"sendInitialEvents" in path
            if path.endswith(b"/version"):
                await _write(writer, b"200 OK", [_chunk(_OLD_SERVER)])
            elif is_first and what == b"list":
                await _write(writer, b"422 Unprocessable Entity", [_chunk(_REFUSED)])
            elif is_first and what == b"stream":
                await _write(
                    writer, b"200 OK", [*recording.initial, _marker(OBJECTS)], is_open=True
                )
            elif is_first:
                await _write(
                    writer, b"200 OK", [*recording.watched, _marker(WATCHED)], is_open=True
                )
                await asyncio.sleep(EVENTS_AFTER_SECONDS)  # time for the client to settle
                await _write(writer, b"", recording.events, is_open=True)
            elif b"watch=" in path:
                events = recording.events if what == b"events" else []
                await _write(writer, b"200 OK", events, is_open=True)
            else:
                await _write(writer, b"200 OK", recording.list)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _write(
    writer: asyncio.StreamWriter, status: bytes, pieces: list[bytes], *, is_open: bool = False
) -> None:
    if status:
        writer.write(_HEAD % status)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    if not is_open:
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _serve() -> None:
    recording = _Recording()
    server = await asyncio.start_server(
        lambda reader, writer: _answer(recording, reader, writer), "127.0.0.1", 0, limit=1 << 16
    )
    for listening in server.sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _WRITE_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _pin(core: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


if __name__ == "__main__":
    _pin(_SERVER_CORE)
    import uvloop

    uvloop.run(_serve())
