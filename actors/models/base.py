"""The port to a language model: what a turn asks, and the stream that it gets back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol, runtime_checkable

from attrs import field, frozen

from actors.models.encoded import EncodedRun
from actors.models.unlisted import Unlisted
from persistence.records import Usage

Purpose = Literal["turn", "compact", "title"]
Message = dict[str, Any]


@frozen
class ModelRequest(Unlisted):
    """One call of a model.

    Args:
        model: the name from `AgentConfig.model`.
        messages: OpenAI chat wire form, the system prompt first. Read it, do not change it: its
            dicts are shared with the conversation. Who wants others sent makes a new list with new dicts,
            `attrs.evolve(request, messages=[...])`. In a turn the list is made when it is first read.
        tools: OpenAI function schemas.
        tool_choice: "auto", "none", "required" or a tool's name.
        thinking: whether reasoning is wanted.
        purpose: what the answer is for: a "turn", a "compact" summary, a "title".
        agent, sender, conversation_id, turn_id: whose turn it is; nothing of it is sent.
        pause: for a model whose endpoint wants to be left alone: `pause(seconds)` waits so long, keeps all
            further calls of this model waiting too, and gives the call's place to others meanwhile. None
            where the request does not come from a runtime.
        encoded: where in `messages` there are some whose JSON is kept from request to request, for a model
            that sends JSON. What else stands there now is not taken for them.
    """

    model: str
    messages: list[Message]
    tools: list[dict[str, Any]] = field(factory=list)
    tool_choice: str = "auto"
    thinking: bool = False
    purpose: Purpose = "turn"
    agent: str = ""
    sender: str = ""
    conversation_id: int = 0
    turn_id: int = 0
    pause: Callable[[float], object] | None = field(default=None, eq=False, repr=False)
    encoded: tuple[EncodedRun, ...] = field(default=(), eq=False, repr=False)


@frozen
class ToolCallDelta:
    """A piece of the tool call number `index`: `id` and `name` once, `arguments` in any number of pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


def _as_deltas(deltas: Iterable[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    return tuple(deltas)


@frozen
class Chunk:
    """A piece of a model's answer. `finish_reason` is set on the last piece that says anything."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = field(default=(), converter=_as_deltas)
    finish_reason: str | None = None
    usage: Usage | None = None


@runtime_checkable
class Model(Protocol):
    """Anything that streams answers. `stream` runs in the turn's greenlet and is closed on cancel."""

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        """The answer, piece by piece; an exception fails the turn and nothing of it is kept."""
