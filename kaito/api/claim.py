"""What every node claim answers, whichever kind it is (Machine v1alpha5, NodeClaim v1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kaito.api.meta import ConditionView, ObjectMeta


class TaintView(Protocol):
    """A taint, as both kinds spell it."""

    @property
    def key(self) -> str:
        """Label-like key."""
        ...

    @property
    def effect(self) -> str:
        """``NoSchedule``, ``PreferNoSchedule`` or ``NoExecute``."""
        ...

    @property
    def value(self) -> str:
        """May be empty."""
        ...


class Claim(Protocol):
    """One asked-for machine. Satisfied by ``machine.Machine`` and ``views.NodeClaim``."""

    @property
    def metadata(self) -> ObjectMeta:
        """``metadata``."""
        ...

    @property
    def instance_type(self) -> str:
        """The one instance type asked for; empty when none or several are."""
        ...

    @property
    def node_name(self) -> str:
        """Name of its Node; empty until registered."""
        ...

    @property
    def provider_id(self) -> str:
        """The cloud's name of the machine; empty until launched."""
        ...

    @property
    def conditions(self) -> tuple[ConditionView, ...]:
        """Conditions as they are on the object."""
        ...

    @property
    def requests(self) -> Mapping[str, str | int]:
        """Resources asked for, quantities as written; ``storage`` is the OS disk."""
        ...

    @property
    def taints(self) -> Sequence[TaintView]:
        """Taints the Node is to carry."""
        ...

    @property
    def startup_taints(self) -> Sequence[TaintView]:
        """Taints that someone else takes off before the claim counts as initialized."""
        ...


def condition(claim: Claim, type: str) -> ConditionView | None:
    """The claim's condition of that type, None when it has none."""
    return next((c for c in claim.conditions if c.type == type), None)


def is_ready(claim: Claim) -> bool:
    """Its ``Ready`` is True: the Node is there, ready and initialized."""
    ready = condition(claim, "Ready")
    return ready is not None and ready.status == "True"
