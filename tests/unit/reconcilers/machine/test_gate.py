"""The launch gate on the claim."""

import pytest

from kaito.api.meta import ObjectMeta
from kaito.constants import ANNOTATION_LAUNCH_GATE
from kaito.errors import CloudError, Never
from kaito.provisioner.interface import Fault
from kaito.reconcilers.machine import gate as gates
from tests.fakes.backend import refusal
from tests.unit.reconcilers.machine.builders import NOW, gate


def after(cause, previous=None, *, jitter=1.0, longest_wait=None):
    return gates.after(
        cause, previous, now=NOW, generation=1, jitter=jitter, longest_wait=longest_wait
    )


def test_it_comes_back_as_it_was_written():
    """G11: a restarted operator reads what the last one wrote."""
    for made in (gate(), gate(next=None, code="", at=NOW + 0.123456)):
        meta = ObjectMeta(annotations={ANNOTATION_LAUNCH_GATE: gates.write(made)})
        assert gates.read(meta) == made


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"attempt":1,"reason":"x","at":"never"}'])
def test_what_cannot_be_read_is_no_gate(text: str):
    """A launch too early is refused by the cloud; a claim stuck for ever is not mended by it."""
    assert gates.read(ObjectMeta(annotations={ANNOTATION_LAUNCH_GATE: text})) is None
    assert gates.read(ObjectMeta()) is None


def test_waits_double_per_refusal_in_a_row_to_the_rows_last():
    """P6.3: 10 min to 1 h, counted."""
    made, waits = None, []
    for _ in range(6):
        made = after(refusal("QuotaExceeded"), made)
        waits.append(made.next - NOW)
    assert waits == [600, 1200, 2400, 3600, 3600, 3600]
    assert made is not None
    assert made.attempt == 6


def test_another_reason_starts_its_own_waits_and_goes_on_counting():
    """P6.2."""
    made = after(refusal("QuotaExceeded"), after(refusal("QuotaExceeded")))
    made = after(refusal("CloudUnavailable", waits=(5.0, 10.0)), made)
    assert (made.attempt, made.in_a_row, made.next) == (3, 1, NOW + 5)


def test_jitter_spreads_and_the_setting_caps_every_wait():
    """P6.3."""
    assert after(refusal("QuotaExceeded"), jitter=1.2).next == NOW + 720
    assert after(refusal("QuotaExceeded"), jitter=1.2, longest_wait=3).next == NOW + 3


def test_a_terminal_cause_opens_for_an_edit_only():
    """P6.2."""
    error = CloudError("no", reason="InvalidName", retry=Never(), terminal=True)
    made = after(error)
    assert made.opens_in(NOW + 1e9, 1) is None
    assert made.opens_in(NOW, 2) == 0


def test_a_failed_pool_leaves_its_fault():
    made = after(Fault("CapacityUnavailable", "none left", "Wait", "AllocationFailed", waits=(9,)))
    assert (made.message, made.remedy, made.code) == ("none left", "Wait", "AllocationFailed")


def test_long_texts_are_cut_as_the_original_cuts_them():
    """P1.6."""
    made = after(Fault("CloudError", "x" * 900, waits=(1,)))
    assert made.message == "x" * 800 + "..."
