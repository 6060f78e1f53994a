"""The ledger of design.md §9."""

from __future__ import annotations

from kaito.sandbox.ledger import Ledger
from tests.fakes.clock import FakeClock


async def test_a_vm_is_billed_from_its_making_to_its_end():
    clock = FakeClock()
    ledger = Ledger(clock)
    ledger.resize("ws1", "Standard_NC6s_v3", 1)
    await clock.advance(90)
    ledger.close("ws1")
    await clock.advance(10)
    assert ledger.as_json()["vms"] == [
        {
            "pool": "ws1",
            "vm_size": "Standard_NC6s_v3",
            "created": "2027-01-15T08:00:00Z",
            "deleted": "2027-01-15T08:01:30Z",
            "billed_seconds": 90.0,
        }
    ]


async def test_a_living_vm_is_billed_until_now():
    clock = FakeClock()
    ledger = Ledger(clock)
    ledger.resize("ws1", "Standard_NC6s_v3", 1)
    await clock.advance(5.25)
    (vm,) = ledger.as_json()["vms"]
    assert (vm["deleted"], vm["billed_seconds"]) == (None, 5.25)


def test_peak_is_the_most_alive_at_one_moment_and_a_name_may_come_back():
    ledger = Ledger(FakeClock())
    for name in ("a", "b"):
        ledger.resize(name, "x", 1)
    ledger.close("a")
    ledger.resize("a", "x", 1)
    ledger.close("a")
    ledger.close("b")
    found = ledger.as_json()
    assert (len(found["vms"]), found["live"], found["peak"]) == (3, 0, 2)


def test_a_pool_of_many_vms_counts_each():
    ledger = Ledger(FakeClock())
    ledger.resize("a", "x", 3)
    ledger.resize("a", "x", 1)
    assert (ledger.live, ledger.peak) == (1, 3)


def test_calls_are_counted_per_operation():
    ledger = Ledger(FakeClock())
    for operation in ("put", "list", "list"):
        ledger.count(operation)
    assert ledger.as_json()["calls"] == {"put": 1, "get": 0, "list": 2, "delete": 0, "abort": 0}
