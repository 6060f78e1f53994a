"""The part of a KubeClient that writes Nodes, on a dict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kaito.errors import AlreadyExists, Conflict, NotFound


class FakeNodes:
    """Nodes in a dict; ``fail`` is raised by the next write."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.writes: list[str] = []
        self.fail: Exception | None = None
        self._made = 0

    async def create(self, kind: Any, manifest: Mapping[str, Any]) -> Any:
        self._write("create")
        name = manifest["metadata"]["name"]
        if name in self.nodes:
            raise AlreadyExists(name)
        self._made += 1
        self.nodes[name] = json.loads(json.dumps(manifest))
        self.nodes[name]["metadata"] |= {"uid": f"u{self._made}", "resourceVersion": "1"}
        return kind.decode(json.dumps(self.nodes[name]).encode())

    async def get(self, kind: Any, namespace: str, name: str) -> Any:
        if name not in self.nodes:
            return None
        return kind.decode(json.dumps(self.nodes[name]).encode())

    async def merge_patch(
        self, kind: Any, namespace: str, name: str, body: Any, *, subresource: str = ""
    ) -> Any:
        self._write("patch" + (f" {subresource}" if subresource else ""))
        if name not in self.nodes:
            raise NotFound(name)
        _merge(self.nodes[name], body)
        return await self.get(kind, namespace, name)

    async def delete(self, kind: Any, namespace: str, name: str, *, uid: str | None = None) -> None:
        self._write("delete")
        node = self.nodes.get(name)
        if node is not None and uid is not None and node["metadata"]["uid"] != uid:
            raise Conflict(name)
        self.nodes.pop(name, None)

    def _write(self, what: str) -> None:
        self.writes.append(what)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error


def _merge(target: dict[str, Any], patch: Mapping[str, Any]) -> None:
    for key, value in patch.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
