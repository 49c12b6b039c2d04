"""The planted bugs as they are written down, one TOML file each, and how one gets into a copy of the code."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from attrs import frozen

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
QUICK = 12  # RELIABILITY.md: the quick run catches the first 12
LIMIT_S = 120.0


class DoesNotApply(Exception):
    """The code has changed: a bug cannot be planted any more as it is written down."""


@frozen
class Change:
    """`find`, which is in `file` exactly once, becomes `replace`."""

    file: str
    find: str
    replace: str


@frozen
class Bug:
    """A mistake that a tired colleague could make.

    Args:
        what: what is wrong then, in one sentence.
        guarantees: numbers of RELIABILITY.md.
        tests: pytest node ids, each of which must fail.
        checks: reliability checks as "NAME:COUNT" or "NAME:COUNT:SEED", each of which must find a violation.
        limit_s: how long each of them may take, in seconds.
    """

    number: int
    name: str
    what: str
    guarantees: tuple[int, ...]
    changes: tuple[Change, ...]
    tests: tuple[str, ...]
    checks: tuple[str, ...]
    limit_s: float

    @property
    def caught_by(self) -> tuple[str, ...]:
        """Everything that must notice it."""
        return (*self.tests, *self.checks)


def all_bugs() -> list[Bug]:
    """Every planted bug, by number."""
    bugs = [read_bug(path) for path in sorted(FOLDER.glob("*.toml"))]
    numbers = [bug.number for bug in bugs]
    assert len({*numbers}) == len(numbers), f"two bugs have one number: {numbers}"
    return bugs


def read_bug(path: Path) -> Bug:
    """The bug that a file describes; its number and name are the file's."""
    number, _, name = path.stem.partition("-")
    facts = tomllib.loads(path.read_text())
    changes = tuple(Change(**change) for change in facts.pop("change"))
    bug = Bug(
        number=int(number),
        name=name,
        what=facts.pop("what"),
        guarantees=tuple(facts.pop("guarantees")),
        changes=changes,
        tests=tuple(facts.pop("caught_by", ())),
        checks=tuple(facts.pop("checks", ())),
        limit_s=float(facts.pop("limit_s", LIMIT_S)),
    )
    assert not facts, f"{path.name} says what nobody reads: {', '.join(facts)}"
    assert bug.caught_by, f"{path.name} names nothing that catches it"
    return bug


def plant(bug: Bug, tree: Path) -> None:
    """Change the code in `tree`.

    Raises:
        DoesNotApply: a text is not in its file, or more than once.
    """
    for path, text in planted(bug, tree).items():
        path.write_text(text)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()


def planted(bug: Bug, tree: Path = ROOT) -> dict[Path, str]:
    """The files that a bug changes, as it leaves them; nothing is written.

    Raises:
        DoesNotApply: as `plant`.
    """
    texts: dict[Path, str] = {}
    for change in bug.changes:
        path = tree / change.file
        text = texts.get(path) or _text(path)
        times = text.count(change.find)
        if times != 1:
            raise DoesNotApply(
                f"planted bug {bug.number} ({bug.name}) does not apply any more: this is {times} times in "
                f"{change.file}, and must be there once; write it anew for the code as it is:\n{change.find}"
            )
        texts[path] = text.replace(change.find, change.replace)
    for path, text in texts.items():
        compile(text, str(path), "exec")  # a bug that is no Python would be caught by anything
    return texts


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def named(bug: Bug) -> dict[str, Any]:
    """What a reader of a table or of JSON wants to know of a bug."""
    return {"number": bug.number, "name": bug.name, "what": bug.what, "guarantees": [*bug.guarantees]}
