"""What a user configures: agents and limits. Frozen, and validated once, at the start."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from attrs import Attribute, field, frozen

from actors.errors import InvalidConfig
from actors.text import check_text


def _name(_self: Any, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise InvalidConfig(f"{attribute.name} must be text, not {type(value).__name__}")
    check_text(value, what=attribute.name, error=InvalidConfig, most=200)


def _text(_self: Any, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise InvalidConfig(f"{attribute.name} must be text, not {type(value).__name__}")
    check_text(value, what=attribute.name, error=InvalidConfig, empty=True)


def _count(_self: Any, attribute: Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidConfig(f"{attribute.name} must be a whole number above 0, not {value!r}")


def _optional_count(self: Any, attribute: Attribute[Any], value: object) -> None:
    if value is not None:
        _count(self, attribute, value)


def _seconds(_self: Any, attribute: Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidConfig(f"{attribute.name} must be a number of seconds above 0, not {value!r}")


def _flag(_self: Any, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidConfig(f"{attribute.name} must be True or False, not {value!r}")


def _names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if isinstance(value, str) or any(not isinstance(name, str) for name in names):
        raise InvalidConfig(f"tools must be a list of tool names, or None for all, not {value!r}")
    return tuple(names)


@frozen
class AgentConfig:
    """An agent: a model with a prompt and tools.

    Args:
        name: what callers call it; any non-empty text.
        model: the name that the model's endpoint knows; "" where the runtime has a single model that
            needs none. An agent without a model name gets no titles.
        system_prompt: the first message of every request.
        description: for people and listings.
        tools: names of the tools it may call, or None for all.
        max_iterations: model rounds in one turn, at most.
        thinking: ask for reasoning where the model can.
        tool_choice: "auto", "none", "required" or a tool's name.
        compact_threshold: tokens of context above which history is compacted; None is never.
        compact_tool_max_len: characters of a tool result that a summary call gets to see.
        auto_title: ask the model for a title after the first exchange.
        memory_scope: "sender" keeps each sender's memory apart, "agent" shares it among them.

    Raises:
        InvalidConfig: naming the field.
    """

    name: str = field(validator=_name)
    model: str = field(default="", validator=_text)
    system_prompt: str = field(default="", validator=_text)
    description: str = field(default="", validator=_text)
    tools: tuple[str, ...] | None = field(default=None, converter=_names)
    max_iterations: int = field(default=16, validator=_count)
    thinking: bool = field(default=False, validator=_flag)
    tool_choice: str = field(default="auto", validator=_name)
    compact_threshold: int | None = field(default=100_000, validator=_optional_count)
    compact_tool_max_len: int = field(default=1024, validator=_count)
    auto_title: bool = field(default=True, validator=_flag)
    memory_scope: Literal["sender", "agent"] = field(default="sender")

    @memory_scope.validator
    def _check_scope(self, _attribute: Attribute[Any], value: object) -> None:
        if value not in ("sender", "agent"):
            raise InvalidConfig(f'memory_scope must be "sender" or "agent", not {value!r}')

    def scope(self, sender: str) -> str:
        """The scope of this sender's memory: the sender, or "" where all senders share it."""
        return sender if self.memory_scope == "sender" else ""


@frozen
class Limits:
    """Bounds of one runtime. Over a bound a caller gets `MailboxFull` or `InvalidInput`; nothing grows
    without end.

    Args:
        queued_per_conversation: accepted turns that wait in one conversation, steers included.
        queued_per_sender: the same over all conversations of one sender.
        queued_total: the same over the whole runtime.
        content_chars: characters of one message.
        tool_output_chars: characters of a tool's result; longer ones are cut, visibly.
        event_buffer: events that a subscriber may be behind before it is told `Lagged`.
        database_backlog: jobs that wait for the database thread.
        live_conversations: conversations in memory; idle topics leave it to make room for others.
        history_bytes: the histories of all live conversations together, in bytes as far as that is known;
            idle topics leave memory to make room.
        model_calls: calls of models at once, of all conversations together; further ones wait, and senders
            take turns.
        tool_calls: the same for calls of tools.
        passivate_after_s: seconds after which an idle topic conversation leaves memory, until its next
            message.
        tmp_expires_s: seconds after which an idle tmp chat ends, with all that it held.
        turn_s: seconds that a turn may take, from its beginning.
        model_round_s: seconds that a model may take for one answer, once its call is made.
        tool_call_s: seconds that a tool may take for one call.
        timers_per_conversation: timers that have not ended, of one conversation.
        attempts: how often a turn is begun before it ends `failed`, when its process or its conversation
            died each time.
        keys_kept_s: seconds for which an idempotency key stands for its message; longer while that has not
            ended.
        ask_timeout_s: seconds within which an actor must answer a request that no turn is part of.
    """

    queued_per_conversation: int = field(default=100, validator=_count)
    queued_per_sender: int = field(default=1_000, validator=_count)
    queued_total: int = field(default=100_000, validator=_count)
    content_chars: int = field(default=1_000_000, validator=_count)
    tool_output_chars: int = field(default=200_000, validator=_count)
    event_buffer: int = field(default=1_024, validator=_count)
    database_backlog: int = field(default=200_000, validator=_count)
    live_conversations: int = field(default=2_000_000, validator=_count)
    history_bytes: int = field(default=2_147_483_648, validator=_count)
    model_calls: int = field(default=10_000, validator=_count)
    tool_calls: int = field(default=10_000, validator=_count)
    passivate_after_s: float = field(default=3_600.0, validator=_seconds)
    tmp_expires_s: float = field(default=86_400.0, validator=_seconds)
    turn_s: float = field(default=21_600.0, validator=_seconds)
    model_round_s: float = field(default=900.0, validator=_seconds)
    tool_call_s: float = field(default=3_600.0, validator=_seconds)
    timers_per_conversation: int = field(default=1_000, validator=_count)
    attempts: int = field(default=3, validator=_count)
    keys_kept_s: float = field(default=86_400.0, validator=_seconds)
    ask_timeout_s: float = field(default=30.0, validator=_seconds)
