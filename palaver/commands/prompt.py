"""A conversation at a prompt: lines in, answers out, steering in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import click
import gevent
from gevent.queue import Queue

from actors.errors import DescriptionRequired
from actors.events import Event
from palaver.commands.lines import read_lines
from palaver.commands.output import counted, one_line, table
from palaver.commands.port import Conversations
from palaver.commands.printing import Printer, complain, note
from palaver.host.errors import HostUnreachable
from persistence.errors import DatabaseFailed, PalaverError

HELP = """\
/topic TITLE[: DESCRIPTION]  go to a topic; a new one needs a description
/list                        your conversations, live and stored
/compact                     replace the history by a summary
/close                       close the conversation; a topic stays stored
/help                        these lines
/quit                        leave, as Ctrl-D does"""

_END = object()
_TURN_OVER = object()


class Prompt:
    """One sender's conversations with one agent, at a terminal or from a pipe.

    Args:
        rt: the runtime, with the agent registered; or the client of a host that has it.
        fd: where lines come from.
        steers: whether a line that comes while the agent answers steers it; else it waits.
        interactive: whether somebody sees a prompt.
    """

    def __init__(
        self, rt: Conversations, agent: str, sender: str, *, fd: int, steers: bool, interactive: bool
    ) -> None:
        self._rt = rt
        self._agent = agent
        self._sender = sender
        self._fd = fd
        self._steers = steers
        self._interactive = interactive
        self._inbox = Queue()  # lines, _TURN_OVER, _END
        self._held: deque[str] = deque()
        self._streams: deque[Iterator[Event]] = deque()
        self._ended = False
        self._last_turn = 0
        self._topic_title: str | None = None  # that this prompt went to, and not out of
        self.failed = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/topic": self._topic,
            "/list": self._list,
            "/compact": self._compact,
            "/close": self._close,
            "/help": lambda _: click.echo(HELP),
            "/quit": self._quit,
        }

    def run(self) -> None:
        """Go on until the input ends or /quit. Ctrl-C cancels a running turn; elsewhere it is raised."""
        reader = gevent.spawn(self._read)
        try:
            while (line := self._next_line()) is not None:
                if line.startswith("/"):
                    self._command(line)
                elif line.strip():
                    self._converse(line)
        finally:
            reader.kill()

    # -- lines ---------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            for line in read_lines(self._fd):
                self._inbox.put(line)
        except OSError as error:  # a terminal that went away, say
            complain(f"the input cannot be read: {error.strerror or error}")
            self.failed = True
        self._inbox.put(_END)

    def _next_line(self) -> str | None:
        if self._held:
            return self._held.popleft()
        if self._ended:
            return None
        if self._interactive:
            click.secho(f"{one_line(self._sender, 40)}{self._where()}> ", nl=False, bold=True)
        line = self._inbox.get()
        if line is not _END:
            return str(line)
        if self._interactive:
            click.echo()
        return None

    def _where(self) -> str:
        try:
            topic = self._topic_now() or self._topic_title
        except HostUnreachable:
            return " [no host]"
        return f" ({one_line(topic, 40)})" if topic else ""

    def _topic_now(self) -> str | None:
        cid = self._rt.conversation_id(self._agent, self._sender)
        live = None if cid is None else self._rt.conversation(cid)
        return None if live is None else live.topic

    # -- turns ---------------------------------------------------------------------------------------

    def _converse(self, text: str) -> None:
        """Send a message, and show this turn and those that its steers begin."""
        try:
            cid = self._enter()
            self._streams.append(self._rt.stream(cid, text))
            while self._streams:
                self._watch(cid, self._streams.popleft())
        except DatabaseFailed:
            raise
        except PalaverError as error:
            complain(error)
            self.failed = True

    def _enter(self) -> int:
        """The conversation to talk in. A host that was started again knows of no topic that was active."""
        gone = self._topic_title is not None and self._rt.conversation_id(self._agent, self._sender) is None
        if gone and self._topic_title is not None:
            return self._rt.switch_topic(self._agent, self._sender, self._topic_title).conversation_id
        return self._rt.get_or_create(self._agent, self._sender)

    def _watch(self, cid: int, events: Iterator[Event]) -> None:
        showing = gevent.spawn(self._show, events)
        showing.rawlink(lambda _: self._inbox.put(_TURN_OVER))
        try:
            while True:
                try:
                    item = self._inbox.get()
                    if item is _TURN_OVER:
                        break
                    self._typed_meanwhile(cid, item)
                except KeyboardInterrupt:
                    self._rt.cancel(cid)
        finally:
            showing.kill()
        if isinstance(showing.value, Exception):
            raise showing.value

    def _typed_meanwhile(self, cid: int, item: object) -> None:
        if item is _END:
            self._ended = True
        elif not self._steers or str(item).startswith("/"):
            self._held.append(str(item))
        elif str(item).strip():
            try:
                # Into the running turn; if that has just ended, as the next one.
                self._streams.append(self._rt.stream(cid, str(item), on_busy="steer"))
            except DatabaseFailed:
                raise
            except PalaverError as error:
                complain(error)

    def _show(self, events: Iterator[Event]) -> Exception | None:
        """Print a turn. Errors are returned: raised in a greenlet they would be printed there."""
        printer = Printer()
        try:
            for event in events:
                result = getattr(event, "result", None)
                if result is not None and result.turn_id == self._last_turn:
                    return None  # a steer that was put into a turn ends as that one did
                printer.show(event)
        except Exception as error:
            return error
        if printer.result is not None:
            self._last_turn = printer.result.turn_id
            self.failed = self.failed or printer.result.stop_reason == "error"
        return None

    # -- commands ------------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        name, _, argument = line.strip().partition(" ")
        run = self._commands.get(name)
        if run is None:
            complain(f"there is no command {name}; /help lists them")
            return
        try:
            run(argument.strip())
        except DatabaseFailed:
            raise
        except PalaverError as error:
            complain(error)
        except KeyboardInterrupt:
            if self._interactive:
                click.echo()
            note("interrupted")

    def _topic(self, argument: str) -> None:
        title, _, description = (part.strip() for part in argument.partition(":"))
        if not title:
            complain("/topic needs a title: /topic TITLE[: DESCRIPTION]")
            return
        try:
            outcome = self._rt.switch_topic(self._agent, self._sender, title, description or None)
        except DescriptionRequired:
            complain(f"the topic {title!r} is new; say what it is about: /topic {title}: DESCRIPTION")
            return
        self._topic_title = title
        snapshot = self._rt.conversation(outcome.conversation_id)
        count = 0 if snapshot is None else snapshot.message_count
        note(f"{'back in' if outcome.resumed else 'new topic'} {title!r}, {counted(count, 'message')}")

    def _list(self, _argument: str) -> None:
        now = self._rt.conversation_id(self._agent, self._sender)
        live = [
            info
            for info in self._rt.list_active()
            if (info.agent, info.sender) == (self._agent, self._sender)
        ]
        rows: list[tuple[object, ...]] = [
            ("*" if one.id == now else "", one.topic or "(no topic)", one.title, one.state, one.message_count)
            for one in live
        ]
        topics = [each.topic for each in live]
        rows += [
            ("", each.topic, each.title, "stored", each.entry_count)
            for each in self._rt.sessions(self._agent, self._sender)
            if each.topic not in topics
        ]
        headers = ("", "TOPIC", "TITLE", "STATE", "MESSAGES")
        click.echo(table(headers, rows, cut=(1, 2)) if rows else "no conversations")

    def _compact(self, _argument: str) -> None:
        cid = self._rt.conversation_id(self._agent, self._sender)
        outcome = None if cid is None else self._rt.compact(cid)
        if outcome is None or outcome.summary is None:
            note("nothing to compact")
        else:
            note("history compacted" + (f", archived as {outcome.archive}" if outcome.archive else ""))

    def _close(self, _argument: str) -> None:
        cid, topic = self._rt.conversation_id(self._agent, self._sender), self._topic_now()
        self._topic_title = None
        if cid is None or not self._rt.close(cid):
            note("no conversation is open")
        else:
            note(f"closed {topic!r}; /topic {topic} opens it again" if topic else "closed")

    def _quit(self, _argument: str) -> None:
        self._held.clear()
        self._ended = True
