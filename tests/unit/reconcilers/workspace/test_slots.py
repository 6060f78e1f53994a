"""Who holds a slot, when an empty one is asked for again, why a claim is no further."""

from __future__ import annotations

import re

import pytest

from kaito.clock import rfc3339
from kaito.reconcilers.workspace.causes import cause
from kaito.reconcilers.workspace.naming import claim_name
from kaito.reconcilers.workspace.slots import (
    ASK_WAITS_SECONDS,
    ask_wait,
    fill,
    progress,
    record,
    well_wait,
)
from tests.unit.reconcilers.workspace.builders import (
    NOW,
    UID,
    asked,
    claim,
    condition,
    launched,
    node,
    ready_state,
    state,
    workspace,
)


def holders(s):
    slots, extra = fill(s)
    return (
        {x.index: x.claim.metadata.name if x.claim else None for x in slots},
        [c.metadata.name for c in extra],
    )


def test_a_claims_name_is_an_agent_pools_name_and_one_per_slot_for_ever():
    names = [claim_name(UID, i) for i in range(150)]
    assert len(set(names)) == 150
    assert names == [claim_name(UID, i) for i in range(150)]
    assert all(re.fullmatch(r"[a-z][a-z0-9]{10}", n) for n in names)


def test_a_hole_in_the_middle_is_seen_as_that_slot():
    """G1: slots, not counts."""
    held, _ = holders(state(workspace(count=3), claims=(claim(0), claim(2))))
    assert held == {0: claim_name(UID, 0), 1: None, 2: claim_name(UID, 2)}


def test_claims_of_the_original_fill_the_lowest_free_slots_and_the_rest_is_left_over():
    """G1: other names, our labels."""
    old = [claim(name=f"wsold{i}", uid_label=None, age=100 - i) for i in range(3)]
    held, extra = holders(state(workspace(count=3), claims=(claim(1), *old)))
    assert held == {0: "wsold0", 1: claim_name(UID, 1), 2: "wsold1"}
    assert extra == ["wsold2"]


def test_a_recorded_holder_keeps_its_slot_when_an_older_claim_turns_up():
    """G1: the holder is recorded in status.nodes."""
    ws = workspace(count=2, nodes=(asked(1, claim="wsb"),))
    late = claim(name="wsa", uid_label=None, age=500)
    held, _ = holders(state(ws, claims=(claim(name="wsb", uid_label=None), late)))
    assert held == {0: "wsa", 1: "wsb"}


def test_a_claim_that_is_being_deleted_holds_its_slot():
    """G1: until the object is gone."""
    s = state(claims=(claim(deleting=True),))
    slot = fill(s)[0][0]
    assert ask_wait(slot, s) is None
    assert not slot.is_ready
    assert progress(slot)[0] == "Deleting"


@pytest.mark.parametrize("asks", [1, 2, 3, 4, 5, 9])
def test_an_empty_slot_waits_longer_with_each_ask(asks):
    """G3: 10 s, 1 min, 5 min, 15 min, 1 h, jitter within a fifth, the same on every pass."""
    s = state(workspace(nodes=(asked(asks=asks, ago=3),)))
    nominal = ASK_WAITS_SECONDS[min(asks, 5) - 1]
    waits = {ask_wait(fill(s)[0][0], s) for _ in range(3)}
    assert len(waits) == 1
    assert 0.8 * nominal - 3 <= waits.pop() <= 1.2 * nominal - 3


def test_an_empty_slot_is_asked_for_at_once_when_it_never_was_or_has_waited_enough():
    """G3."""
    never = state()
    waited = state(workspace(nodes=(asked(asks=2, ago=72),)))
    well = state(workspace(nodes=(asked(asks=0, ago=1),)))
    assert [ask_wait(fill(s)[0][0], s) for s in (never, waited, well)] == [0.0, 0.0, 0.0]


def test_an_ask_dated_in_the_future_delays_no_longer_than_its_wait():
    s = state(workspace(nodes=(asked(asks=1, ago=-86_400),)))
    assert ask_wait(fill(s)[0][0], s) <= 12


