"""The trace of a simulated run: what happened, in order, the same bytes for the same seed."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TextIO

LAST = 40


class Notes:
    """Keeps the last lines, and writes all of them where somebody wants them.

    Args:
        now: virtual seconds since the run began.
        file: gets a line of JSON for each thing that happens.
        keep: whether the last lines are kept.
    """

    def __init__(self, now: Callable[[], float], file: TextIO | None, *, keep: bool) -> None:
        self.wanted = keep or file is not None
        self._now = now
        self._file = file
        self._last: deque[tuple[float, str, str, dict[str, object]]] = deque(maxlen=LAST)

    def note(self, who: str, what: str, facts: dict[str, object]) -> None:
        """Something happened. Times are cut to microseconds; facts are text, numbers and nothing else."""
        if not self.wanted:
            return
        at_s = round(self._now(), 6)
        self._last.append((at_s, who, what, facts))
        if self._file is not None:
            line = {"at_s": at_s, "who": who, "what": what, **facts}
            self._file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")

    @property
    def last(self) -> Sequence[str]:
        """The last lines, for people."""
        return tuple(
            " ".join((f"{at_s:14.6f}  {who:6} {what}", *(f"{name}={fact}" for name, fact in facts.items())))
            for at_s, who, what, facts in self._last
        )
