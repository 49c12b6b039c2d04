"""The plain model of Palaver, second part: one live conversation. Everything happens at once here; where the
real one waits for a model or a tool, this one stops until it is told the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from attrs import define, field, frozen

from actors.history import INTERRUPTED
from palaver import (
    AgentConfig,
    AgentNotRegistered,
    CompactionFailed,
    ConversationBusy,
    ConversationClosed,
    KeyReused,
    MailboxFull,
    NoActiveTurn,
    RuntimeClosed,
    StorageError,
)
from persistence.records import HistoryEntry, ToolCall
from reliability.plain_records import Result, Row, Session, Steer, Store

TITLE = "A title"
COUNTED = "counted"
ATTEMPTS = 3
FAILURES_BEFORE_PAUSE = 3
DAY_S = 86_400.0
PER_CONVERSATION, PER_SENDER, IN_ALL = 4, 7, 9


@define(eq=False)
class Promise:
    """What a call must give: a value or an error, as soon as it is settled."""

    value: Any = None
    error: type[Exception] | None = None
    settled: bool = False
    when_settled: Callable[[], None] = lambda: None

    def keep(self, value: Any) -> None:
        assert not self.settled
        self.value, self.settled = value, True
        self.when_settled()

    def break_(self, error: type[Exception]) -> None:
        assert not self.settled
        self.error, self.settled = error, True
        self.when_settled()


@define(eq=False)
class Message:
    """An accepted message while it is live. A steer follows the turn that it was put into."""

    row: Row
    on_busy: str = "enqueue"
    steer: Steer | None = None
    turn: Message | None = None
    waited: bool = True  # that it begins is a commit of its own
    end: Promise = field(factory=Promise)
    steered: list[str] = field(factory=list)  # what was put into it
    ticket: Any = None

    @property
    def rank(self) -> int:
        """Who goes first among those who wait."""
        return 0 if self.on_busy == "interrupt" else 1 if self.row.steered else 2


@define(eq=False)
class Compaction:
    """A requested compaction."""

    reply: Promise
    rank: int = 2


@define(eq=False)
class Call:
    """A tool call of a step; `output` once it has ended."""

    call: ToolCall
    output: str | None = None

    @property
    def entry(self) -> HistoryEntry:
        output = INTERRUPTED if self.output is None else self.output
        return HistoryEntry("tool", output, tool_call_id=self.call.id, name=self.call.name)


@define(eq=False)
class Turn:
    """The turn that runs."""

    message: Message
    config: AgentConfig
    pending: list[HistoryEntry] = field(factory=list)
    steers: list[Message] = field(factory=list)
    applied: list[Message] = field(factory=list)  # in the pending entries
    followers: list[Message] = field(factory=list)
    cancels: list[tuple[Promise, bool]] = field(factory=list)
    phase: Literal["model", "tools", "summary"] = "model"
    calls: list[Call] = field(factory=list)
    said: str = ""
    answered: bool = False
    over: bool = False  # the context is so large that it is compacted after this step
    number: int = 0
    steps: int = 0
    tokens: int = 0

    @property
    def open_calls(self) -> list[Call]:
        return [call for call in self.calls if call.output is None] if self.phase == "tools" else []


class Around(Protocol):
    """What a conversation needs of the world."""

    agents: dict[str, AgentConfig]
    store: Store

    def wall(self) -> float: ...
    def accepted(self, sender: str | None = None) -> int: ...
    def live_message(self, row: Row) -> Message | None: ...
    def archive_name(self, agent: str, scope: str, topic: str) -> str: ...
    def archived(self, session: Session, name: str, summary: str) -> None: ...
    def gone(self, chat: Chat) -> None: ...


@frozen
class Answer:
    """What a model says."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    tokens: int = 10
    error: str = ""


