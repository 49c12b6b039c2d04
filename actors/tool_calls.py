"""The tool calls of one step: all at once, each in a greenlet and a time of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import gevent

from actors.agents import Agent
from actors.events import Event, Overflowed, ToolResult
from actors.greenlet import GreenletFuture
from actors.own_turn import TurnRun
from actors.permit import CLEAN_UP_S, Permit
from actors.services import Services
from actors.state import ConversationState
from actors.tools import ToolContext, ToolOutcome, dispatch
from persistence.records import ToolCall


class ToolCalls:
    """The calls that a model asked for in one round.

    Args:
        agent: which tools may be called.
        turn_id: for their context.
        emit: gets a `ToolResult` for each, as they end.
    """

    def __init__(
        self,
        services: Services,
        state: ConversationState,
        agent: Agent,
        turn_id: int,
        calls: Sequence[ToolCall],
        emit: Callable[[Event], None],
    ) -> None:
        self._services = services
        self._state = state
        self._agent = agent
        self._turn_id = turn_id
        self._calls = calls
        self._emit = emit
        self._outcomes: list[ToolOutcome | None] = [None] * len(calls)
        self._permits: list[Permit] = []
        self._left = len(calls)
        self._done: GreenletFuture[None] = GreenletFuture()
        self._killed = False
        self._closed = False

    def run(self) -> None:
        """Make the calls and wait until each has an outcome; whoever kills the wait kills them, too."""
        running: list[TurnRun] = []
        try:
            for place in range(len(self._calls)):
                running.append(TurnRun(self._state.id, partial(self._run, place)))
            self._done.get()
        except BaseException:
            self._killed = True
            for run in running:
                run.kill()
            gevent.wait([run.over() for run in running], timeout=CLEAN_UP_S)
            for permit in self._permits:
                permit.leave_behind()
            raise

    def close(self) -> list[ToolOutcome | None]:
        """The outcome of each call, None for one that was interrupted; none is taken afterwards."""
        self._closed = True
        return self._outcomes

    def _run(self, place: int) -> None:
        services, state, call = self._services, self._state, self._calls[place]
        line = ("", state.agent, state.sender)
        permit = Permit(services.tool_calls, services.tool_time, line, partial(self._leave_behind, place))
        self._permits.append(permit)
        began = services.clock.monotonic()
        try:
            permit.begin()
            began = services.clock.monotonic()
            try:
                outcome = self._dispatch(call)
            finally:
                permit.end()
        except BaseException as error:  # a GreenletExit: `dispatch` makes results of all others
            if self._killed:
                return
            outcome = ToolOutcome(f"error: the tool ended with {error!r}", True)
        if permit.late:
            outcome = self._too_late(call)
        self._settle(place, outcome, services.clock.monotonic() - began)

    def _dispatch(self, call: ToolCall) -> ToolOutcome:
        services, state = self._services, self._state
        return dispatch(
            services.tools,
            call.name,
            call.arguments,
            ToolContext(state.agent, state.sender, state.id, self._turn_id, call.id),
            most=services.limits.tool_output_chars,
            allowed=self._agent.may_call,
        )

    def _leave_behind(self, place: int) -> None:
        self._settle(place, self._too_late(self._calls[place]))

    def _too_late(self, call: ToolCall) -> ToolOutcome:
        limit = self._services.tool_time
        return ToolOutcome(f"error: {call.name} took longer than {limit} and was stopped", True)

    def _settle(self, place: int, outcome: ToolOutcome, spent_s: float | None = None) -> None:
        if self._closed or self._outcomes[place] is not None:
            return  # too late for a result: its turn was cancelled, or it was left behind
        self._outcomes[place] = outcome
        call, limits = self._calls[place], self._services.limits
        if outcome.cut:
            overflow = Overflowed("tool_output_chars", limits.tool_output_chars)
            self._services.incidents.report(overflow, self._state)
        spent_s = limits.tool_call_s if spent_s is None else spent_s
        try:
            self._emit(ToolResult(call.id, call.name, outcome.output, outcome.is_error, spent_s))
        finally:
            self._left -= 1
            if not self._left:
                self._done.set()