def test_ten_minutes_of_ready_forget_the_asks():
    """G3: a claim deleted by hand after that is replaced at once."""
    ws = workspace(nodes=(asked(asks=3, ago=900),))
    young = ready_state(ws, nodes=(node(ready_ago=300),), claims=(settled(),))
    old = ready_state(ws, nodes=(node(ready_ago=601),), claims=(settled(),))
    assert well_wait(fill(young)[0][0], young) == 300
    assert record(fill(young)[0][0], young, was_asked=False).asks == 3
    assert record(fill(old)[0][0], old, was_asked=False).asks == 0


def settled():
    return claim(node="aks-0", conditions=launched(), age=899)


def test_an_ask_that_a_crash_kept_from_the_status_is_counted_from_its_claim():
    """G3: POST done, status patch never sent."""
    lost = state(claims=(claim(age=20),))
    again = state(workspace(nodes=(asked(asks=2, ago=500),)), claims=(claim(age=20),))
    known = state(workspace(nodes=(asked(asks=2, ago=20),)), claims=(claim(age=20),))
    found = [record(fill(s)[0][0], s, was_asked=False) for s in (lost, again, known)]
    assert [(r.asks, r.last_asked) for r in found] == [
        (1, rfc3339(NOW - 20)),
        (3, rfc3339(NOW - 20)),
        (2, rfc3339(NOW - 20)),
    ]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ((), None),
        ([("MachineLaunched", "Unknown", "Creating")], ("Creating", False)),
        ([("MachineLaunched", "False", "LaunchFailed")], ("LaunchFailed", True)),
        (
            [
                ("LaunchDiagnosis", "True", "QuotaExceeded"),
                ("MachineLaunched", "False", "LaunchFailed"),
            ],
            ("QuotaExceeded", True),
        ),
        (
            [
                ("LaunchDiagnosis", "True", "QuotaExceeded"),
                ("MachineLaunched", "True", ""),
                ("MachineRegistered", "False", "NodeNotFound"),
            ],
            ("NodeNotFound", False),
        ),
        (
            [
                ("LaunchDiagnosis", "True", "QuotaExceeded"),
                ("MachineLaunched", "Unknown", "Creating"),
            ],
            ("QuotaExceeded", False),
        ),
        (
            [
                ("LaunchDiagnosis", "True", "OperationInProgress"),
                ("MachineLaunched", "Unknown", "OperationInProgress"),
            ],
            ("OperationInProgress", False),
        ),
        (
            [
                ("MachineLaunched", "True", ""),
                ("MachineRegistered", "False", "MultipleNodesFound"),
                ("MachineInitialized", "False", "NodeNotFound"),
            ],
            ("MultipleNodesFound", True),
        ),
        (
            [
                ("Launched", "Unknown", "AwaitingReconciliation"),
                ("Registered", "Unknown", "SomethingNew"),
            ],
            ("SomethingNew", True),
        ),
    ],
)
def test_the_deepest_cause_of_a_claim_is_told(conditions, expected):
    """Facts 13.2: a real error beats a word of progress."""
    found = cause(claim(conditions=tuple(condition(*c) for c in conditions)))
    assert (found and (found.reason, found.failed)) == expected


@pytest.mark.parametrize(
    ("claims", "nodes", "expected"),
    [
        ((), (), "Pending"),
        ((claim(),), (), "Creating"),
        ((claim(conditions=launched(node=False)),), (), "Joining"),
        ((claim(node="aks-0", conditions=launched()),), (), "NotReady"),
        ((claim(node="aks-0"),), (node(ready=False),), "Starting"),
        ((claim(node="aks-0"),), (node(gpus=0),), "Starting"),
        ((claim(node="aks-0", conditions=launched()),), (node(ready=False),), "NotReady"),
        ((claim(node="aks-0", conditions=launched()),), (node(),), "Ready"),
    ],
)
def test_a_slot_tells_how_far_it_is(claims, nodes, expected):
    s = state(claims=claims, nodes=nodes)
    assert progress(fill(s)[0][0])[0] == expected