@define(eq=False)
class Chat:
    """One live conversation."""

    world: Around
    agent: str
    sender: str
    topic: str | None
    session: Session | None = None
    cid: int = 0
    history: list[HistoryEntry] = field(factory=list)
    title: str = ""
    activity: Turn | Compaction | None = None
    queue: list[Message | Compaction] = field(factory=list)
    keys: dict[str, Message] = field(factory=dict)
    closing: bool = False
    suspended: bool = False
    closers: list[Promise] = field(factory=list)
    waiters: list[Callable[[], None]] = field(factory=list)
    deleters: list[Callable[[], None]] = field(factory=list)
    failures: int = 0
    told: list[tuple[Row, Result]] = field(factory=list)

    # -- what it looks like ------------------------------------------------------------------------

    @property
    def turn(self) -> Turn | None:
        return self.activity if isinstance(self.activity, Turn) else None

    @property
    def phase(self) -> str:
        if self.closing:
            return "closing"
        return "idle" if self.activity is None else "running"

    @property
    def messages(self) -> list[Message]:
        """Accepted and not ended: the one that runs, its steers, those that wait."""
        turn = self.turn
        running = [] if turn is None else [turn.message, *turn.steers]
        return running + [work for work in self.queue if isinstance(work, Message)]

    @property
    def shown(self) -> list[HistoryEntry]:
        """The history that the running turn's model is shown."""
        return self.history + (self.turn.pending if self.turn is not None else [])

    # -- taking messages ---------------------------------------------------------------------------

    def submit(self, message: Message, reply: Promise) -> None:
        """Take a message; the reply is the message that stands for it."""
        if self.closing:
            return reply.break_(ConversationClosed)
        if message.row.key is not None and self._known(message, message.row.key, reply):
            return None
        if message.on_busy == "steer" and self.turn is not None:
            return self.steer(message, reply)
        busy = self.activity is not None
        if message.on_busy == "reject" and busy:
            return reply.break_(ConversationBusy)
        if self._full():
            return reply.break_(MailboxFull)
        row = message.row
        row.accepted_at = self.world.wall()
        if not busy:
            row.state, row.attempts, message.waited = "running", 1, False
        if self.session is not None:
            self.session.rows.append(row)
            self._commit()
        elif row.key is not None:
            self.keys[row.key] = message
        reply.keep(message)
        self._enqueue(message)
        if message.on_busy == "interrupt" and self.turn is not None:
            self._kill(self.turn)
        return self.advance()

    def _known(self, message: Message, key: str, reply: Promise) -> bool:
        """Answer for a message whose key was used before."""
        if self.session is None:
            first = self.keys.get(key)
            row = None if first is None else first.row
        else:
            held = self.world.store.holder(self.agent, self.sender, key)
            row = None if held is None else held[1]
            if row is not None and row.result is not None and self.world.wall() - row.accepted_at > DAY_S:
                row = None
            first = None if row is None else self.world.live_message(row)
        if row is None:
            return False
        if row.text != message.row.text:
            reply.break_(KeyReused)
        elif first is not None:
            reply.keep(first)
        elif row.result is not None:
            reply.keep(row)
        else:
            reply.break_(StorageError)  # it waits in a topic that is not open
        return True

    def _full(self) -> bool:
        waiting = len(self.queue) + (0 if self.turn is None else len(self.turn.steers))
        return (
            waiting >= PER_CONVERSATION
            or self.world.accepted(self.sender) >= PER_SENDER
            or self.world.accepted() >= IN_ALL
        )

    def steer(self, message: Message, reply: Promise) -> None:
        """Take a message for the running turn."""
        turn = self.turn
        if self.closing:
            return reply.break_(ConversationClosed)
        if turn is None:
            return reply.break_(NoActiveTurn)
        if self._full():
            return reply.break_(MailboxFull)
        message.steer = Steer(message.row.number, message.row.text, message.row.sender)
        if self.session is not None:
            self.session.steers.append(message.steer)
            self._commit()
        turn.steers.append(message)
        return reply.keep(message)

    def _enqueue(self, work: Message | Compaction) -> None:
        """Interrupting ones first, then steers that came too late in the order of their calls, then all."""
        place = len(self.queue)
        if work.rank < 2:
            place = sum(1 for waiting in self.queue if self._before(waiting, work))
        self.queue.insert(place, work)

    @staticmethod
    def _before(waiting: Message | Compaction, work: Message | Compaction) -> bool:
        if waiting.rank != work.rank or work.rank == 0:
            return waiting.rank <= work.rank
        assert isinstance(waiting, Message)
        assert isinstance(work, Message)
        return waiting.row.number < work.row.number

    # -- running -----------------------------------------------------------------------------------

    def advance(self) -> None:
        """Start what is next, until something runs."""
        while self.activity is None and self.queue and not self.suspended:
            work = self.queue.pop(0)
            if isinstance(work, Message):
                self._start(work)
            else:
                self._start_compaction(work)
        if self.closing and self.activity is None and not self.queue:
            self.world.gone(self)

    def _start(self, message: Message) -> None:
        row, session = message.row, self.session
        resumed = session is not None and bool(session.entries) and session.last == row.number
        row.state = "running"
        self.activity = turn = Turn(message, AgentConfig(name="?"))
        if session is not None and resumed and final(session.entries[-1]):
            return self._end("text_response", session.entries[-1].content)
        if not resumed:
            turn.pending.append(HistoryEntry("user", row.text, sender=row.sender))
        if session is not None and message.waited:
            row.attempts += 1
            self._commit()
        config = self.world.agents.get(row.guest or self.agent)
        if config is None:
            return self._end("error", error="not registered")
        turn.config = config
        return self._ask(turn)

    def _ask(self, turn: Turn) -> None:
        """The model is asked, with the steers that have come."""
        for steer in turn.steers:
            turn.pending.append(HistoryEntry("user", steer.row.text, sender=turn.message.row.sender))
            turn.applied.append(steer)
            turn.followers.append(steer)
            turn.message.steered.append(steer.row.text)
            steer.turn = turn.message
        turn.steers.clear()
        turn.number += 1
        turn.phase = "model"

    def model_answers(self, answer: Answer) -> None:
        """The running turn's model has answered."""
        turn = self.turn
        assert turn is not None
        if answer.error:
            return self._end("error", error=answer.error)
        guest = turn.message.row.guest
        turn.steps += 1
        turn.tokens += answer.tokens
        if not (answer.text or answer.calls) or (guest and not answer.text):
            return self._end("no_action")
        turn.said = answer.text
        turn.over = not guest and self._over(turn, answer.tokens)
        if guest or not answer.calls:
            turn.pending.append(HistoryEntry("assistant", answer.text, agent=guest or ""))
            if not turn.over:
                return self._end("text_response", answer.text)
            turn.answered = True
            self._commit_step(turn)
            turn.phase = "summary"
            return None
        turn.pending.append(HistoryEntry("assistant", answer.text, tool_calls=answer.calls))
        turn.calls = [Call(call) for call in answer.calls]
        turn.phase = "tools"
        for call in turn.calls:
            if call.call.name == "count":
                call.output = COUNTED
        return self._check_tools(turn)

    def _over(self, turn: Turn, tokens: int) -> bool:
        most = turn.config.compact_threshold
        return most is not None and tokens > most and self.failures < FAILURES_BEFORE_PAUSE

    def tool_answers(self, call: Call, output: str) -> None:
        """A tool of the running turn has ended."""
        turn = self.turn
        assert turn is not None
        call.output = output
        self._check_tools(turn)

    def _check_tools(self, turn: Turn) -> None:
        if turn.open_calls:
            return
        turn.pending += [call.entry for call in turn.calls]
        self._commit_step(turn)
        if turn.over:
            turn.phase = "summary"
        else:
            self._next_round(turn)

    def _next_round(self, turn: Turn) -> None:
        if turn.number >= turn.config.max_iterations:
            self._end("max_iterations", turn.said)
        else:
            self._ask(turn)

    def _commit_step(self, turn: Turn) -> None:
        if self.session is not None:
            self._store(turn)
            self._commit()
        self.history += turn.pending
        turn.pending, turn.applied = [], []

    def _store(self, turn: Turn) -> None:
        assert self.session is not None
        self.session.entries += turn.pending
        if turn.pending:
            self.session.last = turn.message.row.number
        for steer in turn.applied:
            assert steer.steer is not None
            steer.steer.used = True

    def _end(self, stop: str, text: str = "", error: str = "") -> None:
        """The end of the running turn, in one commit; steers that it did not come to are turns then."""
        turn = self.turn
        assert turn is not None
        result = Result(stop, text, error, turn.steps, turn.tokens)
        turn.message.row.end(result)
        late, turn.steers = turn.steers, []
        if self.session is not None:
            self._store(turn)
            self._steers_become_rows(late)
            self._commit()
        self.history += turn.pending
        self._tell(turn.message, result)
        for follower in turn.followers:
            follower.end.keep(result)
        for message in late:
            message.row.steered = True
            self._enqueue(message)
        self.activity = None
        if self.closing:
            self._end_waiting(lambda _message: True)
        for reply, whatever in turn.cancels:
            reply.keep(whatever or stop == "cancelled")
        self._find_title()
        self.advance()

    def _steers_become_rows(self, steers: Sequence[Message]) -> None:
        assert self.session is not None
        for message in steers:
            assert message.steer is not None
            message.steer.used = message.row.steered = True
            self.session.rows.append(message.row)

    def _tell(self, message: Message, result: Result) -> None:
        message.end.keep(result)
        self.told.append((message.row, result))

    def _find_title(self) -> None:
        config = self.world.agents.get(self.agent)
        named = config is not None and config.auto_title and bool(config.model)
        roles = [entry.role for entry in self.history]
        if (
            self.title
            or self.closing
            or self.suspended
            or not named
            or not ("user" in roles and "assistant" in roles)
        ):
            return
        self.title = TITLE
        if self.session is not None:
            self.session.title = TITLE

    # -- ending before the time --------------------------------------------------------------------

    def cancel(self, reply: Promise) -> None:
        """Cancel whatever runs; the reply is whether a turn did."""
        turn = self.turn
        if turn is not None:
            turn.cancels.append((reply, True))
            return self._kill(turn)
        reply.keep(False)
        if isinstance(self.activity, Compaction):
            self._compaction_ends(self.activity, CompactionFailed)
        return None

    def cancel_message(self, message: Message, reply: Promise) -> None:
        """Cancel one message; the reply is whether this ended it. A steer in its turn is that turn."""
        turn = self.turn
        target = message if message.turn is None else message.turn
        if target.end.settled:
            reply.keep(False)
        elif turn is not None and turn.message is target:
            turn.cancels.append((reply, False))
            self._kill(turn)
        else:
            self._take_back(target)
            reply.keep(True)
            self.advance()

    def _take_back(self, message: Message) -> None:
        if self.turn is not None and message in self.turn.steers:
            self.turn.steers.remove(message)
            if self.session is not None:
                self._steers_become_rows([message])
            self._end_unrun([message], "cancelled")
        else:
            self._end_waiting(lambda waiting: waiting is message, "cancelled")

    def _end_waiting(self, which: Callable[[Message], bool], stop: str = "closed") -> None:
        ended = [work for work in self.queue if isinstance(work, Message) and which(work)]
        self.queue = [work for work in self.queue if work not in ended]
        self._end_unrun(ended, stop)

    def _end_unrun(self, messages: Sequence[Message], stop: str, error: str = "") -> None:
        if not messages:
            return
        for message in messages:
            message.row.end(Result(stop, error=error))
        self._commit()
        for message in messages:
            assert message.row.result is not None
            self._tell(message, message.row.result)

    def _kill(self, turn: Turn) -> None:
        if turn.answered:
            return self._end("text_response", turn.said)
        if turn.phase == "tools":
            turn.pending += [call.entry for call in turn.calls]
        return self._end("cancelled")

    def stop_activity(self) -> None:
        if self.turn is not None:
            self._kill(self.turn)
        elif isinstance(self.activity, Compaction):
            self._compaction_ends(self.activity, CompactionFailed)

    def close(self, mode: str, reply: Promise) -> None:
        """Nothing starts from now on; the first reply is True when all is over, others are False."""
        self.closers.append(reply)
        self.shut(mode)

    def shut(self, mode: str) -> None:
        if not self.closing:
            self.closing = True
            self._drop_compactions(ConversationClosed)
            self._end_waiting(lambda _message: True)
        if mode == "now" and self.activity is not None:
            self.stop_activity()
        else:
            self.advance()

    def suspend(self) -> None:
        """The runtime shuts down: what runs is cancelled, what a topic has queued stays in its journal."""
        self.suspended = True
        self._drop_compactions(RuntimeClosed)
        if self.session is None:
            self._end_waiting(lambda _message: True)
        self.stop_activity()
        if self.session is None:
            self._end_waiting(lambda _message: True)
        for message in self.messages:
            message.end.break_(RuntimeClosed)
        self.queue.clear()

    # -- summaries ---------------------------------------------------------------------------------

    def compact(self, reply: Promise) -> None:
        if self.closing:
            return reply.break_(ConversationClosed)
        self._enqueue(Compaction(reply))
        return self.advance()

    def _start_compaction(self, work: Compaction) -> None:
        if not self.history:
            work.reply.keep((None, None))
        elif self.agent not in self.world.agents:
            work.reply.break_(AgentNotRegistered)
        else:
            self.activity = work

    def summary_arrives(self, text: str) -> None:
        """The summary that the running activity asked for; "" is none."""
        work = self.activity
        if isinstance(work, Turn):
            self._turn_compacts(work, text)
        elif isinstance(work, Compaction) and not text:
            self._compaction_ends(work, CompactionFailed)
        elif isinstance(work, Compaction):
            archive = self._archive(text)
            self.activity = None
            self.failures = 0
            work.reply.keep((archive, text))
            self.advance()

    def _turn_compacts(self, turn: Turn, text: str) -> None:
        if text:
            self._archive(text)
            self.failures = 0
        else:
            self.failures += 1
        if turn.answered:
            self._end("text_response", turn.said)
        else:
            self._next_round(turn)

    def _archive(self, summary: str) -> str | None:
        self.history = [HistoryEntry("user", summary)]
        session = self.session
        if session is None:
            return None
        name = self.world.archive_name(self.agent, session.scope, session.topic)
        session.archive, session.summary, session.covered = name, summary, len(session.entries)
        self.world.archived(session, name, summary)
        return name

    def _compaction_ends(self, work: Compaction, error: type[Exception]) -> None:
        self.activity = None
        work.reply.break_(error)
        self.advance()

    def _drop_compactions(self, error: type[Exception]) -> None:
        dropped = [work for work in self.queue if isinstance(work, Compaction)]
        self.queue = [work for work in self.queue if isinstance(work, Message)]
        for work in dropped:
            work.reply.break_(error)

    # -- coming back -------------------------------------------------------------------------------

    def bring_back(self) -> None:
        """Take up what an earlier process left: what ran, unapplied steers, what waited."""
        session = self.session
        assert session is not None
        self.history, self.title = session.live, session.title
        if session.waiting_steers:
            session.take_up_steers()
            self._commit()
        messages = [Message(row) for row in session.unfinished]
        given_up = [m for m in messages if m.row.attempts >= ATTEMPTS and not self._has_answer(m.row)]
        self.queue += [message for message in messages if message not in given_up]
        self._end_unrun(given_up, "error", "given up")
        self.advance()

    def _has_answer(self, row: Row) -> bool:
        assert self.session is not None
        entries = self.session.entries
        return bool(entries) and self.session.last == row.number and final(entries[-1])

    def _commit(self) -> None:
        if self.session is not None:
            self.world.store.commit(self.session.place)


def final(entry: HistoryEntry) -> bool:
    """Whether an entry is a turn's last answer."""
    return entry.role == "assistant" and not entry.tool_calls
