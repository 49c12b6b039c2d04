"""Palaver: an actor-model runtime for agent conversations that loses nothing it has accepted.

Every public name can be imported from here. They are looked up when first used, so that a program may
`import palaver` before it lets gevent patch the process; nothing here patches anything.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.children import ChildSpec, ChildStatus
    from actors.config import AgentConfig, Limits
    from actors.counts import Durations
    from actors.errors import (
        AgentExists,
        AgentNotRegistered,
        AskTimeout,
        CompactionFailed,
        ConversationBusy,
        ConversationClosed,
        ConversationNotFound,
        ConversationParked,
        DescriptionRequired,
        HandlerFailed,
        InvalidConfig,
        InvalidInput,
        InvalidTitle,
        KeyReused,
        MailboxFull,
        ModelError,
        NoActiveTurn,
        NotPatched,
        RestartsSpent,
        ResultTimeout,
        RuntimeClosed,
        RuntimeFailed,
        WrongThread,
    )
    from actors.events import (
        ActorParked,
        ActorRestarted,
        Compacted,
        CompactionSkipped,
        ContextUsage,
        DeadLettered,
        Done,
        Event,
        Expired,
        Incident,
        Lagged,
        Overflowed,
        Passivated,
        TextDelta,
        TextEnd,
        TextStart,
        ThinkingDelta,
        ThinkingEnd,
        ThinkingStart,
        ToolCallsBegin,
        ToolCallsComplete,
        ToolCallsStart,
        ToolResult,
        UserSteered,
    )
    from actors.greenlet import LATER, Deadlock, GreenletActor, GreenletFuture
    from actors.models.base import Chunk, Model, ModelRequest, ToolCallDelta
    from actors.models.openai import OpenAIModel
    from actors.models.scripted import Reply, ScriptedModel
    from actors.policy import Budget
    from actors.state import CompactOutcome, ConversationInfo, ConversationSnapshot, SwitchOutcome
    from actors.supervisor import Supervisor
    from actors.ticket import Ticket
    from actors.tools import Tool, ToolContext
    from palaver.health import Health
    from palaver.host.client import HostClient, HostTicket, Place
    from palaver.host.errors import HostInUse, HostUnreachable, ProtocolError
    from palaver.runtime import Runtime
    from palaver.stats import Rates, Stats, rates
    from palaver.timers import Timer
    from persistence.dead_letters import DeadLetter
    from persistence.errors import (
        BacklogFull,
        DatabaseFailed,
        DatabaseInUse,
        DatabaseTooNew,
        DatabaseUnusable,
        DeadLetterNotFound,
        PalaverError,
        RecordError,
        SessionNotFound,
        StorageError,
    )
    from persistence.records import (
        HistoryEntry,
        MemoryEntry,
        SessionSummary,
        TimerInfo,
        ToolCall,
        TurnResult,
        TurnRow,
        UnfinishedSession,
        Usage,
    )

__version__ = "0.1.0"

# The same imports, for when the program runs: module -> names.
_HOMES = {
    "actors.children": (
        "ChildSpec",
        "ChildStatus",
    ),
    "actors.config": (
        "AgentConfig",
        "Limits",
    ),
    "actors.counts": ("Durations",),
    "actors.errors": (
        "AgentExists",
        "AgentNotRegistered",
        "AskTimeout",
        "CompactionFailed",
        "ConversationBusy",
        "ConversationClosed",
        "ConversationNotFound",
        "ConversationParked",
        "DescriptionRequired",
        "HandlerFailed",
        "InvalidConfig",
        "InvalidInput",
        "InvalidTitle",
        "KeyReused",
        "MailboxFull",
        "ModelError",
        "NoActiveTurn",
        "NotPatched",
        "RestartsSpent",
        "ResultTimeout",
        "RuntimeClosed",
        "RuntimeFailed",
        "WrongThread",
    ),
    "actors.events": (
        "ActorParked",
        "ActorRestarted",
        "Compacted",
        "CompactionSkipped",
        "ContextUsage",
        "DeadLettered",
        "Done",
        "Event",
        "Expired",
        "Incident",
        "Lagged",
        "Overflowed",
        "Passivated",
        "TextDelta",
        "TextEnd",
        "TextStart",
        "ThinkingDelta",
        "ThinkingEnd",
        "ThinkingStart",
        "ToolCallsBegin",
        "ToolCallsComplete",
        "ToolCallsStart",
        "ToolResult",
        "UserSteered",
    ),
    "actors.greenlet": (
        "LATER",
        "Deadlock",
        "GreenletActor",
        "GreenletFuture",
    ),
    "actors.models.base": (
        "Chunk",
        "Model",
        "ModelRequest",
        "ToolCallDelta",
    ),
    "actors.models.openai": ("OpenAIModel",),
    "actors.models.scripted": (
        "Reply",
        "ScriptedModel",
    ),
    "actors.policy": ("Budget",),
    "actors.state": (
        "CompactOutcome",
        "ConversationInfo",
        "ConversationSnapshot",
        "SwitchOutcome",
    ),
    "actors.supervisor": ("Supervisor",),
    "actors.ticket": ("Ticket",),
    "actors.tools": (
        "Tool",
        "ToolContext",
    ),
    "palaver.health": ("Health",),
    "palaver.host.client": (
        "HostClient",
        "HostTicket",
        "Place",
    ),
    "palaver.host.errors": (
        "HostInUse",
        "HostUnreachable",
        "ProtocolError",
    ),
    "palaver.runtime": ("Runtime",),
    "palaver.stats": ("Rates", "Stats", "rates"),
    "persistence.dead_letters": ("DeadLetter",),
    "palaver.timers": ("Timer",),
    "persistence.errors": (
        "BacklogFull",
        "DatabaseFailed",
        "DatabaseInUse",
        "DatabaseTooNew",
        "DatabaseUnusable",
        "DeadLetterNotFound",
        "PalaverError",
        "RecordError",
        "SessionNotFound",
        "StorageError",
    ),
    "persistence.records": (
        "HistoryEntry",
        "MemoryEntry",
        "SessionSummary",
        "TimerInfo",
        "ToolCall",
        "TurnResult",
        "TurnRow",
        "UnfinishedSession",
        "Usage",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "LATER",
    "ActorParked",
    "ActorRestarted",
    "AgentConfig",
    "AgentExists",
    "AgentNotRegistered",
    "AskTimeout",
    "BacklogFull",
    "Budget",
    "ChildSpec",
    "ChildStatus",
    "Chunk",
    "CompactOutcome",
    "Compacted",
    "CompactionFailed",
    "CompactionSkipped",
    "ContextUsage",
    "ConversationBusy",
    "ConversationClosed",
    "ConversationInfo",
    "ConversationNotFound",
    "ConversationParked",
    "ConversationSnapshot",
    "DatabaseFailed",
    "DatabaseInUse",
    "DatabaseTooNew",
    "DatabaseUnusable",
    "DeadLetter",
    "DeadLetterNotFound",
    "DeadLettered",
    "Deadlock",
    "DescriptionRequired",
    "Done",
    "Durations",
    "Event",
    "Expired",
    "GreenletActor",
    "GreenletFuture",
    "HandlerFailed",
    "Health",
    "HistoryEntry",
    "HostClient",
    "HostInUse",
    "HostTicket",
    "HostUnreachable",
    "Incident",
    "InvalidConfig",
    "InvalidInput",
    "InvalidTitle",
    "KeyReused",
    "Lagged",
    "Limits",
    "MailboxFull",
    "MemoryEntry",
    "Model",
    "ModelError",
    "ModelRequest",
    "NoActiveTurn",
    "NotPatched",
    "OpenAIModel",
    "Overflowed",
    "PalaverError",
    "Passivated",
    "Place",
    "ProtocolError",
    "Rates",
    "RecordError",
    "Reply",
    "RestartsSpent",
    "ResultTimeout",
    "Runtime",
    "RuntimeClosed",
    "RuntimeFailed",
    "ScriptedModel",
    "SessionNotFound",
    "SessionSummary",
    "Stats",
    "StorageError",
    "Supervisor",
    "SwitchOutcome",
    "TextDelta",
    "TextEnd",
    "TextStart",
    "ThinkingDelta",
    "ThinkingEnd",
    "ThinkingStart",
    "Ticket",
    "Timer",
    "TimerInfo",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallsBegin",
    "ToolCallsComplete",
    "ToolCallsStart",
    "ToolContext",
    "ToolResult",
    "TurnResult",
    "TurnRow",
    "UnfinishedSession",
    "Usage",
    "UserSteered",
    "WrongThread",
    "rates",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'palaver' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
