"""A model that says what it is told to: no network, deterministic, the embedded default.

It is what `Runtime` runs on when there is no endpoint, and what tests, simulations and benchmarks use.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeGuard

import gevent
from attrs import Attribute, field, frozen

from actors.errors import InvalidConfig, ModelError
from actors.models.base import Chunk, ModelRequest, ToolCallDelta
from actors.models.plain import message_text, plain_summary, plain_title
from persistence.records import ToolCall, Usage
from persistence.sources import Clock

AUTO = "auto"

Raisable = BaseException | type[BaseException]
Call = tuple[str, dict[str, Any]] | ToolCall


def _calls(value: Iterable[Any]) -> tuple[Call, ...]:
    calls = tuple(value)
    for call in calls:
        if isinstance(call, ToolCall):
            continue
        if not (isinstance(call, tuple) and [type(part) for part in call] == [str, dict]):
            raise InvalidConfig(
                f"tool_calls takes (name, arguments dict) pairs, or ToolCall records; {call!r} is neither"
            )
        try:
            json.dumps(call[1])
        except (TypeError, ValueError) as error:
            raise InvalidConfig(f"tool_calls: the arguments of {call[0]} are no JSON: {error}") from error
    return calls


Validator = Callable[[Any, "Attribute[Any]", object], None]


def _must_be(what: str, fits: Callable[[object], bool]) -> Validator:
    def check(_self: Any, attribute: Attribute[Any], value: object) -> None:
        if not fits(value):
            raise InvalidConfig(f"{attribute.name} must be {what}, not {value!r}")

    return check


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_raisable(value: object) -> TypeGuard[Raisable]:
    return isinstance(value, BaseException) or (isinstance(value, type) and issubclass(value, BaseException))


_text = _must_be("text", lambda value: isinstance(value, str))
_optional_text = _must_be("text or None", lambda value: isinstance(value, str | None))
_seconds = _must_be("seconds, 0 or more", lambda value: _is_number(value) and 0 <= value < float("inf"))
_whole_number = _must_be("a whole number or None", lambda value: isinstance(value, int | None))
_usage = _must_be("a Usage or None", lambda value: isinstance(value, Usage | None))
_optional_raisable = _must_be("an exception or None", lambda value: value is None or _is_raisable(value))


@frozen
class Reply:
    """One answer of a `ScriptedModel`.

    Args:
        text, reasoning: what it says. Reasoning is streamed first, then text, then tool calls.
        tool_calls: (name, arguments dict) pairs, which get ids of the model's own; or `ToolCall` records,
            whose id and argument text are used as they are (also if that text is not JSON).
        usage: what is reported with the finish reason.
        delay_s: seconds to wait, through gevent, before anything is said.
        chunk_chars: characters of one chunk; 0 or None says everything at once.
        error: an exception, or a class of one, raised after everything else, in place of a finish reason.
        finish_reason: "auto" is "tool_calls" if there are any and "stop" otherwise; None ends without a
            finish reason, as a connection that was cut does.

    Raises:
        InvalidConfig: naming the argument.
    """

    text: str = field(default="", validator=_text)
    reasoning: str = field(default="", validator=_text)
    tool_calls: tuple[Call, ...] = field(default=(), converter=_calls)
    usage: Usage | None = field(default=None, validator=_usage)
    delay_s: float = field(default=0.0, validator=_seconds)
    chunk_chars: int | None = field(default=16, validator=_whole_number)
    error: Raisable | None = field(default=None, validator=_optional_raisable, kw_only=True)
    finish_reason: str | None = field(default=AUTO, validator=_optional_text, kw_only=True)


ReplyLike = str | Raisable | Reply
Script = Iterable[ReplyLike] | Callable[[ModelRequest], ReplyLike]


class ScriptedModel:
    """A model without a network. The same requests in the same order get the same answers.

    Args:
        script: what it answers in turns. None echoes the last user message; a list of replies is taken
            in order, over all conversations, and when it is used up a request gets `ModelError`; a
            function of the request returns a reply. A reply is text, a `Reply`, or an exception (or a
            class of one) to raise.
        clock: if given, `times` holds its `monotonic()` at each request that `requests` holds.
        summaries: replies to requests of the purpose "compact", in order; then, and without any, a
            plain summary made of the messages.
        titles: the same for the purpose "title"; a plain title is 3 to 6 words of the first user message.
        sleep: what waits for `Reply.delay_s`; it must not block other greenlets.
        keep_requests: the newest requests to keep, at most; None keeps all, which grows without end.

    Attributes:
        requests: what was asked, oldest first, each with a list of messages of its own.

    `stream` runs in the calling greenlet, and may be called from any number of greenlets of one thread.
    It does not change the request.

    Raises:
        InvalidConfig: the script, the summaries or the titles hold something that is no reply, or
            `keep_requests` is no count.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        clock: Clock | None = None,
        summaries: Iterable[ReplyLike] = (),
        titles: Iterable[ReplyLike] = (),
        sleep: Callable[[float], object] = gevent.sleep,
        keep_requests: int | None = None,
    ) -> None:
        self.requests: list[ModelRequest] = []
        self.times: list[float] = []
        self._clock = clock
        self._sleep = sleep
        self._keep = _checked_count(keep_requests)
        self._call_numbers = itertools.count(1)
        self._answer = _answerer(script)
        self._summaries = _checked(summaries, "summaries")
        self._titles = _checked(titles, "titles")

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        """The scripted answer; it is chosen, and the request kept, when the first chunk is asked for."""
        if self._keep != 0:
            self._remember(request)
        reply = self._choose(request)
        if isinstance(reply, str):
            reply = Reply(reply)
        elif not isinstance(reply, Reply):
            if _is_raisable(reply):
                raise reply
            raise ModelError(f"the script gave {reply!r} for a reply; give text, a Reply or an exception")
        if reply.delay_s:
            self._sleep(reply.delay_s)
        size = reply.chunk_chars if reply.chunk_chars and reply.chunk_chars > 0 else None
        one = size is None or len(reply.text) <= size
        if one and not reply.reasoning and not reply.tool_calls and reply.error is None:
            # The one-chunk answer is what benchmarks ask for: nothing else is built for it.
            yield Chunk(reply.text, finish_reason=_finish_reason(reply), usage=reply.usage)
            return
        yield from self._pieces(reply, size)

    def _pieces(self, reply: Reply, size: int | None) -> Iterator[Chunk]:
        for piece in _cut(reply.reasoning, size):
            yield Chunk(reasoning=piece)
        for piece in _cut(reply.text, size):
            yield Chunk(text=piece)
        for index, call in enumerate(reply.tool_calls):
            for delta in self._deltas(index, call, size):
                yield Chunk(tool_calls=(delta,))
        if reply.error is not None:
            raise reply.error
        finish_reason = _finish_reason(reply)
        if finish_reason is not None or reply.usage is not None:
            yield Chunk(finish_reason=finish_reason, usage=reply.usage)

    def _deltas(self, index: int, call: Call, size: int | None) -> Iterator[ToolCallDelta]:
        if isinstance(call, ToolCall):
            call_id, name, arguments = call.id, call.name, call.arguments
        else:
            call_id, name = f"call_{next(self._call_numbers)}", call[0]
            arguments = json.dumps(call[1], ensure_ascii=False)
        if size is None:
            yield ToolCallDelta(index, call_id, name, arguments)
            return
        yield ToolCallDelta(index, call_id, name)
        for piece in _cut(arguments, size):
            yield ToolCallDelta(index, arguments=piece)

    def _choose(self, request: ModelRequest) -> ReplyLike:
        if request.purpose == "turn":
            return self._answer(request)
        if request.purpose == "compact":
            return self._summaries.popleft() if self._summaries else plain_summary(request.messages)
        return self._titles.popleft() if self._titles else plain_title(request.messages)

    def _remember(self, request: ModelRequest) -> None:
        # Not attrs.evolve, which costs as much as the whole of a short answer.
        kept = ModelRequest(
            request.model,
            list(request.messages),
            request.tools,
            request.tool_choice,
            request.thinking,
            request.purpose,
            request.agent,
            request.sender,
            request.conversation_id,
            request.turn_id,
        )
        self.requests.append(kept)
        if self._clock is not None:
            self.times.append(self._clock.monotonic())
        if self._keep is not None and len(self.requests) > self._keep:
            del self.requests[0]
            del self.times[:1]


