"""Label selectors as kubectl spells them: ``app=web,tier!=db,zone in (a, b),!canary``.

Text comes in, requirements go out, that labels are held against. Nothing else is known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_TERM: Final = re.compile(
    r"""\s* (?P<absent> ! \s* )? (?P<key> [^\s,()=!<>]+ ) \s*
    (?: (?P<sign> ==|=|!= ) \s* (?P<value> [^\s,()=!]* ) \s*
      | (?P<word> \b(?:in|notin) ) \s* \( (?P<values> [^()=!]* ) \) \s*
    )? (?P<end> , | $ )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """The key is there, with one of these values (None: any); or, negated, it is not so."""

    key: str
    values: frozenset[str] | None = None
    is_negated: bool = False

    def holds(self, labels: Mapping[str, str]) -> bool:
        """True for labels that meet it. One that is absent equals nothing, so it meets ``!=``."""
        value = labels.get(self.key)
        is_so = value is not None and (self.values is None or value in self.values)
        return is_so is not self.is_negated


@lru_cache(maxsize=256)
def parse(selector: str) -> tuple[Requirement, ...]:
    """All of these have to hold; none of an empty selector, which takes everything.

    Raises:
        ValueError: not a selector; says from where on.
    """
    found: list[Requirement] = []
    position, has_more = 0, bool(selector.strip())
    while has_more:
        term = _TERM.match(selector, position)
        operator = (term["sign"] or term["word"]) if term is not None else None
        if term is None or (term["absent"] and operator):
            raise ValueError(f"not a label selector: {selector!r}, from {selector[position:]!r} on")
        text = term["value"] if term["sign"] else term["values"]  # a sign has one: no comma in it
        values = frozenset(map(str.strip, text.split(","))) if operator else None
        is_negated = operator in ("!=", "notin") or bool(term["absent"])
        found.append(Requirement(term["key"], values, is_negated))
        position, has_more = term.end(), bool(term["end"])
    return tuple(found)


def match(requirements: Iterable[Requirement], labels: Mapping[str, str]) -> bool:
    """The labels meet all of them."""
    return all(requirement.holds(labels) for requirement in requirements)
