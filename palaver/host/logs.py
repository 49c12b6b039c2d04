"""The log of a host: lines for people, or one JSON object each for programs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

FIELDS = ("agent", "sender", "conversation", "turn")
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """One object in one line: `at level logger message`, the stable fields that the line has, `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        at = datetime.fromtimestamp(record.created, tz=UTC)
        facts: dict[str, object] = {
            "at": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            facts["error"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=False, default=str)


def log_to_stderr(form: str, level: str) -> None:
    """Let everything from `level` on go to stderr, as "text" or "json"."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
