"""The launch gate: when the next launch may be asked for, kept on the claim as an annotation.

Written with the failure and read by whoever comes next, so a restarted operator waits as long as
the one that saw the refusal would have (rule G11). Pure.
"""

from __future__ import annotations

import msgspec

from kaito import constants
from kaito.api.meta import ObjectMeta
from kaito.clock import parse_rfc3339, rfc3339_micro
from kaito.errors import CloudError
from kaito.provisioner.interface import Fault

_MESSAGE_CHARACTERS = 800


class _Wire(msgspec.Struct, frozen=True, omit_defaults=True):
    attempt: int
    reason: str
    at: str
    next: str = ""
    code: str = ""
    in_a_row: int = 1
    generation: int = 0
    message: str = ""
    remedy: str = ""


class Gate(msgspec.Struct, frozen=True):
    """What the last failed launch left.

    ``attempt``: failures so far; ``in_a_row``: of this reason, it picks the wait. ``at``, ``next``:
    server time, seconds since the epoch; ``next`` is None when only an edit of the claim helps, and
    ``generation`` is the one that was refused.
    """

    attempt: int
    in_a_row: int
    reason: str
    code: str
    message: str
    remedy: str
    at: float
    next: float | None
    generation: int

    def opens_in(self, now: float, generation: int) -> float | None:
        """Seconds until the next launch may be asked for, 0 when it may be; None: not as it is."""
        if self.next is None:
            return 0.0 if generation != self.generation else None
        return max(0.0, self.next - now)


def read(claim: ObjectMeta) -> Gate | None:
    """The claim's gate; None without one, or with one that is not ours to understand."""
    text = claim.annotations.get(constants.ANNOTATION_LAUNCH_GATE)
    if text is None:
        return None
    try:
        wire = msgspec.json.decode(text, type=_Wire)
        at = parse_rfc3339(wire.at)
        next_ = parse_rfc3339(wire.next) if wire.next else None
    except (msgspec.DecodeError, ValueError):
        return None
    return Gate(
        attempt=wire.attempt,
        in_a_row=wire.in_a_row,
        reason=wire.reason,
        code=wire.code,
        message=wire.message,
        remedy=wire.remedy,
        at=at,
        next=next_,
        generation=wire.generation,
    )


def write(gate: Gate) -> str:
    """The annotation's value."""
    wire = _Wire(
        attempt=gate.attempt,
        in_a_row=gate.in_a_row,
        reason=gate.reason,
        code=gate.code,
        message=gate.message,
        remedy=gate.remedy,
        at=rfc3339_micro(gate.at),
        next="" if gate.next is None else rfc3339_micro(gate.next),
        generation=gate.generation,
    )
    return msgspec.json.encode(wire).decode()


def after(
    cause: CloudError | Fault,
    previous: Gate | None,
    *,
    now: float,
    generation: int,
    jitter: float,
    longest_wait: float | None,
) -> Gate:
    """The gate that one more failure leaves.

    ``jitter``: factor on the wait, 0.8 to 1.2. ``longest_wait``: caps every wait (the setting
    ``--launch-retry-max``), jitter included.
    """
    is_same = previous is not None and previous.reason == cause.reason
    in_a_row = previous.in_a_row + 1 if previous is not None and is_same else 1
    wait = _wait(cause, in_a_row)
    if wait is not None:
        wait *= jitter
        if longest_wait is not None:
            wait = min(wait, longest_wait)
    return Gate(
        attempt=previous.attempt + 1 if previous is not None else 1,
        in_a_row=in_a_row,
        reason=cause.reason,
        code=cause.code,
        message=_cut(cause.message if isinstance(cause, Fault) else str(cause)),
        remedy=cause.remedy,
        at=now,
        next=None if wait is None else now + wait,
        generation=generation,
    )


def _wait(cause: CloudError | Fault, in_a_row: int) -> float | None:
    if cause.terminal or not cause.waits:
        return None
    return cause.waits[min(in_a_row, len(cause.waits)) - 1]


def _cut(text: str) -> str:
    """As the original cuts it (facts P1.6)."""
    return text if len(text) <= _MESSAGE_CHARACTERS else text[:_MESSAGE_CHARACTERS] + "..."
