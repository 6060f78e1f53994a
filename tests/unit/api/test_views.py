from __future__ import annotations

import msgspec
import pytest

from kaito.api import claim
from kaito.api.views import (
    decode_metadata,
    decode_node,
    decode_nodeclaim,
    decode_owned,
    decode_pod,
    gpu_allocatable,
    gpu_requested,
    is_ready,
)

NODE = b"""{"kind":"Node","metadata":{"name":"n","managedFields":[{"manager":"k"}]},
 "spec":{"providerID":"azure:///vm","taints":[{"key":"sku","value":"gpu","effect":"NoSchedule"}]},
 "status":{"capacity":{"nvidia.com/gpu":"2"},"allocatable":{"nvidia.com/gpu":"1","cpu":"6"},
  "conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":null}],
  "nodeInfo":{"kubeletVersion":"v1.34.1"}}}"""


def pod(spec: str, status: str = "{}") -> bytes:
    return f'{{"metadata":{{"name":"p"}},"spec":{spec},"status":{status}}}'.encode()


def gpus(count: int, extra: str = "") -> str:
    return f'{{"resources":{{"requests":{{"nvidia.com/gpu":"{count}"}}}}{extra}}}'


def test_a_node_keeps_what_reconcilers_read_and_drops_the_rest() -> None:
    node = decode_node(NODE)
    assert node.spec.provider_id == "azure:///vm"
    assert node.spec.taints[0].effect == "NoSchedule"
    assert is_ready(node)
    assert gpu_allocatable(node) == 1
    assert not hasattr(node.status, "node_info")


def test_a_node_that_stopped_reporting_is_not_ready() -> None:
    assert not is_ready(decode_node(NODE.replace(b'"status":"True"', b'"status":"Unknown"')))


def test_a_node_whose_plugin_never_came_has_no_gpus() -> None:
    """P7.8: allocatable is what counts, capacity may stay."""
    assert gpu_allocatable(decode_node(b'{"metadata":{"name":"n"}}')) == 0


def test_views_are_immutable() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        decode_node(NODE).spec = None  # type: ignore[misc, assignment]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (f'{{"containers":[{gpus(1)},{gpus(2)}]}}', 3),
        ('{"containers":[{"name":"cpu"}]}', 0),
        (f'{{"containers":[{gpus(1)}],"initContainers":[{gpus(4)}]}}', 4),
        (
            f'{{"containers":[{gpus(1)}],"initContainers":['
            + gpus(2, ',"restartPolicy":"Always"')
            + "]}",
            3,
        ),
        ('{"initContainers":[' + gpus(1, ',"restartPolicy":"Always"') + f",{gpus(4)}]}}", 5),
    ],
)
def test_gpus_of_a_pod_are_what_the_scheduler_reserves(spec: str, expected: int) -> None:
    """G2: free GPUs are allocatable minus what running pods request."""
    assert gpu_requested(decode_pod(pod(spec))) == expected


def test_a_pod_that_ended_holds_no_gpu() -> None:
    ended = pod(f'{{"containers":[{gpus(1)}]}}', '{"phase":"Succeeded"}')
    assert gpu_requested(decode_pod(ended)) == 0


def test_a_pods_last_words_are_read() -> None:
    status = """{"phase":"Pending","containerStatuses":[{"name":"c","restartCount":3,
      "state":{"waiting":{"reason":"CrashLoopBackOff"}},
      "lastState":{"terminated":{"exitCode":137,"reason":"OOMKilled"}}}]}"""
    found = decode_pod(pod('{"nodeName":"n"}', status))
    assert found.spec.node_name == "n"
    container = found.status.container_statuses[0]
    assert container.state.waiting is not None
    assert container.state.waiting.reason == "CrashLoopBackOff"
    assert container.last_state.terminated is not None
    assert container.last_state.terminated.exit_code == 137


def test_a_nodeclaim_answers_as_a_claim() -> None:
    found: claim.Claim = decode_nodeclaim(
        b"""{"metadata":{"name":"ws1"},"spec":{"requirements":[
        {"key":"node.kubernetes.io/instance-type","operator":"In","values":["S"]}],
        "resources":{"requests":{"storage":"50Gi"}},"taints":[{"key":"sku"}],
        "startupTaints":[{"key":"x"}]},
        "status":{"nodeName":"n","providerID":"p","conditions":[{"type":"Ready","status":"True"}]}}"""
    )
    assert (found.instance_type, found.node_name, found.provider_id) == ("S", "n", "p")
    assert found.requests == {"storage": "50Gi"}
    assert [t.key for t in found.taints] == ["sku"]
    assert [t.key for t in found.startup_taints] == ["x"]
    assert claim.is_ready(found)
    assert claim.condition(found, "Launched") is None


def test_an_instance_type_that_is_not_one_value_is_none() -> None:
    several = decode_nodeclaim(
        b"""{"metadata":{"name":"ws1"},"spec":{"requirements":[
        {"key":"node.kubernetes.io/instance-type","operator":"In","values":["A","B"]}]}}"""
    )
    assert several.instance_type == ""


def test_an_owned_object_is_whole_but_for_managed_fields() -> None:
    raw = b'{"kind":"Service","metadata":{"name":"s","managedFields":[{}]},"spec":{"a":[1]}}'
    owned = decode_owned(raw)
    assert owned.body == {"kind": "Service", "metadata": {"name": "s"}, "spec": {"a": [1]}}
    assert owned.metadata.name == "s"


def test_metadata_alone_is_read_from_any_object() -> None:
    assert decode_metadata(NODE).metadata.name == "n"


@pytest.mark.parametrize(
    "decode", [decode_node, decode_pod, decode_nodeclaim, decode_owned, decode_metadata]
)
@pytest.mark.parametrize("raw", [b"{", b"[]", b"{}", b'{"metadata":{"name":1}}'])
def test_what_is_no_object_raises_the_decoders_error(decode, raw: bytes) -> None:
    """Kind.decode: raises msgspec.DecodeError, and nothing else."""
    with pytest.raises(msgspec.DecodeError):
        decode(raw)
