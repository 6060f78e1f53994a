"""What the user wrote cannot be: say so with what to do, and spend nothing."""

from __future__ import annotations

from collections.abc import Sequence

from kaito.api.conditions import Condition, ConditionType
from kaito.api.validation import Fault
from kaito.reconcilers.chain import Step
from kaito.reconcilers.workspace.state import State


def validate(state: State) -> Step:
    """Owner of ``SpecValid``, which exists only while there are faults; all of them at once.

    Long lists of what could be used stand there only; ResourceReady has the nearest few.
    Rules may be newer than the Workspace: one that owns something already is warned and goes on
    (rule G19).
    """
    if not state.faults:
        return Step(done=True, drops=(ConditionType.SPEC_VALID,))
    invalid = Condition(
        ConditionType.SPEC_VALID, "False", state.faults[0].reason, sentences(state.faults)
    )
    if not state.is_refused:
        return Step(done=True, conditions=(invalid,))
    return Step(
        done=False,
        conditions=(
            invalid,
            Condition(
                ConditionType.RESOURCE_READY,
                "False",
                invalid.reason,
                sentences(state.faults, brief=True),
            ),
        ),
    )


def sentences(faults: Sequence[Fault], *, brief: bool = False) -> str:
    """Every fault with its field and its remedy, one line each."""
    remedies = [f.brief or f.remedy if brief else f.remedy for f in faults]
    return "\n".join(
        f"{fault.field}: {fault.message} {remedy}".strip()
        for fault, remedy in zip(faults, remedies, strict=True)
    )
