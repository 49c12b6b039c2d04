"""What a field of a request, or a key of a file, may hold; and what to say of one that is unknown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches

from attrs import frozen


@frozen
class Field:
    """The types that fit, and the words for them."""

    kinds: tuple[type, ...]
    words: str

    def fits(self, value: object) -> bool:
        """Whether `value` is of one of the types; true and false are no numbers."""
        return isinstance(value, self.kinds) and not (isinstance(value, bool) and bool not in self.kinds)


TEXT = Field((str,), "text")
WHOLE = Field((int,), "a whole number")
SECONDS = Field((int, float), "a number of seconds")


def suggest(name: str, known: Iterable[str]) -> str:
    """What to say behind a name that is unknown: the one that was meant, or all that there are."""
    known = [*known]
    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known) or 'none'}"


def shown(value: object) -> str:
    """The beginning of a value that does not fit, for a message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
