"""JSON documents as the API server treats them: merge patch, JSON Patch, selectors, paths."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kaito.errors import PatchTestFailed

Body = dict[str, Any]


def encoded(body: Mapping[str, Any], *, metadata_only: bool = False) -> bytes:
    if metadata_only:
        partial = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
        body = {**partial, "metadata": body["metadata"]}
    return json.dumps(body, default=dict).encode()


def selector(namespace: str, query: Mapping[str, str]) -> Callable[[Body], bool]:
    """Label selectors of ``=``, ``!=``, ``key``, ``!key`` and ``key in (a,b)``; simple fields."""
    labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")

    def matches(body: Body) -> bool:
        meta = body["metadata"]
        if namespace and meta.get("namespace") != namespace:
            return False
        for term in filter(None, fields.split(",")):
            path, _, value = term.replace("==", "=").partition("=")
            if (get_path(body, tuple(path.split("."))) or "") != value:
                return False
        return all(_holds(term, meta.get("labels") or {}) for term in _terms(labels))

    return matches


def _terms(selector: str) -> list[str]:
    terms, depth = [""], 0
    for char in selector:
        depth += (char == "(") - (char == ")")
        if char == "," and not depth:
            terms.append("")
        else:
            terms[-1] += char
    return [term.strip() for term in terms if term.strip()]


def _holds(term: str, labels: Mapping[str, str]) -> bool:
    if " in " in term or " notin " in term:
        key, operator, values = term.split(maxsplit=2)
        is_in = labels.get(key) in {v.strip() for v in values.strip("()").split(",")}
        return is_in if operator == "in" else not is_in
    if "!=" in term:
        key, value = term.split("!=")
        return labels.get(key) != value
    if "=" in term:
        key, value = term.replace("==", "=").split("=")
        return labels.get(key) == value
    return term[1:] not in labels if term.startswith("!") else term in labels


def merged(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    new = dict(old) if isinstance(old, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = merged(new.get(key), value)
    return new


def patched(body: Body, operations: Sequence[Mapping[str, Any]]) -> Body:
    """RFC 6902: test, add, replace, remove."""
    for operation in operations:
        *parents, last = [
            part.replace("~1", "/").replace("~0", "~")
            for part in operation["path"].removeprefix("/").split("/")
        ]
        try:
            at: Any = body
            for part in parents:
                at = at[int(part)] if isinstance(at, list) else at[part]
            index: Any = int(last) if isinstance(at, list) and last != "-" else last
            match operation["op"]:
                case "test" if at[index] != operation["value"]:
                    raise KeyError(index)
                case "remove":
                    del at[index]
                case "add" if isinstance(at, list):
                    at.insert(len(at) if index == "-" else index, operation["value"])
                case "replace" if at[index] is None:
                    raise KeyError(index)
                case "add" | "replace":
                    at[index] = operation["value"]
        except (KeyError, IndexError, TypeError, ValueError) as err:
            raise PatchTestFailed(
                f"{operation['op']} {operation['path']} does not hold", status=422
            ) from err
    return body


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every value that is no mapping or an empty one, by its path. Lists are one value."""
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    return {p: v for key, inner in value.items() for p, v in leaves(inner, (*path, key)).items()}


def get_path(body: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        body = body.get(part) if isinstance(body, Mapping) else None
    return body


def set_path(body: Body, path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        body = body.setdefault(part, {})
    if value == {} and isinstance(body.get(path[-1]), dict):
        return  # an empty mapping asks for the field, not for its emptiness
    body[path[-1]] = value


def remove_path(body: Body, path: tuple[str, ...]) -> None:
    for part in path[:-1]:
        body = body.get(part, {})
    body.pop(path[-1], None)
