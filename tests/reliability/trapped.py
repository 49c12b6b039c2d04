"""What a user's own code can be (a model, tools, hooks, actors), each made to raise at one point."""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import gevent
import pykka
from gevent.event import Event as Signal

from palaver import (
    AgentConfig,
    Chunk,
    GreenletActor,
    HistoryEntry,
    ModelError,
    ModelRequest,
    PalaverError,
    StorageError,
    ToolCallDelta,
    ToolContext,
    Usage,
)

SIBLING = "sibling"


class Own(BaseException):
    """A user's own, and no Exception."""


class Unreadable(Exception):
    """Its message cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


class UnreadableBase(BaseException):
    """Worse."""

    def __str__(self) -> str:
        raise Own

    __repr__ = __str__


KINDS: dict[str, Callable[[], BaseException]] = {
    "Exception": lambda: Exception("plain"),
    "PalaverError": lambda: PalaverError("ours"),
    "ModelError": lambda: ModelError("the endpoint is down"),
    "StorageError": lambda: StorageError("not a database's"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "GreenletExit": lambda: gevent.GreenletExit("mine"),
    "gevent.Timeout": lambda: gevent.Timeout(1),
    "pykka.Timeout": lambda: pykka.Timeout("1 seconds"),
    "ActorDeadError": lambda: pykka.ActorDeadError("another"),
    "AssertionError": AssertionError,
    "RecursionError": lambda: RecursionError("too deep"),
    "MemoryError": MemoryError,
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration("early"),
    "CancelledError": asyncio.CancelledError,
    "futures.CancelledError": concurrent.futures.CancelledError,
    "own BaseException": Own,
    "unreadable": Unreadable,
    "unreadable BaseException": UnreadableBase,
}


def victim(point: str) -> str:
    """Who suffers from what is raised at this point, and alone."""
    return f"victim of {point}"


class Trap:
    """Raises once at each of some points, in what belongs to that point's victim.

    Attributes:
        points: those where nothing was raised yet.
    """

    def __init__(self, points: Iterable[str], make: Callable[[], BaseException]) -> None:
        self.points = dict.fromkeys(points)
        self.armed = False
        self._make = make

    def at(self, point: str, who: str) -> None:
        """Here the world may end for `who`."""
        if self.armed and point in self.points and who == victim(point):
            del self.points[point]
            raise self._make()


class Model:
    """Answers with two tool calls when it is told "tools", else with what it is told; waits a little."""

    def __init__(self, trap: Trap, rng: random.Random) -> None:
        self._trap = trap
        self._rng = rng

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        asked = ("model compact asked", "model summarize") if request.purpose == "compact" else ()
        for point in (f"model {request.purpose}", *asked):
            self._trap.at(point, request.sender)
        self._trap.at("model call", request.sender)
        return Answer(self._trap, request, self._rng)


class Answer:
    """A stream that is no generator: starting, going on, ending and closing can each fail."""

    def __init__(self, trap: Trap, request: ModelRequest, rng: random.Random) -> None:
        self._at = lambda point: trap.at(point, request.sender)
        self._rng = rng
        self._chunks = iter(_answer(request))
        self._begun = False

    def __iter__(self) -> Answer:
        self._at("model iter")
        return self

    def __next__(self) -> Chunk:
        self._at("model middle" if self._begun else "model first")
        self._begun = True
        wait(self._rng.random())
        try:
            return next(self._chunks)
        except StopIteration:
            self._at("model end")
            raise

    def close(self) -> None:
        self._at("model close")


def _answer(request: ModelRequest) -> list[Chunk]:
    if request.purpose == "title":
        return [Chunk("Some good title"), Chunk(finish_reason="stop")]
    if request.purpose == "compact":
        return [Chunk("what was "), Chunk("said"), Chunk(finish_reason="stop")]
    last = request.messages[-1]
    if last["role"] == "user" and "tools" in str(last["content"]):
        calls = [ToolCallDelta(0, "a", "work", "{}"), ToolCallDelta(1, "b", "work", "{}")]
        return [Chunk("let me see"), Chunk(tool_calls=calls), Chunk(finish_reason="tool_calls")]
    asked = next(str(m["content"]) for m in reversed(request.messages) if m["role"] == "user")
    tokens = Usage(total_tokens=5_000 if "large" in asked else 10)
    return [Chunk(reasoning="hm"), Chunk("re: "), Chunk(asked), Chunk(finish_reason="stop", usage=tokens)]


class Hooks:
    """All four hooks; they change nothing."""

    def __init__(self, trap: Trap) -> None:
        self._trap = trap
        self._conversations: dict[int, str] = {}

    def belongs(self, conversation_id: int, sender: str) -> None:
        """Whose conversation it is: hooks are not told."""
        self._conversations[conversation_id] = sender

    def _who(self, conversation_id: int) -> str:
        return self._conversations.get(conversation_id, "")

    def on_build_agent(self, config: AgentConfig) -> None:
        self._trap.at("on_build_agent", victim("on_build_agent") if config.name == "late" else "")

    def before_run(self, _agent: str, conversation_id: int, _history: Sequence[HistoryEntry]) -> None:
        self._trap.at("before_run", self._who(conversation_id))

    def preprocess(self, _agent: str, content: str) -> None:
        self._trap.at("preprocess", content.partition(":")[0])

    def on_event(self, _agent: str, conversation_id: int, event: object) -> None:
        self._trap.at(f"on_event {type(event).__name__}", self._who(conversation_id))


def tool(trap: Trap, rng: random.Random) -> Callable[[ToolContext], str]:
    """A tool of two calls, of which one fails."""

    def work(call: ToolContext) -> str:
        """Work a little."""
        trap.at("tool at once", call.sender)
        wait(rng.random())
        trap.at("tool", call.sender)
        return f"done {call.call_id}"

    return work


class Neighbour(GreenletActor):
    """An actor of the user's own, in the same hub."""

    def __init__(self, trap: Trap, who: str) -> None:
        super().__init__()
        self._at = lambda point: trap.at(point, who)

    def on_start(self) -> None:
        self._at("actor on_start")

    def on_stop(self) -> None:
        self._at("actor on_stop")

    def on_failure(self, *_error: Any) -> None:
        self._at("actor on_failure")

    def on_death(self, reason: BaseException | None) -> None:
        self._at("actor on_death")

    def on_receive(self, message: Any) -> Any:
        self._at(f"actor {message}")
        if message == "die":
            raise ValueError("told to")
        return f"re: {message}"


def wait(seconds: float) -> None:
    """Let virtual time pass."""
    Signal().wait(seconds)
