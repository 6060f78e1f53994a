"""Every statement of tests/statements.toml is proven by a test, or measured by a bench.

A test claims a statement at the start of its docstring: ``R16, R17: and why``; a range is
``W8 to W12``, and a later part may claim too: ``E7: at once; E12: transitions + 1``. Prints what is
not covered, with its words, and exits with 1 if there is any. ``--table`` prints who proves what.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "statements.toml"
NOT_SECTIONS = ("scope", "bench", "moot")

ID = re.compile(r"[A-Z]\d+")
# What may stand beside ids: numbers of other lists (P6.2, style 28, issue 10).
_MARK = r"(?:[A-Z]\d+(?:\.\d+)?|[Ss]tyle \d+|[Ii]ssue \d+)"
HEAD = re.compile(rf"{_MARK}(?:(?:, | to | and ){_MARK})*\.?")
RANGE = re.compile(r"([A-Z])(\d+) to \1(\d+)")
# Not run by anybody, so they prove nothing.
IDLE_MARKS = ("skip", "xfail")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """``sections``: statements in the list's order. ``bench``, ``moot``: also by clause."""

    sections: Mapping[str, Mapping[str, str]]
    bench: Mapping[str, str]
    moot: Mapping[str, str]
    tests: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def statements(self) -> dict[str, str]:
        """Words by id."""
        return {id_: words for part in self.sections.values() for id_, words in part.items()}


@dataclass(frozen=True, slots=True)
class Claim:
    """A test that names a statement. ``where``: file::test."""

    id: str
    where: str


def read(text: str) -> Catalogue:
    """The list as its file holds it."""
    raw: dict[str, Any] = tomllib.loads(text)
    return Catalogue(
        sections={name: part for name, part in raw.items() if name not in NOT_SECTIONS},
        bench=raw.get("bench", {}),
        moot=raw.get("moot", {}),
        tests=tuple(raw["scope"]["tests"]),
        others=tuple(raw["scope"].get("others", ())),
    )


def ids_of(docstring: str) -> list[str]:
    """What a docstring's first line claims: ids before a colon, or a line of nothing else."""
    line, found = docstring.strip().partition("\n")[0], []
    for number, part in enumerate(line.split(";")):
        head, colon, _ = part.strip().partition(":")
        if (colon or number == 0) and HEAD.fullmatch(head):
            for letter, first, last in RANGE.findall(head):
                found += [f"{letter}{n}" for n in range(int(first), int(last) + 1)]
            found += re.findall(r"\b[A-Z]\d+\b(?!\.\d)", head)
    return list(dict.fromkeys(found))


def claims_in(source: str, where: str) -> Iterator[Claim]:
    """Claims of the test functions of a module that are run."""
    tree = ast.parse(source, where)
    if any(_is_idle(s.value) for s in tree.body if isinstance(s, ast.Assign) and _is_mark(s)):
        return
    for node in _tests(tree):
        for id_ in ids_of(ast.get_docstring(node) or ""):
            yield Claim(id_, f"{where}::{node.name}")


def _tests(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if any(_is_idle(mark) for mark in node.decorator_list):
                continue
            if isinstance(node, ast.ClassDef):
                yield from _tests(node)
            elif node.name.startswith("test_"):
                yield node


def _is_mark(statement: ast.Assign) -> bool:
    return any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in statement.targets)


def _is_idle(mark: ast.expr) -> bool:
    return any(isinstance(n, ast.Attribute) and n.attr in IDLE_MARKS for n in ast.walk(mark))


def files(catalogue: Catalogue, root: Path) -> list[Path]:
    """The test modules in which these numbers are claimed."""
    found: set[Path] = set()
    for pattern in catalogue.tests:
        for path in root.glob(pattern):
            found.update(path.rglob("test_*.py") if path.is_dir() else [path])
    return sorted(found - {root / other for other in catalogue.others})


def faults(catalogue: Catalogue, claims: Iterable[Claim], root: Path) -> Iterator[str]:
    """A line for each statement nobody proves, and each name that stands for nothing."""
    statements = catalogue.statements
    letters = {id_[0] for id_ in statements}
    claimed = set()
    for claim in claims:
        claimed.add(claim.id)
        if claim.id[0] in letters and claim.id not in statements:
            yield f"{claim.where}: names {claim.id}, which is no statement"
    for id_, words in statements.items():
        if id_ not in claimed and id_ not in catalogue.bench and id_ not in catalogue.moot:
            yield f"{id_} has no test: {words}"
    for table, entries in (("bench", catalogue.bench), ("moot", catalogue.moot)):
        for key, value in entries.items():
            if (id_ := key.partition(" ")[0]) not in statements:
                yield f"[{table}] {key}: {id_} is no statement"
            if table == "moot" and key == id_ and id_ in claimed:
                yield f"[moot] {id_}: is moot, and a test proves it all the same"
            if table == "bench" and not _measures(root / f"{value.replace('.', '/')}.py"):
                yield f"[bench] {key}: {value} is no module that measures"
    for pattern in (*catalogue.tests, *catalogue.others):
        if not any(root.glob(pattern)):
            yield f"[scope] {pattern}: matches nothing"


def _measures(module: Path) -> bool:
    return module.is_file() and "\ndef measure(" in module.read_text(encoding="utf-8")


def table(catalogue: Catalogue, claims: Iterable[Claim]) -> Iterator[str]:
    """For a reader: each statement with its words and its proofs."""
    proofs: dict[str, list[str]] = {}
    for claim in claims:
        proofs.setdefault(claim.id, []).append(claim.where)
    for key, module in catalogue.bench.items():
        id_, _, clause = key.partition(" ")
        proofs.setdefault(id_, []).append(f"{module}{f' ({clause})' if clause else ''}")
    for key, reason in catalogue.moot.items():
        id_, _, clause = key.partition(" ")
        proofs.setdefault(id_, []).append(f"moot{f' ({clause})' if clause else ''}: {reason}")
    for section, statements in catalogue.sections.items():
        yield f"{section}"
        for id_, words in statements.items():
            yield f"  {id_:4} {words}"
            yield from (f"         {proof}" for proof in proofs.get(id_, ["NOTHING"]))


def main(arguments: list[str]) -> int:
    """Check, or print the table."""
    catalogue = read(LIST.read_text(encoding="utf-8"))
    claims = [
        claim
        for path in files(catalogue, ROOT)
        for claim in claims_in(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    if "--table" in arguments:
        print("\n".join(table(catalogue, claims)))
        return 0
    found = list(faults(catalogue, claims, ROOT))
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
