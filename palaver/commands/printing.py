"""The events of a turn as they are shown in a terminal: the answer as it comes, the rest in dim lines."""

from __future__ import annotations

import click

from actors.events import (
    Compacted,
    CompactionSkipped,
    Done,
    Event,
    Lagged,
    TextDelta,
    TextEnd,
    ThinkingDelta,
    ThinkingEnd,
    ToolCallsStart,
    ToolResult,
    UserSteered,
)
from palaver.commands.output import one_line, printable
from persistence.records import TurnResult

ENDINGS = {
    "cancelled": "cancelled",
    "closed": "the conversation was closed before this could be answered",
    "max_iterations": "stopped: the agent has used all its steps",
    "no_action": "no answer",
}


def note(text: str) -> None:
    """Print one dim line."""
    click.secho(f"  [{one_line(text, 200)}]", dim=True)


def complain(text: object) -> None:
    """Print an error in one line, on stderr."""
    click.secho(f"error: {one_line(str(text), 1_000)}", fg="red", err=True)


class Printer:
    """Prints the events of one turn; `result` is how it ended."""

    def __init__(self) -> None:
        self.result: TurnResult | None = None
        self._open_line = False

    def show(self, event: Event) -> None:
        """Print what there is to see of an event."""
        match event:
            case TextDelta():
                self._write(event.text)
            case ThinkingDelta():
                self._write(event.text, dim=True)
            case TextEnd() | ThinkingEnd():
                self._end_line()
            case ToolCallsStart():
                for call in event.calls:
                    self._note(f"{call.name} {call.arguments}")
            case ToolResult():
                self._note(f"{event.name}: {event.output or 'done'}")
            case UserSteered():
                self._note(f"steered: {event.content}")
            case Compacted():
                where = f", archived as {event.archive}" if event.archive else ""
                self._note(f"history compacted{where}")
            case CompactionSkipped():
                self._note(f"history not compacted: {event.error}")
            case Lagged():
                self._note(f"{event.missed:,} pieces of this answer could not be shown")
            case Done():
                self._finish(event.result)

    def _finish(self, result: TurnResult) -> None:
        self.result = result
        self._end_line()
        if result.stop_reason == "error":
            complain(result.error)
        elif result.stop_reason in ENDINGS:
            note(ENDINGS[result.stop_reason])

    def _write(self, text: str, *, dim: bool = False) -> None:
        text = printable(text)
        click.echo(click.style(text, dim=True) if dim else text, nl=False)
        self._open_line = not text.endswith("\n")

    def _note(self, text: str) -> None:
        self._end_line()
        note(text)

    def _end_line(self) -> None:
        if self._open_line:
            click.echo()
            self._open_line = False
