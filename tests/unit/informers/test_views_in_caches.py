"""What a cache of views keeps of the objects: what the views name, and nothing else."""

from __future__ import annotations

import gc
import sys

import orjson
import pytest

from kaito.api.views import decode_node, decode_pod

META = {
    "name": "x",
    "namespace": "ns",
    "uid": "u",
    "resourceVersion": "1",
    "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:spec": {}}}],
    "annotations": {"a": "b"},
}
POD = {
    "metadata": META,
    "spec": {
        "nodeName": "n",
        "containers": [{"name": "c", "env": [{"name": "E"}]}],
        "volumes": [{}],
    },
    "status": {"phase": "Running", "podIP": "10.0.0.1"},
}
NODE = {
    "metadata": META,
    "spec": {"providerID": "azure://x", "podCIDR": "10.0.0.0/24"},
    "status": {
        "allocatable": {"cpu": "4"},
        "images": [{"names": ["i"]}],
        "nodeInfo": {"arch": "x"},
    },
}


@pytest.mark.parametrize(("decode", "body"), [(decode_pod, POD), (decode_node, NODE)])
def test_a_view_keeps_nothing_of_the_bytes_it_was_made_from(decode, body):
    """S19: no buffer, no slice of it: they are freed with the line they came in."""
    raw = orjson.dumps(body)
    held = sys.getrefcount(raw)
    obj = decode(raw)
    assert sys.getrefcount(raw) == held
    assert not any(isinstance(part, bytes | bytearray | memoryview) for part in reachable(obj))


@pytest.mark.parametrize(
    ("view", "path"),
    [
        (decode_pod(orjson.dumps(POD)), "metadata.managed_fields"),
        (decode_pod(orjson.dumps(POD)), "spec.volumes"),
        (decode_pod(orjson.dumps(POD)), "status.pod_ip"),
        (decode_node(orjson.dumps(NODE)), "status.images"),
        (decode_node(orjson.dumps(NODE)), "status.node_info"),
    ],
)
def test_a_path_that_a_view_does_not_name_was_dropped_and_cannot_be_read(view, path):
    """S19: reading is by the names that decoding keeps, so one cannot be had without the other."""
    *parents, last = path.split(".")
    for name in parents:
        view = getattr(view, name)
    with pytest.raises(AttributeError):
        getattr(view, last)
    assert not hasattr(view, "__dict__")


def reachable(obj: object) -> list[object]:
    found: dict[int, object] = {}
    stack = [obj]
    while stack:
        part = stack.pop()
        if id(part) not in found and not isinstance(part, type):
            found[id(part)] = part
            stack += gc.get_referents(part)
    return list(found.values())
