from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from types import MappingProxyType

import pytest

from kaito.api.views import decode_owned
from kaito.errors import InvalidRequest
from kaito.kube import requests
from kaito.kube.resources import Kind

PODS = Kind("", "v1", "Pod", "pods", True, decode_owned)
MACHINES = Kind("karpenter.sh", "v1alpha5", "Machine", "machines", False, decode_owned)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (requests.collection_path(PODS), "/api/v1/pods"),
        (requests.collection_path(PODS, "a"), "/api/v1/namespaces/a/pods"),
        (requests.object_path(PODS, "a", "b"), "/api/v1/namespaces/a/pods/b"),
        (requests.object_path(PODS, "a", "b", "binding"), "/api/v1/namespaces/a/pods/b/binding"),
        (requests.object_path(MACHINES, "", "m"), "/apis/karpenter.sh/v1alpha5/machines/m"),
        (
            requests.object_path(MACHINES, "", "a b:ü?#"),
            "/apis/karpenter.sh/v1alpha5/machines/a%20b%3A%C3%BC%3F%23",
        ),
    ],
)
def test_paths_name_group_namespace_and_object(path: str, expected: str) -> None:
    """W24: percent-encoded."""
    assert path == expected


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "/", "a%", "%2e%2e"])
def test_what_is_no_name_makes_no_path(bad: str) -> None:
    """W24"""
    with pytest.raises(InvalidRequest):
        requests.object_path(PODS, "default", bad)
    with pytest.raises(InvalidRequest):
        requests.object_path(PODS, bad, "name")


def test_a_cluster_scoped_kind_is_in_no_namespace() -> None:
    with pytest.raises(InvalidRequest, match="cluster-scoped"):
        requests.collection_path(MACHINES, "default")


def test_read_only_mappings_and_tuples_are_sent_as_json() -> None:
    body = MappingProxyType({"a": (1, 2), "b": MappingProxyType({"ü": 0.5})})
    assert json.loads(requests.encode(body)) == {"a": [1, 2], "b": {"ü": 0.5}}


def test_what_looks_like_a_number_that_is_none_is_sent() -> None:
    """P9: only the numbers themselves are refused."""
    body = {"a": None, "b": "NaN", "c": "null", "d": 2**63 - 1}
    assert json.loads(requests.encode(body)) == body


@pytest.mark.parametrize(
    "bad",
    [
        *(math.nan, math.inf, -math.inf, {1, 2}, object(), 2**64, b"x", "\ud800"),
        datetime(2026, 1, 1, tzinfo=UTC),
        MappingProxyType({"x": [math.nan]}),
    ],
)
def test_what_json_cannot_hold_is_refused(bad: object) -> None:
    """P9"""
    with pytest.raises(InvalidRequest):
        requests.encode({"a": bad})
