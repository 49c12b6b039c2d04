"""Reading a TOML file so that whatever is wrong with it is told with its line and key."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, cast

import attrs
from attrs import frozen

from actors.errors import InvalidConfig
from palaver.toml.fields import Field, shown, suggest
from palaver.toml.lines import Path, key_lines, line_of


@frozen
class Problem:
    """One thing that is wrong: where, and what to do."""

    file: str
    line: int
    key: str
    words: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: "
        return f"{where}{self.key}: {self.words}" if self.key else f"{where}{self.words}"


class BadConfigFile(InvalidConfig):
    """A file that cannot be used as it is: a host's configuration, a simulation's workload.

    Attributes:
        problems: all that was found, in the order of their lines; never empty.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line)
        super().__init__("; ".join(map(str, self.problems)))


class Reader:
    """The tables of one file, and the problems that were found in them."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        try:
            self.data: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise BadConfigFile([_syntax(file, text, error)]) from error
        self._lines = key_lines(text)

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> Self:
        """A reader of the file at `path`.

        Raises:
            BadConfigFile: it cannot be read, or is no TOML.
        """
        file = os.fspath(path)
        try:
            with open(file, encoding="utf-8") as stream:
                text = stream.read()
        except (OSError, UnicodeDecodeError) as error:
            words = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise BadConfigFile([Problem(file, 1, "", f"cannot be read: {words}")]) from error
        return cls(file, text)

    def problem(self, path: Path, words: object) -> None:
        """Note what is wrong with the key at `path`."""
        found = Problem(self.file, line_of(self._lines, path), dotted(path), str(words))
        if found not in self.problems:
            self.problems.append(found)

    def finish(self) -> None:
        """Raise what was noted.

        Raises:
            BadConfigFile: if anything was.
        """
        if self.problems:
            raise BadConfigFile(self.problems)

    def table(self, path: Path) -> dict[str, Any]:
        """The table at `path`; empty if it is missing, or no table, which is noted."""
        found: Any = self.data
        for name in path:
            found = found.get(name, {})
        if isinstance(found, dict):
            return found
        self.problem(path, f"must be a table, [{dotted(path)}], not {shown(found)}")
        return {}

    def tables(self, path: Path) -> dict[str, dict[str, Any]]:
        """The tables in the table at `path`, by name."""
        return {name: self.table((*path, name)) for name in self.table(path)}

    def known(self, path: Path, known: Iterable[str], hints: Mapping[str, str] | None = None) -> None:
        """Note keys of the table at `path` that are not among `known`; `hints` says more of some."""
        known = [*known]
        for name in self.table(path):
            if name not in known:
                hint = (hints or {}).get(name) or f"there is no such key; {suggest(name, known)}"
                self.problem((*path, name), hint)

    def value(self, path: Path, field: Field, default: Any = None, *, required: bool = False) -> Any:
        """The value at `path` if it fits, else `default`; what does not fit, or is missing, is noted."""
        table = self.table(path[:-1])
        if path[-1] not in table:
            if required:
                self.problem(path, f"is missing: {field.words}")
            return default
        value = table[str(path[-1])]
        if field.fits(value):
            return value
        self.problem(path, f"must be {field.words}, not {shown(value)}")
        return default

    def choice(self, path: Path, choices: Iterable[str], default: str) -> str:
        """As `value`, of a key with a few words to choose from."""
        choices = [*choices]
        value = self.value(path, Field((str,), f"one of {', '.join(choices)}"), default)
        if value not in choices:
            self.problem(path, f"must be one of {', '.join(choices)}, not {shown(value)}")
            return default
        return str(value)

    def fields(
        self,
        path: Path,
        kind: type[Any],
        *,
        elsewhere: Iterable[str] = (),
        hints: Mapping[str, str] | None = None,
        read: Callable[[str, Any], Any] = lambda _name, written: written,
    ) -> dict[str, Any]:
        """What the table at `path` gives for the fields of an attrs class; what does not fit is noted.

        Args:
            kind: the class; each field is a key, checked by the field's own converter and validator.
            elsewhere: keys that are read by others.
            hints: keys that are refused, with what to say.
            read: makes a field's value of its name and of what is written; may raise InvalidConfig.
        """
        known = {each.name: each for each in attrs.fields(kind) if each.name not in (hints or {})}
        self.known(path, dict.fromkeys([*known, *elsewhere]), hints)
        fits = {}
        for name, written in self.table(path).items():
            if name not in known or name in elsewhere:
                continue
            try:
                fits[name] = checked(known[name], read(name, written))
            except InvalidConfig as error:
                self.problem((*path, name), str(error).removeprefix(f"{name} "))
        return fits

    def texts(self, path: Path) -> list[tuple[Path, str]]:
        """The items of a list of texts, each with its path."""
        listed = self.value(path, Field((list,), "a list of texts"), [])
        found: list[tuple[Path, str]] = []
        for number, item in enumerate(listed):
            if isinstance(item, str):
                found.append(((*path, number), item))
            else:
                self.problem((*path, number), f"must be text, not {shown(item)}")
        return found


def checked(attribute: attrs.Attribute[Any], value: Any) -> Any:
    """The value as a field of an attrs class holds it.

    Raises:
        InvalidConfig: whatever the field's own converter and validator say of it.
    """
    if attribute.converter is not None:
        value = cast(Callable[[Any], Any], attribute.converter)(value)
    if attribute.validator is not None:
        attribute.validator(None, attribute, value)
    return value


def dotted(path: Path) -> str:
    """A path as a file writes it: `models."a b".kind`, `tools[1]`."""
    text = ""
    for name in path:
        if isinstance(name, int):
            text += f"[{name}]"
        else:
            bare = name.isascii() and name.replace("-", "_").isidentifier()
            text += ("." if text else "") + (name if bare else f'"{name}"')
    return text


def _syntax(file: str, text: str, error: tomllib.TOMLDecodeError) -> Problem:
    # The reader tells the place in its words only: "... (at line 3, column 5)", "... (at end of document)".
    words, _, place = str(error).rpartition(" (at ")
    number = place.removeprefix("line ").partition(",")[0]
    line = int(number) if number.isdigit() else text.count("\n") + (not text.endswith("\n"))
    return Problem(file, max(1, line), "", f"this is no TOML: {words or error}")
