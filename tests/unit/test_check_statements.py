"""The tool that finds statements without a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_repo import code_lines
from tools.check_statements import Catalogue, Claim, claims_in, faults, files, ids_of, read, table

TEXT = """
[scope]
tests = ["tests/a", "tests/test_*.py"]
others = ["tests/a/test_other.py"]
[wire]
W1 = "sessions"
W2 = "limits"
[queue]
Q1 = "once"
[bench]
Q1 = "bench.queue"
"W1 two" = "bench.wire"
[moot]
"W2 third" = "because"
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("bench/queue.py", "bench/wire.py", "tests/a/test_one.py", "tests/a/test_other.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\ndef measure():\n    ...\n")
    (tmp_path / "bench" / "idle.py").touch()
    (tmp_path / "tests" / "test_two.py").touch()
    return tmp_path


@pytest.fixture
def catalogue() -> Catalogue:
    return read(TEXT)


@pytest.mark.parametrize(
    ("docstring", "ids"),
    [
        ("R16.", ["R16"]),
        ("R16, R17: and why; not R18", ["R16", "R17"]),
        ("W8 to W11", ["W8", "W9", "W10", "W11"]),
        ("R9, A1 and E16: all", ["R9", "A1", "E16"]),
        ("E7: by the watch; E12: transitions + 1.", ["E7", "E12"]),
        ("Style 28, C5: and a long series.", ["C5"]),
        ("P6.2, W10: of another list and of this.", ["W10"]),
        ("P3.7, P9.3, P1.10.", []),
        ("The rule A1 in a sentence.", []),
        ("Facts P6.2: a sentence.", []),
        ("Zero writes; the finalizer first (G16: asks again).", []),
        ("Q1: once.\n\nW1: in the second paragraph.", ["Q1"]),
        ("", []),
    ],
)
def test_a_docstrings_first_line_claims_what_stands_before_a_colon(docstring, ids):
    assert ids_of(docstring) == ids


def test_only_tests_that_are_run_claim():
    source = '''
class TestAll:
    def test_one(self):
        """W1"""

async def test_two():
    """W2"""

def helper():
    """W3"""

@pytest.mark.skip(reason="later")
def test_three():
    """W4"""

@pytest.mark.xfail
async def test_four():
    """W5"""

@pytest.mark.skip
class TestNone:
    def test_five(self):
        """W6"""
'''
    assert [(c.id, c.where) for c in claims_in(source, "t.py")] == [
        ("W1", "t.py::test_one"),
        ("W2", "t.py::test_two"),
    ]
    assert list(claims_in("pytestmark = pytest.mark.skip\n" + source, "t.py")) == []


def test_the_scope_says_where_to_look(catalogue, root):
    found = files(catalogue, root)
    assert [p.name for p in found] == ["test_one.py", "test_two.py"]


def test_what_is_not_covered_is_named_with_its_words(catalogue, root):
    assert list(faults(catalogue, [Claim("W1", "t")], root)) == ["W2 has no test: limits"]
    assert list(faults(catalogue, [Claim("W1", "t"), Claim("W2", "t")], root)) == []


def test_a_name_that_stands_for_nothing_is_a_fault(root):
    wrong = read(
        TEXT.replace("bench.queue", "bench.gone")
        .replace("bench.wire", "bench.idle")
        .replace("W2 third", "W3")
        .replace("tests/a/", "b/")
    )
    claims = [Claim("W1", "t"), Claim("W2", "t"), Claim("W7", "t::x"), Claim("G7", "t::y")]
    assert sorted(faults(wrong, claims, root)) == [
        "[bench] Q1: bench.gone is no module that measures",
        "[bench] W1 two: bench.idle is no module that measures",
        "[moot] W3: W3 is no statement",
        "[scope] b/test_other.py: matches nothing",
        "t::x: names W7, which is no statement",
    ]


def test_a_moot_statement_needs_no_test_and_has_none(catalogue, root):
    moot = read(TEXT.replace('"W2 third"', "W2"))
    assert list(faults(moot, [Claim("W1", "t")], root)) == []
    assert "W2: is moot" in next(faults(moot, [Claim("W1", "t"), Claim("W2", "t")], root))


def test_the_table_shows_proofs_of_every_kind(catalogue):
    assert list(table(catalogue, [Claim("W2", "t::x")])) == [
        "wire",
        "  W1   sessions",
        "         bench.wire (two)",
        "  W2   limits",
        "         t::x",
        "         moot (third): because",
        "queue",
        "  Q1   once",
        "         bench.queue",
    ]


def test_code_is_counted_without_blanks_comments_and_docstrings():
    source = '''"""Module.

Two lines.
"""

# a comment
X = """text
that counts
"""


def f(a):  # one line
    """Says what."""

    return (
        a
    )
'''
    assert code_lines(source) == 3 + 1 + 3
