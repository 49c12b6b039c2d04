"""Logs for programs: one JSON object a line, with stable names.

| name | what |
| --- | --- |
| `time` | UTC, ISO 8601, to the millisecond |
| `level` | `DEBUG INFO WARNING ERROR CRITICAL` |
| `logger` | `palaver.` and the part that says it; other libraries' own names |
| `message` | what happened; the same words for the same thing |
| `agent`, `sender`, `conversation`, `turn` | whom it is about, as far as that is known |
| others | what the line says besides, as in `reason`, `tool`, `limit`, `actor` |
| `error` | the traceback, if there is one |
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["text", "json"]

TEXT = "%(levelname)s %(name)s: %(message)s"
FIRST = ("agent", "sender", "conversation", "turn")

# What every record has, whatever it says.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "words"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON. The names are those above; a value that JSON cannot hold is
    written as text."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        more = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        facts: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": getattr(record, "words", None) or record.getMessage(),
        }
        facts |= {name: more.pop(name) for name in FIRST if name in more}
        facts |= {name: value for name, value in more.items() if name not in facts}
        error = self._error(record)
        if error:
            facts["error"] = error
        try:
            line = json.dumps(facts, ensure_ascii=False, allow_nan=False, default=_as_text)
        except (TypeError, ValueError, RecursionError):  # keys that are no text, infinity, a cycle
            plain = {name: _as_text(value) for name, value in facts.items()}
            line = json.dumps(plain, ensure_ascii=False)
        # Half of a surrogate pair has no bytes of its own: JSON's escape stands for it.
        return line.encode("utf-8", "backslashreplace").decode("utf-8")

    def _error(self, record: logging.LogRecord) -> str:
        parts = []
        if record.exc_info and record.exc_info[1] is not None:
            parts.append(self.formatException(record.exc_info))
        elif record.exc_text:
            parts.append(record.exc_text)
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        return "\n".join(parts)


def set_up(
    level: int, form: LogFormat = "text", stream: TextIO | None = None, *, long_running: bool = False
) -> None:
    """Write the log to `stream` (stderr if None), for the process of a command; a server has its own setup.

    Args:
        level: the lowest that is written.
        form: lines for people, or JSON.
        long_running: put the time into lines for people, too; and take the place of an earlier setup.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        JsonFormatter()
        if form == "json"
        else logging.Formatter(f"%(asctime)s {TEXT}" if long_running else TEXT)
    )
    logging.basicConfig(level=level, handlers=[handler], force=long_running)


def _as_text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # its own code
        return f"<{type(value).__name__} that cannot be shown>"
