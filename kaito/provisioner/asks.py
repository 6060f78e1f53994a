"""What this process asked of the cloud, and what it heard live: a list may lag behind both.

In memory only. After a restart all is asked again, which every call here stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from kaito.provisioner.interface import Instance, InstanceState, Word

_FIRST_SECONDS: Final = 10.0
_LONGEST_SECONDS: Final = 120.0


class Call(StrEnum):
    """A call about one instance."""

    LAUNCH = "launch"
    TERMINATE = "terminate"
    PROVE = "prove"


@dataclass(slots=True)
class _Ask:
    at: float
    wait: float
    was_listed: bool

    def is_shown(self, call: Call, instance: Instance | None) -> bool:
        """The list has caught up with the call."""
        if call is not Call.TERMINATE:
            return instance is not None
        if instance is None:  # gone; or made too lately for this list to show it at all
            return self.was_listed
        return instance.state is InstanceState.DELETING


@dataclass(frozen=True, slots=True)
class Farewell:
    """What the cloud said, live, to the end of one claim's instance. By default: nothing.

    ``is_answered``: a deletion was answered since. ``is_absent``: the last word was that there is
    no such instance. ``was_there``: at some word there was one, so that no order for it can still
    be on its way: another of that name would have been refused.
    """

    claim_uid: str = ""
    is_answered: bool = False
    is_absent: bool = False
    was_there: bool = False


class Asks:
    """By instance name. Times are the boot clock's."""

    def __init__(self) -> None:
        self._asks: dict[str, dict[Call, _Ask]] = {}
        self._farewells: dict[str, Farewell] = {}

    def note(self, name: str, call: Call, *, now: float, is_listed: bool) -> None:
        """The call was answered. ``is_listed``: the list that it was decided on had the name."""
        asks = self._asks.setdefault(name, {})
        earlier = asks.get(call)
        wait = _FIRST_SECONDS if earlier is None else min(earlier.wait * 2, _LONGEST_SECONDS)
        asks[call] = _Ask(now, wait, is_listed)

    def waits(self, name: str, now: float) -> Mapping[Call, float]:
        """Calls that no list has shown the effect of, with the seconds until each may be repeated.

        The wait doubles with each repetition: that the list is behind is no reason to storm.
        """
        asks = self._asks.get(name, {})
        return MappingProxyType({c: max(0.0, ask.at + ask.wait - now) for c, ask in asks.items()})

    @property
    def is_any_unshown(self) -> bool:
        """The lists have not caught up with us."""
        return bool(self._asks)

    def compare(self, instances: Mapping[str, Instance]) -> None:
        """A new list: forget the calls that it shows the effect of."""
        for name, asks in list(self._asks.items()):
            instance = instances.get(name)
            for call, ask in list(asks.items()):
                if ask.is_shown(call, instance):
                    del asks[call]
                ask.was_listed = ask.was_listed or instance is not None
            if not asks:
                del self._asks[name]

    def hear(self, name: str, claim_uid: str, word: Word, *, was_deletion: bool) -> None:
        """The cloud's live word on the instance of a claim that is being deleted."""
        before = self.farewell(name, claim_uid)
        is_absent = word is Word.ABSENT
        self._farewells[name] = Farewell(
            claim_uid,
            # Still there and not going: whatever was answered before has come to nothing.
            is_answered=was_deletion or word is Word.GOING or (before.is_answered and is_absent),
            is_absent=is_absent,
            was_there=before.was_there or not is_absent,
        )

    def farewell(self, name: str, claim_uid: str) -> Farewell:
        """What was heard for this very claim."""
        heard = self._farewells.get(name)
        if heard is None or heard.claim_uid != claim_uid:
            return Farewell(claim_uid)
        return heard

    def forget(self, name: str) -> None:
        """The claim is gone."""
        self._asks.pop(name, None)
        self._farewells.pop(name, None)
