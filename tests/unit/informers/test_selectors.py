"""Label selectors by table."""

from __future__ import annotations

import pytest

from kaito.informers.selectors import match, parse

LABELS = {"app": "web", "tier": "front", "empty": "", "k.sh/who": "me"}


@pytest.mark.parametrize(
    ("selector", "holds"),
    [
        ("", True),
        ("  ", True),
        ("app=web", True),
        ("app = web", True),
        ("app==web", True),
        ("app=db", False),
        ("app!=db", True),
        ("app!=web", False),
        ("none=x", False),
        ("none!=x", True),
        ("empty=", True),
        ("app=", False),
        ("app in (db, web)", True),
        ("app in(db)", False),
        ("none in (web)", False),
        ("app notin (db)", True),
        ("app notin (db,web)", False),
        ("none notin (web)", True),
        ("empty in ()", True),
        ("app", True),
        ("none", False),
        ("!app", False),
        ("! none", True),
        ("k.sh/who=me", True),
        ("app=web,tier=front", True),
        ("app=web, tier!=front", False),
        ("app in (web,db),!none,tier", True),
        ("in", False),
        ("notin=x", False),
    ],
)
def test_a_selector_holds_for_labels(selector, holds):
    """S11: a label that is not there equals nothing."""
    assert match(parse(selector), LABELS) is holds


@pytest.mark.parametrize(
    "wrong",
    ["=x", "a=b,", ",a", "a=b c", "a in", "a in x", "a in (x", "!a=b", "!a in (b)", "a>1", "a=(b)"],
)
def test_what_is_no_selector_is_refused(wrong):
    """S11."""
    with pytest.raises(ValueError, match="not a label selector"):
        parse(wrong)


def test_a_selector_is_read_once():
    """S11."""
    assert parse("app=web,!x") is parse("app=web,!x")
