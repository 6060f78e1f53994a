"""The script of design.md §9: read strictly, counted per rule."""

from __future__ import annotations

import json

import pytest

from kaito.sandbox.script import Latency, Script, ScriptBook, ScriptError, parse_script

FULL = {
    "latency": {"call": 0, "create": 10, "join": 4, "ready": 5.5, "delete": 3, "pod": 2},
    "quota": {"standardNCSv3Family": 12},
    "rules": [
        {
            "operation": "put",
            "pool": "ws*",
            "after": 1,
            "times": 2,
            "status": 429,
            "code": "Throttled",
            "message": "slow down",
            "retry_after": 7,
            "hang": 1.5,
            "drop": False,
            "apply": True,
        },
        {"operation": "list", "hang": True},
    ],
    "pools": [{"pool": "ws1*", "state": "Failed", "code": "AllocationFailed", "message": "none"}],
    "pods": [{"image": "*phi*", "state": "CrashLoopBackOff", "times": 2}],
    "nodes": [{"pool": "ws2", "state": "NoGPU", "index": 3}],
    "spare": [{"name": "own1", "vm_size": "Standard_NC6s_v3", "labels": {"apps": "phi"}}],
    "page_size": 2,
    "stale_list": 30,
    "pool_limit": 3,
    "delete_absent": 204,
    "cluster": {"power_state": "Stopped", "provisioning_state": "Updating"},
}


def test_every_field_of_the_interface_is_taken_and_comes_back():
    """design.md §9: the whole of PUT /sandbox/script."""
    script = parse_script(json.dumps(FULL).encode())
    assert script.latency == Latency(0.0, 10.0, 4.0, 5.5, 3.0, 2.0)
    assert script.rules[0].code == "Throttled"
    assert script.rules[1].hang is True
    assert script.cluster.power_state == "Stopped"
    assert parse_script(script.as_json()) == script


def test_an_empty_script_is_a_cloud_that_works_at_the_pace_of_a_demo():
    script = parse_script(b"{}")
    assert script == Script()
    assert script.latency == Latency(call=0, create=4, join=3, ready=2, delete=2, pod=1)
    assert (script.pool_limit, script.delete_absent, script.page_size) == (100, 404, 0)


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"latencies": {}}, "latencies"),
        ({"latency": {"boot": 1}}, "boot"),
        ({"latency": {"create": "4s"}}, "$.latency.create"),
        ({"latency": {"create": -1}}, "$.latency.create"),
        ({"latency": {"create": True}}, "$.latency.create"),
        ({"quota": {"standardNCSv3Family": "6"}}, "$.quota"),
        ({"rules": [{"pool": "*"}]}, "operation"),
        ({"rules": [{"operation": "patch"}]}, "$.rules[0].operation"),
        ({"rules": [{"operation": "put", "status": 99}]}, "$.rules[0].status"),
        ({"rules": [{"operation": "put", "drop": 1}]}, "$.rules[0].drop"),
        ({"rules": [{"operation": "put", "hang": "x"}]}, "$.rules[0].hang"),
        ({"rules": {"operation": "put"}}, "$.rules"),
        ({"pools": [{"pool": "*", "state": "Slow"}]}, "$.pools[0].state"),
        ({"pods": [{"image": "*", "state": "Happy"}]}, "$.pods[0].state"),
        ({"nodes": [{"pool": "*", "state": "Gone"}]}, "$.nodes[0].state"),
        ({"nodes": [{"pool": "*", "index": -1}]}, "$.nodes[0].index"),
        ({"spare": [{"name": "Own", "vm_size": "Standard_NC6s_v3"}]}, "$.spare[0].name"),
        ({"spare": [{"name": "own", "vm_size": "big"}]}, "$.spare[0].vm_size"),
        ({"delete_absent": 200}, "$.delete_absent"),
        ({"cluster": {"power_state": "Off"}}, "$.cluster.power_state"),
        ({"page_size": 1.5}, "$.page_size"),
    ],
)
def test_what_is_not_a_script_is_refused_and_the_field_named(told, named):
    with pytest.raises(ScriptError, match="script refused") as refused:
        parse_script(json.dumps(told))
    assert named in str(refused.value)


def test_what_is_not_json_is_refused():
    with pytest.raises(ScriptError):
        parse_script(b"{")


def test_a_rule_answers_calls_n_plus_1_to_n_plus_times_that_match():
    """design.md §9: rules; the first that is due answers, each counts for itself."""
    book = ScriptBook()
    book.replace(
        parse_script(
            {
                "rules": [
                    {"operation": "put", "pool": "ws*", "after": 1, "times": 2, "code": "A"},
                    {"operation": "put", "after": 2, "code": "B"},
                ]
            }
        )
    )
    seen = [book.fault("put", "ws1") for _ in range(5)]
    assert [rule and rule.code for rule in seen] == [None, "A", "A", "B", "B"]
    assert book.fault("get", "ws1") is None
    other = book.fault("put", "other")
    assert other is not None
    assert other.code == "B"


def test_replacing_the_script_starts_the_counts_anew_and_tells_the_listeners():
    book, told = ScriptBook(), []
    book.on_change(lambda: told.append(book.script))
    once = parse_script({"rules": [{"operation": "put", "times": 1}]})
    book.replace(once)
    assert [book.fault("put", "a") is not None for _ in range(2)] == [True, False]
    book.replace(once)
    assert book.fault("put", "a") is not None
    assert told == [once, once]


def test_the_first_entry_that_matches_a_pool_decides():
    script = parse_script(
        {
            "pools": [{"pool": "ws1", "state": "Stuck"}, {"pool": "ws*", "state": "Failed"}],
            "nodes": [{"pool": "ws1", "index": 7}, {"pool": "ws*", "state": "NeverReady"}],
        }
    )
    fates = [script.pool_fate(name) for name in ("ws1", "ws2", "other")]
    assert [fate and fate.state for fate in fates] == ["Stuck", "Failed", None]
    assert [script.node_trouble(n) for n in ("ws1", "other")] == ["NeverReady", None]
    assert [script.first_index(n) for n in ("ws1", "ws2")] == [7, 0]
