"""What the keys of a workload may hold: a kind of value with its unit, its bounds, and its form in a file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from math import inf
from typing import Any

from attrs import Attribute, frozen

from actors.errors import InvalidConfig
from palaver.simulation.distributions import (
    Distribution,
    Empirical,
    Exponential,
    Fixed,
    LogNormal,
    Uniform,
    is_number,
)
from palaver.toml.fields import shown, suggest

_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_A_DISTRIBUTION = "{exponential = 2}"


def seconds(written: object) -> object:
    """The seconds that a text such as "1h", "1h30m" or "250ms" stands for; anything else as it is."""
    if not isinstance(written, str):
        return written
    parts = _PARTS.findall(written)
    if not parts or "".join(number + unit for number, unit in parts) != written:
        return written
    found: float = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return int(found) if found == int(found) else found


@frozen
class Quantity:
    """What a field may hold: it is the field's validator, and reads it from a file.

    Args:
        unit: of the value, for documentation.
    """

    unit: str

    @property
    def words(self) -> str:
        """What fits, for messages."""
        raise NotImplementedError

    def fits(self, value: Any) -> bool:
        """Whether the field may hold `value`."""
        raise NotImplementedError

    def read(self, written: Any, folder: str) -> Any:
        """The value, of what a file in `folder` has written. What does not fit may come back as it is."""
        return written

    def __call__(self, _instance: Any, attribute: Attribute[Any], value: Any) -> None:
        if not self.fits(value):
            value = value.value if isinstance(value, Fixed) else value  # as it was written
            raise InvalidConfig(f"{attribute.name} must be {self.words}, not {shown(value)}")


@frozen
class Whole(Quantity):
    """A whole number, from `least` on. `never` is what a file writes for None, if None fits."""

    unit: str = "number"
    least: int = 0
    never: str = ""

    @property
    def words(self) -> str:
        return f"a whole number from {self.least} on" + (f', or "{self.never}"' if self.never else "")

    def fits(self, value: Any) -> bool:
        if value is None:
            return bool(self.never)
        return isinstance(value, int) and not isinstance(value, bool) and value >= self.least

    def read(self, written: Any, folder: str) -> Any:
        return None if self.never and written == self.never else written


@frozen
class Number(Quantity):
    """A number from 0 on."""

    @property
    def words(self) -> str:
        return "a number from 0 on"

    def fits(self, value: Any) -> bool:
        return is_number(value) and value >= 0


@frozen
class Seconds(Quantity):
    """A length of virtual time."""

    unit: str = "seconds"

    @property
    def words(self) -> str:
        return 'a number of seconds from 0 on, or a length of time as in "1h30m"'

    def fits(self, value: Any) -> bool:
        return is_number(value) and value >= 0

    def read(self, written: Any, folder: str) -> Any:
        return seconds(written)


@frozen
class Instants(Quantity):
    """Instants of virtual time."""

    unit: str = "seconds"

    @property
    def words(self) -> str:
        return 'a list of instants, each a number of seconds from 0 on or as in "1h30m"'

    def fits(self, value: Any) -> bool:
        return isinstance(value, tuple) and all(is_number(each) and each >= 0 for each in value)

    def read(self, written: Any, folder: str) -> Any:
        return tuple(map(seconds, written)) if isinstance(written, list) else written


@frozen
class Word(Quantity):
    """One of a few words."""

    unit: str = "word"
    choices: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        return f"one of {', '.join(self.choices)}"

    def fits(self, value: Any) -> bool:
        return value in self.choices


@frozen
class Text(Quantity):
    """Any text. `of_file`: it names a file, beside the one that it is written in."""

    unit: str = "text"
    of_file: bool = False

    @property
    def words(self) -> str:
        return "the path of a file" if self.of_file else "text"

    def fits(self, value: Any) -> bool:
        return isinstance(value, str)

    def read(self, written: Any, folder: str) -> Any:
        return os.path.join(folder, written) if self.of_file and isinstance(written, str) else written


@frozen
class Flag(Quantity):
    """True or false."""

    unit: str = "flag"

    @property
    def words(self) -> str:
        return "true or false"

    def fits(self, value: Any) -> bool:
        return isinstance(value, bool)


@frozen
class Drawn(Quantity):
    """A distribution.

    Args:
        most: no draw may be above this.
        once: it is drawn once for each seed; else at each use.
    """

    most: float = inf
    once: bool = False

    @property
    def words(self) -> str:
        bounds = f"a number from 0 to {self.most}" if self.most < inf else "a number from 0 on"
        times = ', a length of time as in "1h30m"' if self.unit == "seconds" else ""
        example = "{uniform = [0, 0.2]}" if self.most < inf else _A_DISTRIBUTION
        return f"{bounds}{times}, or a distribution of them as in {example}"

    def fits(self, value: Any) -> bool:
        return isinstance(value, Distribution) and value.least >= 0 and value.most <= self.most

    def read(self, written: Any, folder: str) -> Any:
        if isinstance(written, dict):
            return distribution(written, folder)
        return seconds(written) if self.unit == "seconds" else written


# -- distributions, as a file writes them -----------------------------------------------------------


def distribution(written: dict[str, Any], folder: str = "") -> Distribution:
    """The distribution that a table stands for.

    Args:
        written: one of `{exponential = MEAN}`, `{lognormal = {median = M, p95 = P}}`, `{uniform = [A, B]}`,
            `{values = [...]}` and `{file = "one-number-a-line.txt"}`.
        folder: of the file that it is written in.

    Raises:
        InvalidConfig: it stands for none.
    """
    if len(written) != 1:
        raise InvalidConfig(f"must be a distribution with one of {', '.join(_READERS)}, not {shown(written)}")
    [(name, facts)] = written.items()
    if name not in _READERS:
        raise InvalidConfig(f"must be a distribution; there is no {name!r}; {suggest(name, _READERS)}")
    try:
        return _READERS[name](facts, folder)
    except InvalidConfig as error:
        raise InvalidConfig(f"must be a distribution; of {name}, {error}") from error


def _exponential(facts: Any, _folder: str) -> Distribution:
    return Exponential(seconds(facts))  # type: ignore[arg-type]  # its validator looks


def _lognormal(facts: Any, _folder: str) -> Distribution:
    if not isinstance(facts, dict) or {*facts} != {"median", "p95"}:
        raise InvalidConfig(f"median and p95 are needed, as in {{median = 0.6, p95 = 2}}, not {shown(facts)}")
    return LogNormal(**{name: seconds(value) for name, value in facts.items()})  # type: ignore[arg-type]


def _uniform(facts: Any, _folder: str) -> Distribution:
    if not isinstance(facts, list) or len(facts) != 2:
        raise InvalidConfig(f"the least and the most are needed, as in [0, 0.2], not {shown(facts)}")
    return Uniform(*map(seconds, facts))  # type: ignore[arg-type]


def _empirical(facts: Any, _folder: str) -> Distribution:
    return Empirical(tuple(map(seconds, facts)) if isinstance(facts, list) else facts)


def _of_file(facts: Any, folder: str) -> Distribution:
    if not isinstance(facts, str):
        raise InvalidConfig(f"the path of a file with one number a line is needed, not {shown(facts)}")
    path = os.path.join(folder, facts)
    try:
        with open(path, encoding="utf-8") as lines:
            return Empirical(tuple(_numbers(path, lines)))
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidConfig(f"{path} cannot be read: {words}") from error


def _numbers(path: str, lines: Any) -> list[float]:
    found = []
    for at, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            found.append(float(text))
        except ValueError:
            raise InvalidConfig(f"{path}:{at} must be one number, not {shown(text)}") from None
    return found


_READERS: dict[str, Callable[[Any, str], Distribution]] = {
    "exponential": _exponential,
    "lognormal": _lognormal,
    "uniform": _uniform,
    "values": _empirical,
    "file": _of_file,
}