def _answerer(script: Script | None) -> Callable[[ModelRequest], ReplyLike]:
    if script is None:
        return _echo
    if callable(script):
        return script
    replies = _checked(script, "the script")
    size = len(replies)

    def take(_request: ModelRequest) -> ReplyLike:
        if not replies:
            raise ModelError(f"the script is used up: all its {size} replies were given; write one more")
        return replies.popleft()

    return take


def _checked_count(keep: int | None) -> int | None:
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 0):
        raise InvalidConfig(f"keep_requests must be a whole number, 0 or more, or None, not {keep!r}")
    return keep


def _checked(replies: object, what: str) -> deque[ReplyLike]:
    if isinstance(replies, str) or not isinstance(replies, Iterable):
        raise InvalidConfig(f"{what} must be a list of replies, not {replies!r}")
    found = deque(replies)
    for reply in found:
        if not isinstance(reply, str | Reply) and not _is_raisable(reply):
            raise InvalidConfig(f"{what} holds {reply!r}; a reply is text, a Reply or an exception")
    return found


def _echo(request: ModelRequest) -> str:
    for message in reversed(request.messages):
        if message.get("role") == "user":
            return message_text(message)
    return ""


def _finish_reason(reply: Reply) -> str | None:
    if reply.finish_reason == AUTO:
        return "tool_calls" if reply.tool_calls else "stop"
    return reply.finish_reason


def _cut(text: str, size: int | None) -> Iterator[str]:
    for start in range(0, len(text), size or len(text) or 1):
        yield text[start : start + size] if size else text
