"""One turn: model rounds, tool calls, steering points, compaction points. Lives in a child greenlet."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import gevent
import pykka
from gevent import GreenletExit

from actors import compaction
from actors.agents import Agent
from actors.errors import AgentNotRegistered, ModelError
from actors.events import (
    Compacted,
    CompactionSkipped,
    ContextUsage,
    Done,
    Event,
    ToolCallsComplete,
    ToolCallsStart,
    UserSteered,
)
from actors.history import (
    CHARS_PER_TOKEN,
    LiveHistory,
    entry_chars,
    interrupted_results,
    to_wire,
    tool_result,
)
from actors.journal import Journal
from actors.logs import log
from actors.messages import (
    AutomaticCompactionFailed,
    HistoryCompacted,
    StepStored,
    TurnEnded,
)
from actors.model_call import ModelCall
from actors.models.base import Message, ModelRequest
from actors.models.encoded import Encoded, EncodedRun
from actors.models.unlisted import unlisted
from actors.own_turn import TurnRun
from actors.permit import CLEAN_UP_S
from actors.round import Round
from actors.services import Services
from actors.state import ConversationState
from actors.storage import notify
from actors.text import describe_error, mend_text
from actors.ticket import SteerRequest, Ticket
from actors.tool_calls import ToolCalls
from actors.tools import ToolOutcome
from persistence.errors import PalaverError, StorageError
from persistence.records import NO_USAGE, HistoryEntry, StopReason, ToolCall, TurnResult

logger = logging.getLogger("palaver.turn")

TRACE_VERSION = 1

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Turn:
    """A running turn of one conversation.

    The conversation actor starts it, appends to `steers`, and may cancel it; the turn reports by
    message: `StepStored` for every committed step, `HistoryCompacted`, and `TurnEnded` exactly once,
    whatever happens. It changes nothing of the conversation itself.

    Args:
        ref: the conversation actor, which hears the reports.
        journal: where steps are stored; None in a tmp chat.
        ticket: the message that the turn answers.
        waited: whether it was stored as `queued`, so that its beginning is to be stored now.
    """

    __slots__ = (
        "_answer",
        "_base",
        "_based",
        "_call",
        "_cancelled",
        "_chars",
        "_compaction_paused",
        "_encoded",
        "_giving_up",
        "_injected",
        "_journal",
        "_late",
        "_model",
        "_own",
        "_pending",
        "_ref",
        "_running",
        "_services",
        "_state",
        "_steps",
        "_usage",
        "_waited",
        "_watch",
        "_wire",
        "applied",
        "ended",
        "run",
        "started_at",
        "steers",
        "ticket",
    )

    def __init__(
        self,
        services: Services,
        ref: pykka.ActorRef[Any],
        state: ConversationState,
        journal: Journal | None,
        ticket: Ticket,
        waited: bool = False,
    ) -> None:
        self.ticket = ticket
        self.steers: list[SteerRequest] = []
        self.applied: tuple[int, ...] = ()
        self.ended = False
        self.started_at = services.clock.monotonic()
        self._services = services
        self._ref = ref
        self._state = state
        self._journal = journal
        self._waited = waited
        self._base: Sequence[Message] = ()  # what was said before; of the live list, as many as it had then
        self._based = 0
        self._encoded: Encoded | None = None  # the base, if it is the live list
        self._injected: Sequence[Message] = ()
        self._pending: list[HistoryEntry] = []
        self._wire: list[Message] = []  # the turn's own messages since the base was taken
        self._own: Encoded | None = None  # the same, once they are to be sent again
        self._chars = 0  # of everything that the next request shows the model
        self._usage = NO_USAGE
        self._steps = 0
        self._model = ""
        self._answer: str | None = None
        self._call: ModelCall | None = None  # the one under way
        self._cancelled = False
        self._late = False  # its time is over
        self._running = False
        self._giving_up: gevent.Greenlet | None = None
        self._watch = 0
        self._compaction_paused = state.compaction_failures >= compaction.FAILURES_BEFORE_PAUSE
        self.run = TurnRun(state.id, self._run)

    # -- from the conversation actor ---------------------------------------------------------------

    def cancel(self) -> None:
        """Stop the turn wherever it waits; returns at once. Completed steps stay stored."""
        if not (self._cancelled or self._late or self.ended):
            self._cancelled = True
            self._stop()

    def _time_is_up(self) -> None:
        """In the hub, when the turn has taken as long as it may."""
        if not (self._cancelled or self.ended):
            self._late = True
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self.run.kill()
            self._giving_up = gevent.spawn_later(CLEAN_UP_S, self._give_up)

    def _give_up(self) -> None:
        """End the turn without its greenlet, which is kept by a model that refuses to end. Whatever else a
        turn waits for ends by itself."""
        self._giving_up = None
        if self.ended or self._call is None:
            return
        self._call.leave_behind()
        failure = self._call.too_late() if self._call.late else _Stopped()
        self._report(*self._judge(failure))

    # -- the turn's greenlet -----------------------------------------------------------------------

    def _run(self) -> None:
        self._running = True
        self._watch = self._services.turn_time.begin(self._time_is_up)
        error, retryable = None, False
        try:
            text, stop_reason = self._rounds()
        except BaseException as failure:  # nothing of a turn may cross to its conversation
            if self.ended:
                return  # it was left behind
            text, stop_reason, error, retryable = self._judge(failure)
        self._report(text, stop_reason, error, retryable)

    def _judge(self, failure: BaseException) -> tuple[str, StopReason, str | None, bool]:
        """What a turn that failed, or was stopped, has come to."""
        if self._late and not isinstance(failure, StorageError):
            failure = self._too_late()
        cancelled = self._cancelled and isinstance(failure, GreenletExit | _Stopped)
        words = None if cancelled else self._describe(failure)
        if self._answer is not None and not isinstance(failure, StorageError):
            return self._answer, "text_response", None, False  # only a compaction was left to do
        if cancelled:
            return "", "cancelled", None, False
        return "", "error", words, _is_retryable(failure)

    def _too_late(self) -> ModelError:
        return ModelError(
            f"the turn took longer than {self._services.turn_time} and was stopped; its completed steps are "
            "kept, and the message can be sent again",
            retryable=True,
        )

    def _describe(self, failure: BaseException) -> str:
        ours = isinstance(failure, PalaverError)  # its message says what was asked and what to do
        words = describe_error(failure, named=not ours)
        if ours:
            self._log(logging.WARNING, "turn failed", reason=words)
        else:
            self._log(logging.ERROR, "turn failed", reason=words, error=_printable(failure))
        return words

    def _log(self, level: int, words: str, *, error: BaseException | None = None, **more: object) -> None:
        log(logger, level, words, self._state, turn=self.ticket.turn_id, error=error, **more)

    def _report(self, text: str, stop_reason: StopReason, error: str | None, retryable: bool) -> None:
        self._running = False
        self.ended = True
        self._services.turn_time.end(self._watch)
        if self._giving_up is not None:
            self._giving_up.kill(block=False)
        result = TurnResult(
            text,
            stop_reason,
            None if error is None else mend_text(error),
            self._steps,
            self._usage,
            self._model,
            self._state.id,
            self.ticket.turn_id,
            retryable,
        )
        notify(self._ref, TurnEnded(self, result, tuple(self._pending)))

    def _rounds(self) -> tuple[str, StopReason]:
        ticket = self.ticket
        if ticket.last_answer is not None:
            return ticket.last_answer, "text_response"  # an earlier life stored the answer, but not the end
        if ticket.last_entry is None:
            # What the user said is part of the history however the turn ends, a missing agent included.
            self._add(HistoryEntry("user", ticket.content, sender=ticket.sender))
        self._check_stopped()
        if self._waited and self._journal is not None:
            self._journal.begin(ticket)
            self._check_stopped()
        agent = self._find_agent()
        self._prepare(agent)
        text = ""
        rounds = 1 if ticket.guest else agent.config.max_iterations
        for number in range(1, rounds + 1):
            self._apply_steers()
            answer = self._ask(agent, number)
            if answer.said_nothing or (ticket.guest and not answer.text):
                return "", "no_action"
            text = answer.text
            if not answer.calls or ticket.guest:
                self._add(
                    HistoryEntry("assistant", text, reasoning=answer.reasoning, agent=ticket.guest or "")
                )
                self._answer = text
                self._measure(agent, answer, final=True)
                return text, "text_response"
            self._add(HistoryEntry("assistant", text, tool_calls=answer.calls, reasoning=answer.reasoning))
            outcomes = self._call_tools(agent, answer.calls)
            self._commit_step(answer, outcomes)
            self._measure(agent, answer, final=False)
        self._log(logging.INFO, "turn reached max_iterations", most=agent.config.max_iterations)
        return text, "max_iterations"

    def _find_agent(self) -> Agent:
        name = self.ticket.guest or self._state.agent
        agent = self._services.agents.find(name)
        if agent is None:
            raise AgentNotRegistered(f"agent {name!r} is not registered any more; register it and send again")
        self._model = agent.config.model
        return agent

    def _prepare(self, agent: Agent) -> None:
        hooks, state = self._services.hooks, self._state
        self._base = state.history.seen_by(self.ticket.guest or "", state.agent)
        self._based = len(self._base)
        self._encoded = None if self.ticket.guest else state.history.encoded
        self._chars += state.history.chars
        if not hooks.before_turn:
            return
        content = hooks.preprocess(state.agent, self.ticket.content)
        if self._pending and content != self.ticket.content:
            self._pending.clear()
            self._wire.clear()
            self._chars = state.history.chars
            self._add(HistoryEntry("user", mend_text(content), sender=self.ticket.sender))
        injected = LiveHistory(hooks.inject(state.agent, state.id, state.history.entries))
        injected.mend()
        if injected.repairs:
            self._log(logging.WARNING, "injected entries do not pair tool calls with results")
        self._injected = injected.wire

    # -- one step ----------------------------------------------------------------------------------

    def _ask(self, agent: Agent, number: int) -> Round:
        config, ticket, state = agent.config, self.ticket, self._state
        self._check_stopped()
        self._call = ModelCall(self._services, config.model, state.agent, state.sender, self._give_up)
        choice = ticket.tool_choice or config.tool_choice
        if number > 1 and choice not in ("auto", "none"):
            choice = "auto"  # a forced call is forced once, or no turn would end
        others, encoded = self._shown(agent, number)
        request = ModelRequest(
            config.model,
            others,
            [] if ticket.guest else agent.schemas,
            choice,
            config.thinking,
            "turn",
            config.name,
            state.sender,
            state.id,
            ticket.turn_id,
            self._call.pause,
            encoded,
        )
        show = partial(emit, self._services, state, ticket) if self._heard else None
        answer = self._call.run(agent.model, unlisted(request), show)
        self._call = None
        self._steps += 1
        if answer.usage is not None:
            self._usage += answer.usage
        self._check_stopped()
        return answer

    def _shown(self, agent: Agent, number: int) -> tuple[list[Message], tuple[EncodedRun, ...]]:
        """What the request of this round shows: the messages that no JSON is kept of, and where among them
        those stand whose JSON is: what was said before and, from the second round on, what the turn says."""
        others = [*agent.system]
        encoded: tuple[EncodedRun, ...] = ()
        if self._encoded is None:
            others += self._base
        else:
            encoded = ((len(others), self._based, self._encoded),)
        others += self._injected
        if number == 1:
            others += self._wire
        else:
            if self._own is None:
                self._own = Encoded(self._wire)
            start = len(agent.system) + self._based + len(self._injected)
            encoded += ((start, len(self._wire), self._own),)
        return others, encoded

    def _apply_steers(self) -> None:
        while self.steers:
            steer = self.steers.pop(0)
            self._add(HistoryEntry("user", steer.ticket.content, sender=self.ticket.sender))
            self.applied += (steer.id,)
            self._services.directory.release(steer.ticket.turn_id, self._state.sender)
            steer.ticket.follow(self.ticket)
            self._emit(UserSteered(steer.ticket.content))

    def _call_tools(self, agent: Agent, calls: Sequence[ToolCall]) -> list[ToolOutcome]:
        tools = ToolCalls(self._services, self._state, agent, self.ticket.turn_id, calls, self._emit)
        try:
            self._wait_accepted()
            self._emit(ToolCallsStart(tuple(calls)))
            tools.run()
        finally:
            # Every call gets its result into history, whatever happened.
            outcomes = tools.close()
            results = [
                None if outcome is None else tool_result(call, outcome.output)
                for call, outcome in zip(calls, outcomes, strict=True)
            ]
            for entry in interrupted_results(calls, results):
                self._add(entry)
        self._check_stopped()
        self._emit(ToolCallsComplete())
        return [outcome for outcome in outcomes if outcome is not None]

    def _commit_step(self, answer: Round, outcomes: Sequence[ToolOutcome]) -> None:
        self._wait_accepted()
        entries = tuple(self._pending)
        if self._journal is not None:
            trace = _trace(
                step=self._steps,
                finish_reason=answer.finish_reason,
                tools=[
                    {"name": call.name, "error": outcome.is_error}
                    for call, outcome in zip(answer.calls, outcomes, strict=False)
                ],
                tokens=None if answer.usage is None else answer.usage.total_tokens,
            )
            try:
                self._journal.step(self.ticket.turn_id, entries, self.applied, trace)
            except BaseException:
                # A step is stored whole or not at all; what the user said stays for the turn's end.
                self._pending = [entry for entry in self._pending if entry.role == "user"]
                raise
        self._pending.clear()
        self.applied = ()
        notify(self._ref, StepStored(self, entries))
        self._check_stopped()

    # -- the size of the context -------------------------------------------------------------------

    def _measure(self, agent: Agent, answer: Round, *, final: bool) -> None:
        threshold = agent.config.compact_threshold
        reported = answer.usage is not None and answer.usage.total_tokens > 0
        tokens = answer.usage.total_tokens if answer.usage is not None and reported else self._estimate(agent)
        if self._heard:
            self._emit(ContextUsage(tokens, threshold, reported))
        if threshold is None or tokens <= threshold or self.ticket.guest or self._compaction_paused:
            return
        if final:
            self._commit_step(answer, ())
        self._compact(agent)

    def _estimate(self, agent: Agent) -> int:
        chars = self._chars + len(agent.config.system_prompt)
        if self._injected:
            chars += sum(len(message["content"] or "") for message in self._injected)
        return -(-chars // CHARS_PER_TOKEN)

    def _compact(self, agent: Agent) -> None:
        """Let a summary stand for everything so far. All of it is committed, and every tool call has its
        result, so the end of the history is a place where it may be cut."""
        messages = [*self._base[: self._based], *self._wire]  # the live list may hold the turn's, too
        try:
            summary, archive = compaction.compact(self._services, self._state, self._journal, agent, messages)
        except (PalaverError, GreenletExit) as error:
            self._check_stopped()
            words = describe_error(error, named=False)
            failures = self._state.compaction_failures + 1
            self._compaction_paused = failures >= compaction.FAILURES_BEFORE_PAUSE
            notify(self._ref, AutomaticCompactionFailed(words))
            self._emit(CompactionSkipped(words, paused=self._compaction_paused))
            return
        self._base, self._based = [to_wire(HistoryEntry("user", summary))], 1
        self._wire = []
        self._encoded = self._own = None
        self._chars = len(summary)
        notify(self._ref, HistoryCompacted(summary, archive))
        self._emit(Compacted(summary, archive))

    # -- small things ------------------------------------------------------------------------------

    def _add(self, entry: HistoryEntry) -> None:
        self._pending.append(entry)
        self._chars += entry_chars(entry)
        self._wire.append(to_wire(entry, self.ticket.guest or ""))

    def _wait_accepted(self) -> None:
        """A model may be asked while the message is being stored; nothing that lasts may happen before."""
        if not self.ticket.durable:
            self.ticket.wait_accepted()

    def _check_stopped(self) -> None:
        if self._cancelled or self._late:
            raise _Stopped

    @property
    def _heard(self) -> bool:
        services = self._services
        return bool(self.ticket.streams or services.directory.streams or services.hooks.on_event_hooks)

    def _emit(self, event: Event) -> None:
        emit(self._services, self._state, self.ticket, event)


class _Stopped(BaseException):
    """The turn noticed at a boundary that it is cancelled, or too late. Never leaves this module."""


def _is_retryable(failure: BaseException) -> bool:
    """Whether the same message may get an answer when it is sent again."""
    if isinstance(failure, ModelError):
        return failure.retryable
    return isinstance(failure, ConnectionError | TimeoutError)  # of a model that is the user's own


def _printable(failure: BaseException) -> BaseException | None:
    """The failure for a log's traceback; None for one that cannot be printed."""
    try:
        str(failure)
    except BaseException:
        return None
    return failure


def emit(services: Services, state: ConversationState, ticket: Ticket, event: Event) -> None:
    """Show an event of a turn to the ticket's streams, the readers of all events, and the hooks."""
    for stream in ticket.streams:
        stream.push(None, event)
    if services.directory.streams:
        services.directory.publish(state, event)
    if services.hooks.on_event_hooks:
        if isinstance(event, Done):  # from the actor's own handler, where a user's code must not block
            gevent.spawn(services.hooks.on_event, state.agent, state.id, event)
        else:
            services.hooks.on_event(state.agent, state.id, event)


def _trace(**facts: object) -> str:
    return _encode({"v": TRACE_VERSION, **facts})
