"""One turn: model rounds, tool calls, steering points, compaction points. Lives in a child greenlet."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import gevent
import pykka
from gevent import GreenletExit

from actors import compaction
from actors.agents import Agent
from actors.errors import AgentNotRegistered
from actors.events import (
    Compacted,
    CompactionSkipped,
    ContextUsage,
    Done,
    Event,
    ToolCallsComplete,
    ToolCallsStart,
    ToolResult,
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
from actors.messages import (
    AutomaticCompactionFailed,
    HistoryCompacted,
    StepStored,
    TurnEnded,
)
from actors.models.base import Message, ModelRequest
from actors.own_turn import TurnGreenlet
from actors.round import Round, run_round
from actors.services import Services
from actors.state import ConversationState
from actors.storage import notify
from actors.text import describe_error, mend_text
from actors.ticket import SteerRequest, Ticket
from actors.tools import ToolContext, ToolOutcome, dispatch
from persistence.errors import PalaverError, StorageError
from persistence.records import HistoryEntry, StopReason, ToolCall, TurnResult, Usage

logger = logging.getLogger("palaver.turn")

CLEAN_UP_S = 5.0
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
        self.steers: deque[SteerRequest] = deque()
        self.applied: list[int] = []
        self.ended = False
        self.trace = ""
        self.started_at = services.clock.monotonic()
        self._services = services
        self._ref = ref
        self._state = state
        self._journal = journal
        self._waited = waited
        self._base: list[Message] = []
        self._injected: list[Message] = []
        self._pending: list[HistoryEntry] = []
        self._wire: list[Message] = []  # the turn's own messages since the base was taken
        self._chars = 0  # of everything that the next request shows the model
        self._usage = Usage()
        self._steps = 0
        self._model = ""
        self._answer: str | None = None
        self._cancelled = False
        self._running = False
        self._compaction_paused = state.compaction_failures >= compaction.FAILURES_BEFORE_PAUSE
        self.greenlet = TurnGreenlet(state.id, self._run)

    # -- from the conversation actor ---------------------------------------------------------------

    def cancel(self) -> None:
        """Stop the turn wherever it waits; returns at once. Completed steps stay stored."""
        if self._cancelled or self.ended:
            return
        self._cancelled = True
        if self._running:
            self.greenlet.kill(block=False)

    # -- the turn's greenlet -----------------------------------------------------------------------

    def _run(self) -> None:
        self._running = True
        text, error = "", None
        stop_reason: StopReason
        try:
            text, stop_reason = self._rounds()
        except BaseException as failure:  # nothing of a turn may cross to its conversation
            cancelled = self._cancelled and isinstance(failure, GreenletExit | _Cancelled)
            words = None if cancelled else self._describe(failure)
            if self._answer is not None and not isinstance(failure, StorageError):
                text, stop_reason = self._answer, "text_response"  # only a compaction was left to do
            else:
                stop_reason, error = ("cancelled", None) if cancelled else ("error", words)
        self._running = False
        self._report(text, stop_reason, error)

    def _describe(self, failure: BaseException) -> str:
        ours = isinstance(failure, PalaverError)  # its message says what was asked and what to do
        words = describe_error(failure, named=not ours)
        if ours:
            logger.warning("turn failed: %s: %s", self._where, words)
        else:
            logger.error("turn failed: %s: %s", self._where, words, exc_info=_printable(failure))
        return words

    @property
    def _where(self) -> str:
        state = self._state
        return f"agent={state.agent} sender={state.sender} conversation={state.id} turn={self.ticket.turn_id}"

    def _report(self, text: str, stop_reason: StopReason, error: str | None) -> None:
        self.ended = True
        result = TurnResult(
            text=text,
            stop_reason=stop_reason,
            error=None if error is None else mend_text(error),
            steps=self._steps,
            usage=self._usage,
            model=self._model,
            conversation_id=self._state.id,
            turn_id=self.ticket.turn_id,
        )
        if self._journal is not None:
            self.trace = _trace(stop_reason=stop_reason, steps=self._steps)
        notify(self._ref, TurnEnded(self, result, tuple(self._pending)))

    def _rounds(self) -> tuple[str, StopReason]:
        ticket = self.ticket
        if ticket.last_answer is not None:
            return ticket.last_answer, "text_response"  # an earlier life stored the answer, but not the end
        if ticket.last_entry is None:
            # What the user said is part of the history however the turn ends, a missing agent included.
            self._add(HistoryEntry("user", ticket.content, sender=ticket.sender))
        self._check_cancelled()
        if self._waited and self._journal is not None:
            self._journal.begin(ticket)
            self._check_cancelled()
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
        logger.info("turn reached max_iterations=%s: %s", agent.config.max_iterations, self._where)
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
        content = hooks.preprocess(state.agent, self.ticket.content)
        if self._pending and content != self.ticket.content:
            self._pending.clear()
            self._wire.clear()
            self._chars = 0
            self._add(HistoryEntry("user", mend_text(content), sender=self.ticket.sender))
        self._base = state.history.seen_by(self.ticket.guest or "", state.agent)
        self._chars += state.history.chars
        injected = LiveHistory(hooks.inject(state.agent, state.id, state.history.entries))
        injected.mend()
        if injected.repairs:
            logger.warning("injected entries do not pair tool calls with results: %s", self._where)
        self._injected = injected.wire

    # -- one step ----------------------------------------------------------------------------------

    def _ask(self, agent: Agent, number: int) -> Round:
        config, ticket, state = agent.config, self.ticket, self._state
        self._check_cancelled()
        choice = ticket.tool_choice or config.tool_choice
        if number > 1 and choice not in ("auto", "none"):
            choice = "auto"  # a forced call is forced once, or no turn would end
        request = ModelRequest(
            model=config.model,
            messages=[*agent.system, *self._base, *self._injected, *self._wire],
            tools=[] if ticket.guest else agent.schemas,
            tool_choice=choice,
            thinking=config.thinking,
            agent=config.name,
            sender=state.sender,
            conversation_id=state.id,
            turn_id=ticket.turn_id,
        )
        answer = run_round(agent.model, request, self._emit if self._heard else None)
        self._steps += 1
        if answer.usage is not None:
            self._usage += answer.usage
        self._check_cancelled()
        return answer

    def _apply_steers(self) -> None:
        while self.steers:
            steer = self.steers.popleft()
            self._add(HistoryEntry("user", steer.ticket.content, sender=self.ticket.sender))
            self.applied.append(steer.id)
            self._services.directory.release(steer.ticket.turn_id, self._state.sender)
            steer.ticket.follow(self.ticket)
            self._emit(UserSteered(steer.ticket.content))

    def _call_tools(self, agent: Agent, calls: Sequence[ToolCall]) -> list[ToolOutcome]:
        outcomes: list[ToolOutcome | None] = [None] * len(calls)
        running: list[TurnGreenlet] = []
        try:
            self._wait_accepted()
            self._emit(ToolCallsStart(tuple(calls)))
            running += [
                TurnGreenlet(self._state.id, self._call_tool, agent, call, outcomes, place)
                for place, call in enumerate(calls)
            ]
            gevent.joinall(running)
        except BaseException:
            gevent.killall(running, block=False)
            gevent.joinall(running, timeout=CLEAN_UP_S)  # one that refuses to die is left behind
            raise
        finally:
            done = self._keep_results(calls, outcomes)
        self._check_cancelled()
        self._emit(ToolCallsComplete())
        return done

    def _call_tool(
        self, agent: Agent, call: ToolCall, outcomes: list[ToolOutcome | None], place: int
    ) -> None:
        services, state = self._services, self._state
        began = services.clock.monotonic()
        context = ToolContext(state.agent, state.sender, state.id, self.ticket.turn_id, call.id)
        try:
            outcome = dispatch(
                services.tools,
                call.name,
                call.arguments,
                context,
                most=services.limits.tool_output_chars,
                allowed=agent.may_call,
            )
        except GreenletExit as exit_:
            if self._cancelled:
                return
            outcome = ToolOutcome(f"error: the tool ended with {exit_!r}", True)
        if not outcomes:
            return  # it outlived its turn's cancel: too late for a result
        outcomes[place] = outcome
        spent = services.clock.monotonic() - began
        self._emit(ToolResult(call.id, call.name, outcome.output, outcome.is_error, spent))

    def _keep_results(
        self, calls: Sequence[ToolCall], outcomes: list[ToolOutcome | None]
    ) -> list[ToolOutcome]:
        """Every call gets its result into history, whatever happened; none is taken afterwards."""
        results = [
            None if outcome is None else tool_result(call, outcome.output)
            for call, outcome in zip(calls, outcomes, strict=True)
        ]
        for entry in interrupted_results(calls, results):
            self._add(entry)
        done = [outcome for outcome in outcomes if outcome is not None]
        outcomes.clear()
        return done

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
        self.applied.clear()
        notify(self._ref, StepStored(self, entries))
        self._check_cancelled()

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
        chars += sum(len(message["content"] or "") for message in self._injected)
        return -(-chars // CHARS_PER_TOKEN)

    def _compact(self, agent: Agent) -> None:
        """Let a summary stand for everything so far. All of it is committed, and every tool call has its
        result, so the end of the history is a place where it may be cut."""
        try:
            summary, archive = compaction.compact(
                self._services, self._state, self._journal, agent, [*self._base, *self._wire]
            )
        except (PalaverError, GreenletExit) as error:
            self._check_cancelled()
            words = describe_error(error, named=False)
            failures = self._state.compaction_failures + 1
            self._compaction_paused = failures >= compaction.FAILURES_BEFORE_PAUSE
            notify(self._ref, AutomaticCompactionFailed(words))
            self._emit(CompactionSkipped(words, paused=self._compaction_paused))
            return
        self._base = [to_wire(HistoryEntry("user", summary))]
        self._wire.clear()
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

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise _Cancelled

    @property
    def _heard(self) -> bool:
        services = self._services
        return bool(self.ticket.streams or services.directory.streams or services.hooks.on_event_hooks)

    def _emit(self, event: Event) -> None:
        emit(self._services, self._state, self.ticket, event)


class _Cancelled(BaseException):
    """The turn noticed at a boundary that it is cancelled. Never leaves this module."""


def _printable(failure: BaseException) -> BaseException | None:
    """The failure for a log's traceback; None for one that cannot be printed."""
    try:
        str(failure)
    except BaseException:
        return None
    return failure


def emit(services: Services, state: ConversationState, ticket: Ticket, event: Event) -> None:
    """Show an event of a turn to the ticket's streams, the readers of all events, and the hooks."""
    for stream in tuple(ticket.streams):
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
