"""DESIGN 7 as a contract: names, signatures, records, events, and what each call does."""

from __future__ import annotations

import ast
import concurrent.futures
import inspect
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import gevent
import pytest
from gevent.event import Event as Signal
from support import (
    CRAB,
    ROOT,
    ManualClock,
    PuppetModel,
    Runtimes,
    handle_of,
    history_of,
    in_thread,
    opened_runtimes,  # noqa: F401 - a fixture
    run_script,
    texts,
    topic,
    until,
)

import palaver
from palaver import (
    AgentConfig,
    AgentExists,
    AgentNotRegistered,
    Chunk,
    Compacted,
    CompactionFailed,
    CompactionSkipped,
    CompactOutcome,
    ContextUsage,
    ConversationBusy,
    ConversationInfo,
    ConversationNotFound,
    ConversationSnapshot,
    Done,
    Event,
    HistoryEntry,
    InvalidConfig,
    InvalidInput,
    KeyReused,
    Lagged,
    Limits,
    MailboxFull,
    MemoryEntry,
    ModelError,
    ModelRequest,
    PalaverError,
    Reply,
    ResultTimeout,
    Runtime,
    RuntimeClosed,
    ScriptedModel,
    SessionNotFound,
    SessionSummary,
    StorageError,
    SwitchOutcome,
    TextDelta,
    TextEnd,
    TextStart,
    ThinkingDelta,
    ThinkingEnd,
    ThinkingStart,
    Ticket,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallsBegin,
    ToolCallsComplete,
    ToolCallsStart,
    ToolContext,
    ToolResult,
    TurnResult,
    Usage,
    UserSteered,
    WrongThread,
)

LOOK = Tool(lambda: "up", name="look")
STORED = pytest.mark.parametrize("stored", [False, True])
WHALE = AgentConfig(name="whale", model="w", system_prompt="You are a whale.", auto_title=False)


def opened(rt: Runtime, stored: bool) -> int:
    """A topic conversation, or the tmp chat."""
    return topic(rt) if stored else rt.get_or_create("crab", "alice")


def kinds(events: Iterable[object]) -> list[type]:
    return [type(event) for event in events]


def done(events: list[Event]) -> TurnResult:
    assert isinstance(events[-1], Done)
    return events[-1].result


# -- names -----------------------------------------------------------------------------------------

NAMES_OF_DESIGN_7 = [
    "Runtime",
    "AgentConfig",
    "Tool",
    "ScriptedModel",
    "OpenAIModel",
    "Limits",
    "SwitchOutcome",
    "TurnResult",
    "Ticket",
    "CompactOutcome",
    "ConversationInfo",
    "ConversationSnapshot",
    "Stats",
    "Event",
    "PalaverError",
    "DatabaseInUse",
    "StorageError",
    "AgentNotRegistered",
    "DescriptionRequired",
    "InvalidTitle",
    "SessionNotFound",
    "ConversationNotFound",
    "ConversationBusy",
    "ConversationClosed",
    "MailboxFull",
    "NoActiveTurn",
    "KeyReused",
    "WrongThread",
    "TextStart",
    "TextDelta",
    "TextEnd",
    "ThinkingStart",
    "ThinkingDelta",
    "ThinkingEnd",
    "ToolCallsBegin",
    "ToolCallsStart",
    "ToolResult",
    "ToolCallsComplete",
    "UserSteered",
    "ContextUsage",
    "Compacted",
    "Lagged",
    "Done",
    "HistoryEntry",
    "ToolCall",
    "SessionSummary",
    "MemoryEntry",
    "Usage",
    "ToolContext",
    "ModelRequest",
    "Chunk",
    "ToolCallDelta",
    "Reply",
    "Model",
    "GreenletActor",
    "GreenletFuture",
]


@pytest.mark.parametrize("name", NAMES_OF_DESIGN_7)
def test_every_name_of_the_contract_can_be_imported_from_palaver(name: str) -> None:
    assert getattr(palaver, name) is not None
    assert name in palaver.__all__


def test_lazy_names_are_those_of_the_type_checkers_imports_and_of_all() -> None:
    tree = ast.parse((ROOT / "palaver" / "__init__.py").read_text())
    [guard] = [node for node in tree.body if isinstance(node, ast.If)]
    checked = {
        (node.module, alias.name)
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    [homes] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if node.targets[0].id == "_HOMES"
    ]
    assert checked == {(home, name) for home, names in homes.items() for name in names}
    assert sorted(palaver.__all__) == sorted(name for _, name in checked)
    assert len(set(palaver.__all__)) == len(palaver.__all__)
    assert set(palaver.__all__) <= set(dir(palaver))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"palaver.*'Lobster'"):
        palaver.Lobster  # noqa: B018 - the access is what is tested


def test_importing_palaver_imports_neither_gevent_nor_pykka_nor_requests() -> None:
    heavy = "('gevent', 'greenlet', 'pykka', 'requests', 'sqlite_utils')"
    ran = run_script(f"import palaver, sys; print([name for name in {heavy} if name in sys.modules])")
    assert ran.stdout.strip() == "[]", ran.stderr


def test_every_error_has_the_one_base() -> None:
    errors = [getattr(palaver, name) for name in palaver.__all__]
    errors = [e for e in errors if isinstance(e, type) and issubclass(e, BaseException)]
    assert len(errors) > 20
    assert all(issubclass(error, PalaverError) for error in errors)


# -- signatures ------------------------------------------------------------------------------------

_TURN_KEYWORDS = {
    "sender": "",
    "guest": None,
    "on_busy": "enqueue",
    "key": None,
    "tool_choice": None,
    "timeout": None,
}


@pytest.mark.parametrize("method", [Runtime.send, Runtime.submit, Runtime.stream])
def test_send_submit_and_stream_take_the_same_arguments(method: Callable[..., object]) -> None:
    parameters = inspect.signature(method).parameters
    assert list(parameters)[:3] == ["self", "cid", "content"]
    for name, default in _TURN_KEYWORDS.items():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default == default


@pytest.mark.parametrize(
    ("method", "call"),
    [
        (Runtime.open, lambda f: f("path", "model", tools=(), hooks=(), limits=None)),
        (Runtime.add_agent, lambda f: f("rt", "config")),
        (Runtime.upsert_agent, lambda f: f("rt", "config")),
        (Runtime.remove_agent, lambda f: f("rt", "name")),
        (Runtime.agent, lambda f: f("rt", "name")),
        (Runtime.agents, lambda f: f("rt")),
        (Runtime.add_ephemeral, lambda f: f("rt", "config")),
        (Runtime.remove_ephemeral, lambda f: f("rt", "name")),
        (Runtime.get_or_create, lambda f: f("rt", agent="a", sender="s")),
        (Runtime.switch_topic, lambda f: f("rt", agent="a", sender="s", title="t", description=None)),
        (Runtime.load, lambda f: f("rt", handle="h")),
        (Runtime.steer, lambda f: f("rt", cid=1, content="c")),
        (Runtime.cancel, lambda f: f("rt", cid=1)),
        (Runtime.summarize, lambda f: f("rt", cid=1)),
        (Runtime.compact, lambda f: f("rt", cid=1)),
        (Runtime.close, lambda f: f("rt", 1, mode="now")),
        (Runtime.list_active, lambda f: f("rt")),
        (Runtime.conversation, lambda f: f("rt", cid=1)),
        (Runtime.conversations, lambda f: f("rt")),
        (Runtime.conversation_count, lambda f: f("rt")),
        (Runtime.conversation_id, lambda f: f("rt", agent="a", sender="s")),
        (Runtime.transfer_to, lambda f: f("rt", other="o")),
        (Runtime.sessions, lambda f: f("rt", agent=None, sender=None, topic=None)),
        (Runtime.transcript, lambda f: f("rt", handle="h")),
        (Runtime.delete_session, lambda f: f("rt", handle="h")),
        (Runtime.subscribe, lambda f: f("rt")),
        (Runtime.stats, lambda f: f("rt")),
        (Runtime.shutdown, lambda f: f("rt", drain=1.0)),
        (Runtime.from_thread, lambda f: f("rt", print, 1, 2)),
        (Ticket.result, lambda f: f("ticket", timeout=1)),
        (Ticket.cancel, lambda f: f("ticket")),
        (Ticket.events, lambda f: f("ticket")),
        (Tool.__init__, lambda f: f("self", print, name=None, description=None, parameters=None)),
        (ScriptedModel.__init__, lambda f: f("self", None, clock=None, summaries=[], titles=[])),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_calls_take_the_arguments_of_the_contract(
    method: Callable[..., object], call: Callable[[Callable[..., object]], object]
) -> None:
    call(inspect.signature(method).bind)


def test_the_openai_model_takes_the_arguments_of_the_contract() -> None:
    parameters = inspect.signature(palaver.OpenAIModel).parameters
    wanted = {
        "api_key": None,
        "max_concurrent": 64,
        "connect_timeout_s": 10,
        "idle_timeout_s": 60,
        "total_timeout_s": 600,
        "retries": 3,
        "headers": None,
    }
    assert next(iter(parameters)) == "base_url"
    assert {name: parameters[name].default for name in wanted} == wanted


# -- records ---------------------------------------------------------------------------------------

_INFO = ["id", "agent", "sender", "topic", "title", "state", "message_count", "queued", "alive_s"]


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (
            HistoryEntry,
            ["role", "content", "tool_calls", "tool_call_id", "name", "reasoning", "agent", "sender"],
        ),
        (ToolCall, ["id", "name", "arguments"]),
        (ConversationInfo, _INFO),
        (ConversationSnapshot, [*_INFO, "handle", "uptime_s", "history"]),
        (
            SessionSummary,
            ["handle", "agent", "sender", "topic", "title", "created_at", "updated_at", "archive"],
        ),
        (MemoryEntry, ["name", "kind", "content", "aliases", "created_at"]),
        (Usage, ["prompt_tokens", "completion_tokens", "total_tokens"]),
        (
            TurnResult,
            ["text", "stop_reason", "error", "steps", "usage", "model", "conversation_id", "turn_id"],
        ),
        (SwitchOutcome, ["conversation_id", "resumed"]),
        (CompactOutcome, ["archive", "summary"]),
        (ToolContext, ["agent", "sender", "conversation_id", "turn_id", "call_id"]),
        (ModelRequest, ["model", "messages", "tools", "tool_choice", "thinking", "purpose"]),
        (Chunk, ["text", "reasoning", "tool_calls", "finish_reason", "usage"]),
        (ToolCallDelta, ["index", "id", "name", "arguments"]),
        (Reply, ["text", "reasoning", "tool_calls", "usage", "delay_s", "chunk_chars"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_records_are_frozen_and_begin_with_the_fields_of_the_contract(
    record: type, fields: list[str]
) -> None:
    attributes = attrs.fields(record)
    assert [attribute.name for attribute in attributes][: len(fields)] == fields
    assert record.__setattr__ is not object.__setattr__
    assert all(attribute.on_setattr is None for attribute in attributes)
    instance = object.__new__(record)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(instance, fields[0], None)


def test_agent_config_has_the_defaults_of_the_contract() -> None:
    config = AgentConfig("crab")
    assert attrs.asdict(config) == {
        "name": "crab",
        "model": "",
        "system_prompt": "",
        "description": "",
        "tools": None,
        "max_iterations": 16,
        "thinking": False,
        "tool_choice": "auto",
        "compact_threshold": 100_000,
        "compact_tool_max_len": 1024,
        "auto_title": True,
        "memory_scope": "sender",
    }
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.name = "other"  # type: ignore[misc]


def test_events_are_frozen_attrs_classes() -> None:
    event_types = [TextStart, TextDelta, TextEnd, ThinkingStart, ThinkingDelta, ThinkingEnd, ToolCallsBegin]
    event_types += [ToolCallsStart, ToolResult, ToolCallsComplete, UserSteered, ContextUsage, Compacted]
    for event_type in [*event_types, Lagged, Done]:
        assert attrs.has(event_type)
        assert issubclass(event_type, Event)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        TextDelta("x").text = "y"  # type: ignore[misc]


# -- opening and agents ----------------------------------------------------------------------------


def test_a_runtime_is_a_context_manager_that_shuts_down() -> None:
    with Runtime.open(":memory:", ScriptedModel()) as rt:
        rt.add_agent(CRAB)
        assert rt.send(rt.switch_topic("crab", "alice", "work", "d").conversation_id, "hello").text == "hello"
    with pytest.raises(RuntimeClosed):
        rt.get_or_create("crab", "alice")


def test_two_runtimes_live_in_one_process(runtimes: Runtimes) -> None:
    one, two = runtimes.open(ScriptedModel(["one"])), runtimes.open(ScriptedModel(["two"]))
    assert one.send(topic(one), "hello").text == "one"
    assert two.send(topic(two), "hello").text == "two"


def test_agents_are_added_replaced_listed_and_removed(runtimes: Runtimes) -> None:
    rt = runtimes.open(agents=())
    rt.add_agent(CRAB)
    rt.add_agent(WHALE)
    with pytest.raises(AgentExists, match=r"'crab'.*upsert_agent"):
        rt.add_agent(CRAB)
    assert rt.agents() == [CRAB, WHALE]
    other = attrs.evolve(CRAB, description="new")
    rt.upsert_agent(other)
    assert rt.agent("crab") == other
    assert rt.remove_agent("crab") is True
    assert rt.remove_agent("crab") is False
    assert rt.agent("crab") is None
    assert rt.agents() == [WHALE]


def test_ephemeral_agents_work_but_are_not_listed(runtimes: Runtimes) -> None:
    rt = runtimes.open(agents=())
    rt.add_ephemeral(CRAB)
    assert rt.agents() == []
    assert rt.agent("crab") == CRAB
    assert rt.send(rt.get_or_create("crab", "alice"), "hello").text == "hello"
    with pytest.raises(AgentExists):
        rt.add_agent(CRAB)
    assert rt.remove_agent("crab") is False
    assert rt.remove_ephemeral("crab") is True
    assert rt.remove_ephemeral("crab") is False
    with pytest.raises(AgentNotRegistered):
        rt.get_or_create("crab", "alice")


def test_a_replaced_agent_answers_the_next_turn_of_a_live_conversation(runtimes: Runtimes) -> None:
    model = ScriptedModel()
    rt = runtimes.open(model)
    cid = rt.get_or_create("crab", "alice")
    rt.send(cid, "one")
    rt.upsert_agent(attrs.evolve(CRAB, system_prompt="You are a lobster."))
    rt.send(cid, "two")
    assert [request.messages[0]["content"] for request in model.requests] == [
        "You are a crab.",
        "You are a lobster.",
    ]


def test_a_turn_of_a_removed_agent_ends_with_an_error_and_keeps_the_message(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    rt.remove_agent("crab")
    result = rt.send(cid, "hello")
    assert result.stop_reason == "error"
    assert "'crab'" in (result.error or "")
    assert texts(rt.transcript(handle_of(rt, cid))) == [("user", "hello")]


# -- models ----------------------------------------------------------------------------------------


def test_a_mapping_gives_each_agent_the_model_that_it_names(runtimes: Runtimes) -> None:
    models = {"m": ScriptedModel(["from m"]), "w": ScriptedModel(["from w"])}
    rt = runtimes.open(models, agents=[CRAB, WHALE])
    assert rt.send(rt.get_or_create("crab", "a"), "x").text == "from m"
    result = rt.send(rt.get_or_create("whale", "a"), "x")
    assert (result.text, result.model) == ("from w", "w")
    with pytest.raises(InvalidConfig, match=r"'other'.*'m', 'w'"):
        rt.add_agent(AgentConfig(name="eel", model="other"))
    assert rt.agent("eel") is None


def test_a_request_has_the_wire_form_of_the_contract(runtimes: Runtimes) -> None:
    model = ScriptedModel([Reply("let me see", tool_calls=[("look", {})]), "seen", "again"])
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, thinking=True)], tools=[LOOK])
    cid = rt.get_or_create("crab", "alice")
    rt.send(cid, "go")
    rt.send(cid, "once more")
    first, second, third = model.requests
    assert first.messages == [
        {"role": "system", "content": "You are a crab."},
        {"role": "user", "content": "go"},
    ]
    assert (first.model, first.tool_choice, first.thinking, first.purpose) == ("m", "auto", True, "turn")
    assert (first.agent, first.sender, first.conversation_id) == ("crab", "alice", cid)
    call_id = second.messages[2]["tool_calls"][0]["id"]
    assert second.messages[2:] == [
        {
            "role": "assistant",
            "content": "let me see",
            "tool_calls": [
                {"id": call_id, "type": "function", "function": {"name": "look", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": call_id, "content": "up"},
    ]
    assert third.messages == [
        *second.messages,
        {"role": "assistant", "content": "seen"},
        {"role": "user", "content": "once more"},
    ]
    assert "look" in [tool["function"]["name"] for tool in first.tools]


def test_an_agent_is_offered_and_may_call_only_the_tools_that_it_names(runtimes: Runtimes) -> None:
    model = ScriptedModel([Reply(tool_calls=[("recall", {"query": "x"})]), "done"])
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, tools=("look",))], tools=[LOOK])
    rt.send(rt.get_or_create("crab", "alice"), "go")
    assert [tool["function"]["name"] for tool in model.requests[0].tools] == ["look"]
    assert "no tool 'recall'" in model.requests[1].messages[-1]["content"]


@STORED
def test_a_model_error_is_a_result_and_nothing_of_the_round_is_kept(runtimes: Runtimes, stored: bool) -> None:
    model = ScriptedModel([Reply("I was just", error=RuntimeError("the wire broke")), "fine"])
    rt = runtimes.open(model)
    cid = opened(rt, stored)
    result = rt.send(cid, "go")
    assert (result.text, result.stop_reason) == ("", "error")
    assert "the wire broke" in (result.error or "")
    assert history_of(rt, cid) == [("user", "go")]
    assert rt.send(cid, "again").text == "fine"
    assert history_of(rt, cid) == [("user", "go"), ("user", "again"), ("assistant", "fine")]


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    "error",
    [_Unprintable(), gevent.Timeout(1), gevent.GreenletExit(), ModelError("down"), BaseException("x")],
)
def test_a_model_error_of_any_kind_ends_the_turn_and_the_next_one_works(
    runtimes: Runtimes, error: BaseException
) -> None:
    rt = runtimes.open(ScriptedModel([error, "fine"]))
    cid = topic(rt)
    assert rt.send(cid, "go").stop_reason == "error"
    assert rt.send(cid, "again").text == "fine"


@pytest.mark.parametrize(
    "said", [Chunk("half a"), Chunk(reasoning="hm"), Chunk(tool_calls=[ToolCallDelta(0)])]
)
def test_a_stream_cut_before_its_finish_reason_is_an_error(runtimes: Runtimes, said: Chunk) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    ticket = rt.submit(cid, "go")
    asked = model.asked()
    asked.say(said)
    asked.end()
    result = ticket.result()
    assert result.stop_reason == "error"
    assert "finish reason" in (result.error or "")
    assert texts(rt.transcript(handle_of(rt, cid))) == [("user", "go")]


@pytest.mark.parametrize("reply", [Reply(""), Reply(reasoning="I think, but say nothing")])
def test_a_round_that_says_nothing_is_no_action_and_adds_nothing(runtimes: Runtimes, reply: Reply) -> None:
    rt = runtimes.open(ScriptedModel([reply]))
    cid = topic(rt)
    result = rt.send(cid, "go")
    assert (result.text, result.stop_reason, result.error) == ("", "no_action", None)
    assert [entry.role for entry in rt.transcript(handle_of(rt, cid))] == ["user"]


def test_a_model_that_streams_no_chunks_is_an_error_and_not_a_crash(runtimes: Runtimes) -> None:
    class Wrong:
        replies: list[object] = [None, ["text"], [Chunk("ok", finish_reason="stop")]]

        def stream(self, _request: ModelRequest) -> object:
            return self.replies.pop(0)

    rt = runtimes.open(Wrong())
    cid = rt.get_or_create("crab", "alice")
    assert [rt.send(cid, "go").stop_reason for _ in range(3)] == ["error", "error", "text_response"]


def test_max_iterations_ends_a_turn_that_only_calls_tools(runtimes: Runtimes) -> None:
    model = ScriptedModel(lambda _request: Reply("still looking", tool_calls=[("look", {})]))
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, max_iterations=3)], tools=[LOOK])
    cid = topic(rt)
    result = rt.send(cid, "go")
    assert (result.stop_reason, result.steps, result.text) == ("max_iterations", 3, "still looking")
    assert len(rt.transcript(handle_of(rt, cid))) == 1 + 3 * 2
    assert rt.list_active()[0].state == "idle"


def test_a_line_of_a_listing_is_a_frozen_record_like_any_other(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    rt.get_or_create("crab", "alice")
    (line,) = rt.list_active()
    assert type(line) is palaver.ConversationInfo
    again = attrs.evolve(line)
    assert (again, hash(again), repr(again)) == (line, hash(line), repr(line))
    assert attrs.asdict(line)["sender"] == "alice"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        line.sender = "bob"  # type: ignore[misc]  # that is what is refused
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        del line.sender


def test_usage_and_steps_are_summed_over_the_turn(runtimes: Runtimes) -> None:
    script = [
        Reply(tool_calls=[("look", {})], usage=Usage(10, 2, 12, 4, 1)),
        Reply(tool_calls=[("look", {})]),
        Reply("done", usage=Usage(20, 3, 23, 5, 2)),
    ]
    rt = runtimes.open(ScriptedModel(script), tools=[LOOK])
    cid = topic(rt)
    result = rt.send(cid, "go")
    assert (result.steps, result.usage) == (3, Usage(30, 5, 35, 9, 3))
    assert (result.model, result.conversation_id) == ("m", cid)
    assert rt.send(cid, "next").usage == Usage()


def test_tool_choice_of_a_turn_is_for_its_first_round(runtimes: Runtimes) -> None:
    model = ScriptedModel(
        lambda request: "done" if request.messages[-1]["role"] == "tool" else Reply(tool_calls=[("look", {})])
    )
    rt = runtimes.open(model, tools=[LOOK], agents=[CRAB, attrs.evolve(WHALE, tool_choice="required")])
    cid = rt.get_or_create("crab", "alice")
    rt.send(cid, "go", tool_choice="look")
    rt.send(cid, "go", tool_choice="none")
    rt.send(rt.get_or_create("whale", "alice"), "go")
    assert [request.tool_choice for request in model.requests] == [
        "look",
        "auto",
        "none",
        "none",
        "required",
        "auto",
    ]


# -- events ----------------------------------------------------------------------------------------


def test_a_stream_shows_segments_calls_results_and_the_end(runtimes: Runtimes) -> None:
    script = [
        Reply(
            "let me look",
            reasoning="hm, hm",
            tool_calls=[("look", {}), ("look", {})],
            usage=Usage(1, 2, 3),
            chunk_chars=4,
        ),
        Reply("up", usage=Usage(4, 5, 9)),
    ]
    rt = runtimes.open(ScriptedModel(script), tools=[LOOK])
    events = list(rt.stream(topic(rt), "go"))
    assert kinds(events) == [
        ThinkingStart,
        ThinkingDelta,
        ThinkingDelta,
        ThinkingEnd,
        TextStart,
        TextDelta,
        TextDelta,
        TextDelta,
        TextEnd,
        ToolCallsBegin,
        ToolCallsStart,
        ToolResult,
        ToolResult,
        ToolCallsComplete,
        ContextUsage,
        TextStart,
        TextDelta,
        TextEnd,
        ContextUsage,
        Done,
    ]
    deltas = [event.text for event in events if isinstance(event, TextDelta)]
    assert "".join(deltas) == "let me lookup"
    assert "".join(event.text for event in events if isinstance(event, ThinkingDelta)) == "hm, hm"
    [start] = [event for event in events if isinstance(event, ToolCallsStart)]
    results = [event for event in events if isinstance(event, ToolResult)]
    assert [call.id for call in start.calls] == [result.call_id for result in results]
    assert {(result.name, result.output, result.is_error) for result in results} == {("look", "up", False)}
    assert [event.tokens for event in events if isinstance(event, ContextUsage)] == [3, 9]
    result = done(events)
    assert (result.text, result.stop_reason, result.steps) == ("up", "text_response", 2)


def test_reasoning_is_kept_in_the_entry_of_its_answer(runtimes: Runtimes) -> None:
    script = [Reply("one", reasoning="why", tool_calls=[("look", {})]), Reply("two", reasoning="because")]
    rt = runtimes.open(ScriptedModel(script), tools=[LOOK])
    cid = topic(rt)
    rt.send(cid, "go")
    assert [e.reasoning for e in rt.transcript(handle_of(rt, cid))] == ["", "why", "", "because"]


def paired(events: Iterable[Event]) -> bool:
    """Whether deltas are inside a start and an end of their kind, with one segment open at a time."""
    pairs = {TextStart: (TextDelta, TextEnd), ThinkingStart: (ThinkingDelta, ThinkingEnd)}
    inside: tuple[type, type] | None = None
    for event in events:
        if inside is None:
            if isinstance(event, TextDelta | TextEnd | ThinkingDelta | ThinkingEnd):
                return False
            inside = pairs.get(type(event))  # type: ignore[arg-type]
        elif isinstance(event, inside[1]):
            inside = None
        elif not isinstance(event, inside[0]):
            return False
    return inside is None


def test_text_and_thinking_that_alternate_are_segments_one_after_the_other(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    stream = rt.stream(rt.get_or_create("crab", "alice"), "go")
    asked = model.asked()
    asked.say(Chunk("a", reasoning="b"), Chunk("c"), Chunk(reasoning="d"), Chunk("e", finish_reason="stop"))
    asked.end()
    events = list(stream)
    assert paired(events)
    assert done(events).text == "ace"


@pytest.mark.parametrize("said", [Chunk("half a"), Chunk(reasoning="hm")])
@pytest.mark.parametrize("how", ["error", "cut", "cancel"])
def test_a_segment_is_ended_when_its_turn_breaks_off(runtimes: Runtimes, said: Chunk, how: str) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = rt.get_or_create("crab", "alice")
    stream = rt.stream(cid, "go")
    asked = model.asked()
    asked.say(said)
    events = [next(stream), next(stream)]
    if how == "cancel":
        rt.cancel(cid)
    elif how == "cut":
        asked.end()
    else:
        asked.answer(RuntimeError("no"))
    events += stream
    assert done(events).stop_reason == ("cancelled" if how == "cancel" else "error")
    assert paired(events)


def test_tool_results_are_shown_as_they_complete_and_stored_in_call_order(runtimes: Runtimes) -> None:
    slow_may_end = Signal()

    def slow() -> str:
        slow_may_end.wait()
        return "slow"

    def fast() -> str:
        return "fast"

    model = ScriptedModel([Reply(tool_calls=[("slow", {}), ("fast", {})]), "done"])
    rt = runtimes.open(model, tools=[slow, fast])
    cid = topic(rt)
    seen = []
    for event in rt.stream(cid, "go"):
        if isinstance(event, ToolResult):
            seen.append(event.output)
            slow_may_end.set()
    assert seen == ["fast", "slow"]
    assert [c for role, c in texts(rt.transcript(handle_of(rt, cid))) if role == "tool"] == ["slow", "fast"]


def test_context_usage_says_whether_it_was_reported(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel([Reply("a" * 400), Reply("b", usage=Usage(70, 7, 77))]))
    cid = rt.get_or_create("crab", "alice")
    [estimate] = [event for event in rt.stream(cid, "x" * 400) if isinstance(event, ContextUsage)]
    assert not estimate.reported
    assert 190 <= estimate.tokens <= 230
    assert estimate.threshold == 100_000
    [reported] = [event for event in rt.stream(cid, "go") if isinstance(event, ContextUsage)]
    assert (reported.tokens, reported.reported) == (77, True)


def test_a_stream_dropped_midway_leaves_the_turn_and_other_readers_alone(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    stream = rt.stream(cid, "go")
    asked = model.asked()
    with rt.subscribe() as everything:
        asked.say(Chunk("a"))
        assert isinstance(next(stream), TextStart)
        stream.close()  # type: ignore[attr-defined]
        assert Done not in kinds(stream)
        asked.say(Chunk("b", finish_reason="stop"))
        asked.end()
        for _info, event in everything:
            if isinstance(event, Done):
                break
    assert texts(rt.transcript(handle_of(rt, cid))) == [("user", "go"), ("assistant", "ab")]


def test_a_slow_subscriber_is_told_that_it_lagged_and_gets_the_end(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel([Reply("x" * 500, chunk_chars=1)]), limits=Limits(event_buffer=10))
    cid = topic(rt)
    stream = rt.stream(cid, "go")
    until(lambda: rt.list_active()[0].state == "idle")
    events = list(stream)
    [lagged] = [event for event in events if isinstance(event, Lagged)]
    assert lagged.missed + len(events) - 1 == 500 + 4
    assert done(events).text == "x" * 500
    assert len(rt.transcript(handle_of(rt, cid))) == 2


def test_subscribe_shows_the_events_of_all_conversations_with_their_info(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    before = rt.get_or_create("crab", "alice")
    with rt.subscribe() as events:
        rt.send(before, "to alice")
        rt.send(topic(rt, "work", "bob"), "to bob")
        rt.send(before, "to alice again")
        seen: list[tuple[ConversationInfo, Event]] = []
        while sum(isinstance(event, Done) for _, event in seen) < 3:
            seen.append(next(events))
    assert rt.stats().subscribers == 0
    assert paired(event for _, event in seen)
    said: dict[str, str] = {"alice": "", "bob": ""}
    for info, event in seen:
        assert isinstance(info, ConversationInfo)
        if isinstance(event, TextDelta):
            said[info.sender] += event.text
    assert said == {"alice": "to aliceto alice again", "bob": "to bob"}
    assert not any(isinstance(event, Lagged) for _, event in seen)


def test_subscribe_ends_with_the_runtime(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    events = rt.subscribe()
    reader = gevent.spawn(list, events)
    gevent.idle()
    rt.shutdown()
    assert reader.get() == []
    events.close()


# -- tools -----------------------------------------------------------------------------------------


def test_a_tool_that_asks_for_it_gets_the_context_of_its_call(runtimes: Runtimes) -> None:
    seen: list[ToolContext] = []

    def who(call: ToolContext) -> str:
        seen.append(call)
        return "you"

    model = ScriptedModel([Reply(tool_calls=[("who", {})]), "done"])
    rt = runtimes.open(model, tools=[who])
    cid = rt.get_or_create("crab", "alice")
    result = rt.send(cid, "who am I?")
    call_id = model.requests[1].messages[-1]["tool_call_id"]
    assert seen == [ToolContext("crab", "alice", cid, result.turn_id, call_id)]


@pytest.mark.parametrize(
    ("returned", "read"),
    [
        ("text", "text"),
        ({"a": [1, None]}, '{"a": [1, null]}'),
        (7, "7"),
        ([True], "[true]"),
        (None, ""),
        ("é🦀", "é🦀"),
    ],
)
def test_a_tool_returns_text_or_anything_that_json_can_hold(
    runtimes: Runtimes, returned: object, read: str
) -> None:
    model = ScriptedModel([Reply(tool_calls=[("give", {})]), "done"])
    rt = runtimes.open(model, tools=[Tool(lambda: returned, name="give")])
    rt.send(rt.get_or_create("crab", "alice"), "go")
    content = model.requests[1].messages[-1]["content"]
    assert content == read or json.loads(content) == returned


def _raising(error: BaseException) -> Tool:
    def broken() -> None:
        raise error

    return Tool(broken)


@pytest.mark.parametrize(
    "error", [ValueError("no luck"), gevent.Timeout(1), gevent.GreenletExit("gone"), _Unprintable()]
)
def test_a_tool_that_raises_gives_the_model_an_error_to_read(
    runtimes: Runtimes, error: BaseException
) -> None:
    model = ScriptedModel([Reply(tool_calls=[("broken", {})]), "done"])
    rt = runtimes.open(model, tools=[_raising(error)])
    events = list(rt.stream(topic(rt), "go"))
    [result] = [event for event in events if isinstance(event, ToolResult)]
    assert result.is_error
    assert model.requests[1].messages[-1]["content"].startswith("error:")
    assert done(events).text == "done"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("nothing", {}), "no tool 'nothing'"),
        (("add", {"a": 1}), "b"),
        (("add", {"a": 1, "b": "x"}), "b"),
        (("add", {"a": 1, "b": 2, "c": 3}), "c"),
        (ToolCall("id1", "add", "{not json"), "JSON"),
        (ToolCall("id1", "add", "[1, 2]"), "object"),
    ],
)
def test_an_unknown_tool_or_bad_arguments_are_an_error_result(
    runtimes: Runtimes, call: Any, words: str
) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    model = ScriptedModel([Reply(tool_calls=[call]), "done"])
    rt = runtimes.open(model, tools=[add])
    assert rt.send(topic(rt), "go").text == "done"
    read = model.requests[1].messages[-1]["content"]
    assert read.startswith("error:")
    assert words in read


def test_tool_calls_keep_the_arguments_as_the_model_wrote_them(runtimes: Runtimes) -> None:
    model = ScriptedModel([Reply(tool_calls=[ToolCall("id1", "look", "{ }")]), "done"])
    rt = runtimes.open(model, tools=[LOOK])
    cid = topic(rt)
    rt.send(cid, "go")
    assert rt.transcript(handle_of(rt, cid))[1].tool_calls == (ToolCall("id1", "look", "{ }"),)


def test_two_calls_with_one_id_get_ids_of_their_own(runtimes: Runtimes) -> None:
    model = ScriptedModel([Reply(tool_calls=[ToolCall("same", "look"), ToolCall("same", "look")]), "done"])
    rt = runtimes.open(model, tools=[LOOK])
    cid = topic(rt)
    rt.send(cid, "go")
    _, answer, *results, _ = rt.transcript(handle_of(rt, cid))
    ids = [call.id for call in answer.tool_calls]
    assert len(set(ids)) == 2
    assert [entry.tool_call_id for entry in results] == ids


def test_a_tool_may_use_the_runtime_for_other_conversations(runtimes: Runtimes) -> None:
    box: list[Runtime] = []

    def ask_whale(question: str, call: ToolContext) -> str:
        rt = box[0]
        return rt.send(rt.get_or_create("whale", call.sender), question).text

    def script(request: ModelRequest) -> Reply:
        if request.agent == "whale":
            return Reply("42")
        if request.messages[-1]["role"] == "tool":
            return Reply(f"whale says {request.messages[-1]['content']}")
        return Reply(tool_calls=[("ask_whale", {"question": "how many?"})])

    rt = runtimes.open(ScriptedModel(script), agents=[CRAB, WHALE], tools=[ask_whale])
    box.append(rt)
    assert rt.send(topic(rt), "ask the whale").text == "whale says 42"


# -- hooks -----------------------------------------------------------------------------------------


class Recorder:
    """All four hooks, noting what they were given."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def on_build_agent(self, config: AgentConfig) -> None:
        self.seen.append(("build", config.name))

    def before_run(self, agent: str, conversation_id: int, history: tuple[HistoryEntry, ...]) -> None:
        self.seen.append(("run", agent, conversation_id, texts(history)))

    def on_event(self, agent: str, conversation_id: int, event: Event) -> None:
        self.seen.append(("event", agent, conversation_id, type(event).__name__))

    def preprocess(self, agent: str, content: str) -> None:
        self.seen.append(("preprocess", agent, content))


def test_hooks_are_given_what_the_contract_says(runtimes: Runtimes) -> None:
    recorder = Recorder()
    rt = runtimes.open(hooks=[recorder])
    cid = rt.get_or_create("crab", "alice")
    rt.send(cid, "one")
    rt.send(cid, "two")
    until(lambda: [fact[-1] for fact in recorder.seen].count("Done") == 2)
    facts = recorder.seen
    assert facts[0] == ("build", "crab")
    assert [fact for fact in facts if fact[0] == "preprocess"] == [
        ("preprocess", "crab", "one"),
        ("preprocess", "crab", "two"),
    ]
    assert [fact for fact in facts if fact[0] == "run"] == [
        ("run", "crab", cid, []),
        ("run", "crab", cid, [("user", "one"), ("assistant", "one")]),
    ]
    shown = [fact[-1] for fact in facts if fact[:3] == ("event", "crab", cid)]
    assert shown == ["TextStart", "TextDelta", "TextEnd", "ContextUsage", "Done"] * 2


def test_on_build_agent_changes_the_config(runtimes: Runtimes) -> None:
    class Hook:
        def on_build_agent(self, config: AgentConfig) -> AgentConfig:
            return attrs.evolve(config, system_prompt=f"{config.system_prompt} Be brief.")

    model = ScriptedModel()
    rt = runtimes.open(model, hooks=[Hook(), Hook()])
    rt.send(rt.get_or_create("crab", "alice"), "hello")
    assert model.requests[0].messages[0]["content"] == "You are a crab. Be brief. Be brief."


def test_on_build_agent_that_gives_something_else_is_refused(runtimes: Runtimes) -> None:
    class Hook:
        def on_build_agent(self, config: AgentConfig) -> str:
            return config.name

    rt = runtimes.open(hooks=[Hook()], agents=())
    with pytest.raises(InvalidConfig, match="on_build_agent"):
        rt.add_agent(CRAB)
    assert rt.agents() == []


def test_preprocess_changes_what_is_run_and_stored(runtimes: Runtimes) -> None:
    class Hook:
        def preprocess(self, _agent: str, content: str) -> str | None:
            return content.upper() if content.startswith("s") else None

    rt = runtimes.open(hooks=[Hook()])
    cid = topic(rt)
    assert rt.send(cid, "shout").text == "SHOUT"
    assert rt.send(cid, "calm").text == "calm"
    assert [entry.content for entry in rt.transcript(handle_of(rt, cid))] == [
        "SHOUT",
        "SHOUT",
        "calm",
        "calm",
    ]


def test_before_run_entries_are_in_this_runs_context_only(runtimes: Runtimes) -> None:
    class Hook:
        runs = 0

        def before_run(self, *_args: object) -> Iterator[HistoryEntry]:
            self.runs += 1
            yield HistoryEntry("user", f"injected {self.runs}")

    model = ScriptedModel()
    rt = runtimes.open(model, hooks=[Hook()])
    cid = topic(rt)
    for text in ("one", "two"):
        rt.send(cid, text)
    assert [[m["content"] for m in request.messages[1:]] for request in model.requests] == [
        ["injected 1", "one"],
        ["one", "one", "injected 2", "two"],
    ]
    plain = [("user", "one"), ("assistant", "one"), ("user", "two"), ("assistant", "two")]
    assert history_of(rt, cid) == plain
    assert texts(rt.transcript(handle_of(rt, cid))) == plain


@pytest.mark.parametrize("method", ["before_run", "preprocess", "on_event"])
@pytest.mark.parametrize("error", [ValueError("no"), gevent.Timeout(1), BaseException("x"), _Unprintable()])
def test_a_hook_that_fails_harms_nothing(
    runtimes: Runtimes, caplog: pytest.LogCaptureFixture, method: str, error: BaseException
) -> None:
    class Hook:
        pass

    def fail(*_args: object) -> None:
        raise error

    setattr(Hook, method, staticmethod(fail))
    recorder = Recorder()
    rt = runtimes.open(hooks=[Hook(), recorder])
    cid = topic(rt)
    with caplog.at_level(logging.CRITICAL + 1, "palaver.hooks"):
        assert rt.send(cid, "one").text == "one"
        assert rt.send(cid, "two").text == "two"
    assert history_of(rt, cid) == texts(rt.transcript(handle_of(rt, cid)))
    assert {fact[0] for fact in recorder.seen} == {"build", "run", "preprocess", "event"}


@pytest.mark.parametrize("given", [["text"], [None], 7, "text", [HistoryEntry("user", "x"), 5]])
def test_before_run_that_gives_no_entries_is_passed_over(runtimes: Runtimes, given: object) -> None:
    class Hook:
        def before_run(self, *_args: object) -> object:
            return given

    model = ScriptedModel()
    rt = runtimes.open(model, hooks=[Hook()])
    assert rt.send(rt.get_or_create("crab", "alice"), "hello").text == "hello"
    assert len(model.requests[0].messages) == 2


@STORED
def test_a_hook_may_send_the_next_message_when_a_turn_is_done(runtimes: Runtimes, stored: bool) -> None:
    class Hook:
        rt: Runtime

        def on_event(self, _agent: str, conversation_id: int, event: Event) -> None:
            if isinstance(event, Done) and event.result.text == "one":
                self.rt.submit(conversation_id, "two")

    hook = Hook()
    hook.rt = rt = runtimes.open(hooks=[hook])
    cid = opened(rt, stored)
    rt.send(cid, "one")
    until(lambda: len(history_of(rt, cid)) == 4)


# -- guests ----------------------------------------------------------------------------------------


@STORED
def test_a_guest_answers_in_text_only_and_its_entries_carry_its_name(
    runtimes: Runtimes, stored: bool
) -> None:
    model = ScriptedModel(lambda request: f"{request.agent} here")
    rt = runtimes.open(model, agents=[CRAB, WHALE])
    cid = opened(rt, stored)
    rt.send(cid, "one")
    result = rt.send(cid, "two", guest="whale")
    rt.send(cid, "three")
    assert (result.text, result.model, result.conversation_id) == ("whale here", "w", cid)
    own, guest, after = model.requests
    assert own.tools
    assert guest.tools == []
    assert (guest.model, guest.messages[0]["content"]) == ("w", "You are a whale.")
    assert guest.messages[-1] == {"role": "user", "content": "two"}
    shown = [message["content"] for message in after.messages]
    [tagged] = [text for text in shown if "whale here" in text]
    assert tagged.startswith('<from agent="whale">')
    assert tagged.endswith("</from>")
    [message] = [m for m in after.messages if m["content"] == tagged]
    assert message["role"] == "user"
    snapshot = rt.conversation(cid)
    assert snapshot is not None
    assert [entry.agent for entry in snapshot.history] == ["", "", "", "whale", "", ""]
    assert snapshot.history[3].content == "whale here"


def test_a_guest_sees_its_own_earlier_words_untagged(runtimes: Runtimes) -> None:
    model = ScriptedModel(lambda request: f"{request.agent} here")
    rt = runtimes.open(model, agents=[CRAB, WHALE])
    cid = rt.get_or_create("crab", "alice")
    for _ in range(2):
        rt.send(cid, "hello", guest="whale")
    assert {"role": "assistant", "content": "whale here"} in model.requests[1].messages


def test_a_guests_tool_calls_are_not_run(runtimes: Runtimes) -> None:
    ran = []
    model = ScriptedModel([Reply("text", tool_calls=[("mark", {})]), Reply(tool_calls=[("mark", {})])])
    rt = runtimes.open(model, agents=[CRAB, WHALE], tools=[Tool(lambda: ran.append(1), name="mark")])
    cid = topic(rt)
    assert rt.send(cid, "one", guest="whale").text == "text"
    assert rt.send(cid, "two", guest="whale").stop_reason == "no_action"
    assert ran == []
    assert texts(rt.transcript(handle_of(rt, cid))) == [
        ("user", "one"),
        ("assistant", "text"),
        ("user", "two"),
    ]


def test_an_unknown_guest_is_refused_before_anything_is_stored(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    for call in (rt.send, rt.submit, rt.stream):
        with pytest.raises(AgentNotRegistered, match="'eel'"):
            call(cid, "hello", guest="eel")
    assert runtimes.sql(rt, "SELECT count(*) FROM turns") == [(0,)]


def test_a_guests_words_survive_a_restart_with_its_name(runtimes: Runtimes) -> None:
    rt = runtimes.open(agents=[CRAB, WHALE])
    cid = topic(rt)
    rt.send(cid, "hello", guest="whale")
    model = ScriptedModel()
    later = runtimes.reopen(rt, model)
    later.send(topic(later), "next")
    assert any('<from agent="whale">' in m["content"] for m in model.requests[0].messages)


# -- senders ---------------------------------------------------------------------------------------


def test_user_entries_carry_who_said_it(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    rt.send(cid, "one")
    rt.send(cid, "two", sender="bob")
    entries = rt.transcript(handle_of(rt, cid))
    assert [entry.sender for entry in entries if entry.role == "user"] == ["alice", "bob"]


# -- busy policies ---------------------------------------------------------------------------------


@STORED
def test_on_busy_enqueue_runs_in_the_order_of_acceptance(runtimes: Runtimes, stored: bool) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = opened(rt, stored)
    tickets = [rt.submit(cid, f"message {n}") for n in range(5)]
    assert [ticket.state for ticket in tickets] == ["running", *["queued"] * 4]
    for n in range(5):
        asked = model.asked()
        assert asked.request.messages[-1]["content"] == f"message {n}"
        assert model.idle
        asked.answer(f"answer {n}")
        assert tickets[n].result().text == f"answer {n}"
        assert tickets[n].state == "done"
    if stored:
        order = runtimes.sql(rt, "SELECT content FROM turns ORDER BY id")
        assert order == [(f"message {n}",) for n in range(5)]


@STORED
def test_on_busy_reject_is_refused_while_a_turn_runs_and_taken_when_idle(
    runtimes: Runtimes, stored: bool
) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = opened(rt, stored)
    ticket = rt.submit(cid, "one", on_busy="reject")
    asked = model.asked()
    for call in (rt.send, rt.submit, rt.stream):
        with pytest.raises(ConversationBusy, match=f"conversation {cid}"):
            call(cid, "two", on_busy="reject")
    asked.answer()
    ticket.result()
    again = rt.submit(cid, "three", on_busy="reject")
    model.asked().answer()
    again.result()
    assert [c for role, c in history_of(rt, cid) if role == "user"] == ["one", "three"]


@STORED
def test_on_busy_interrupt_cancels_the_running_turn_and_runs_next(runtimes: Runtimes, stored: bool) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = opened(rt, stored)
    running, queued = rt.submit(cid, "one"), rt.submit(cid, "two")
    asked = model.asked()
    urgent = rt.submit(cid, "urgent", on_busy="interrupt")
    next_asked = model.asked()
    assert asked.closed.is_set()
    assert running.result().stop_reason == "cancelled"
    assert next_asked.request.messages[-1]["content"] == "urgent"
    next_asked.answer("at once")
    model.asked().answer("at last")
    assert (urgent.result().text, queued.result().text) == ("at once", "at last")


@STORED
def test_on_busy_interrupt_waits_for_the_clean_up_of_the_turn_before(
    runtimes: Runtimes, stored: bool
) -> None:
    cleaning, clean = Signal(), Signal()

    def hold() -> str:
        try:
            Signal().wait()
        finally:
            cleaning.set()
            clean.wait()
        return "never"

    model = ScriptedModel([Reply(tool_calls=[("hold", {})]), "urgent done"])
    rt = runtimes.open(model, tools=[hold])
    cid = opened(rt, stored)
    events = rt.stream(cid, "one")
    until(lambda: isinstance(next(events), ToolCallsStart))
    urgent = rt.submit(cid, "urgent", on_busy="interrupt")
    cleaning.wait()
    assert len(model.requests) == 1
    clean.set()
    assert urgent.result().text == "urgent done"
    assert done(list(events)).stop_reason == "cancelled"


@STORED
def test_on_busy_steer_steers_a_running_turn_and_runs_when_idle(runtimes: Runtimes, stored: bool) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, tools=[LOOK])
    cid = opened(rt, stored)
    turn = rt.submit(cid, "one", on_busy="steer")
    asked = model.asked()
    steer = rt.submit(cid, "left", on_busy="steer")
    asked.answer(Reply(tool_calls=[("look", {})]))
    model.asked().answer("left it is")
    assert turn.result() == steer.result()
    assert [c for role, c in history_of(rt, cid) if role == "user"] == ["one", "left"]


def test_an_unknown_busy_policy_is_refused_with_the_known_ones(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    with pytest.raises(InvalidInput, match=r"enqueue, reject, interrupt, steer.*'wait'"):
        rt.send(rt.get_or_create("crab", "alice"), "x", on_busy="wait")  # type: ignore[arg-type]


# -- idempotency keys ------------------------------------------------------------------------------


@STORED
def test_the_same_key_and_content_give_the_first_result_and_one_effect(
    runtimes: Runtimes, stored: bool
) -> None:
    rt = runtimes.open(ScriptedModel(["first", "second"]))
    cid = opened(rt, stored)
    first = rt.send(cid, "pay", key="k")
    assert rt.send(cid, "pay", key="k") == first
    assert rt.submit(cid, "pay", key="k").result() == first
    events = list(rt.stream(cid, "pay", key="k"))
    assert done(events) == first
    assert history_of(rt, cid) == [("user", "pay"), ("assistant", "first")]
    assert rt.send(cid, "pay", key="other").text == "second"


@STORED
def test_the_same_key_while_its_turn_runs_waits_for_that_turn(runtimes: Runtimes, stored: bool) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = opened(rt, stored)
    retries = [gevent.spawn(rt.send, cid, "pay", key="k") for _ in range(20)]
    asked = model.asked()
    retries += [gevent.spawn(rt.send, cid, "pay", key="k") for _ in range(20)]
    asked.answer("paid")
    gevent.joinall(retries, raise_error=True)
    assert {retry.value.text for retry in retries} == {"paid"}
    assert len({retry.value.turn_id for retry in retries}) == 1
    assert len(model.requests) == 1


@STORED
def test_the_same_key_with_other_content_is_refused(runtimes: Runtimes, stored: bool) -> None:
    rt = runtimes.open()
    cid = opened(rt, stored)
    rt.send(cid, "pay 5", key="k")
    for call in (rt.send, rt.submit, rt.stream):
        with pytest.raises(KeyReused, match="'k'"):
            call(cid, "pay 6", key="k")
    assert len(history_of(rt, cid)) == 2


def test_a_key_holds_across_the_topics_of_a_sender_but_not_across_senders(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    one, two = topic(rt, "one"), topic(rt, "two")
    first = rt.send(one, "pay", key="k")
    assert rt.send(two, "pay", key="k") == first
    assert history_of(rt, two) == []
    with pytest.raises(KeyReused):
        rt.send(two, "pay more", key="k")
    assert rt.send(topic(rt, "one", "bob"), "pay", key="k").turn_id != first.turn_id


def test_a_key_holds_across_a_restart_and_the_stored_result_comes_back(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel([Reply("paid", usage=Usage(1, 2, 3))]))
    first = rt.send(topic(rt), "pay", key="k")
    model = ScriptedModel()
    later = runtimes.reopen(rt, model)
    again = later.send(topic(later), "pay", key="k")
    assert again == first
    assert (again.text, again.usage) == ("paid", Usage(1, 2, 3))
    assert model.requests == []
    with pytest.raises(KeyReused):
        later.send(topic(later), "pay more", key="k")


def test_a_key_of_a_message_that_was_refused_is_free_again(runtimes: Runtimes) -> None:
    for stored in (False, True):
        model = PuppetModel()
        rt = runtimes.open(model, limits=Limits(queued_per_conversation=1))
        cid = opened(rt, stored)
        tickets = [rt.submit(cid, "one"), rt.submit(cid, "two")]
        with pytest.raises(MailboxFull):
            rt.submit(cid, "pay", key="k")
        with pytest.raises(ConversationBusy):
            rt.submit(cid, "pay", key="k", on_busy="reject")
        for ticket in tickets:
            model.asked().answer()
            ticket.result()
        paid = rt.submit(cid, "pay", key="k")
        model.asked().answer("paid")
        assert paid.result().text == "paid"


# -- tickets ---------------------------------------------------------------------------------------


@STORED
def test_a_ticket_goes_through_its_states(runtimes: Runtimes, stored: bool) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = opened(rt, stored)
    first, second, third = (rt.submit(cid, text) for text in ("one", "two", "three"))
    asked = model.asked()
    assert (first.state, second.state, first.done) == ("running", "queued", False)
    asked.answer()
    first.result()
    assert (first.state, first.done) == ("done", True)
    model.asked().answer(RuntimeError("no"))
    assert second.result().stop_reason == "error"
    assert second.state == "failed"
    model.asked()
    rt.cancel(cid)
    assert third.state == "cancelled"
    assert first.turn_id < second.turn_id < third.turn_id
    if stored:
        assert runtimes.sql(rt, "SELECT id, state FROM turns ORDER BY id") == [
            (ticket.turn_id, ticket.state) for ticket in (first, second, third)
        ]


@STORED
def test_a_timeout_ends_the_wait_and_not_the_turn(runtimes: Runtimes, stored: bool) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = opened(rt, stored)
    ticket = rt.submit(cid, "go")
    asked = model.asked()
    with pytest.raises(ResultTimeout, match="goes on"):
        ticket.result(timeout=0)
    with pytest.raises(ResultTimeout):
        rt.send(cid, "next", timeout=0)
    assert isinstance(ResultTimeout("x"), TimeoutError)
    asked.answer("late")
    assert ticket.result(timeout=None).text == "late"
    model.asked().answer("later")
    until(lambda: history_of(rt, cid)[-1:] == [("assistant", "later")])


@STORED
def test_ticket_cancel_ends_a_running_turn(runtimes: Runtimes, stored: bool) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = opened(rt, stored)
    ticket, other = rt.submit(cid, "one"), rt.submit(cid, "two")
    asked = model.asked()
    assert ticket.cancel() is True
    assert asked.closed.is_set()
    assert (ticket.state, ticket.result().stop_reason) == ("cancelled", "cancelled")
    assert ticket.cancel() is False
    model.asked().answer()
    assert other.result().stop_reason == "text_response"
    assert other.cancel() is False


@STORED
def test_ticket_cancel_ends_a_queued_turn_and_leaves_the_others(runtimes: Runtimes, stored: bool) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = opened(rt, stored)
    first, second, third = (rt.submit(cid, text) for text in ("one", "two", "three"))
    asked = model.asked()
    assert second.cancel() is True
    assert second.result() == TurnResult("", "cancelled", conversation_id=cid, turn_id=second.turn_id)
    asked.answer()
    assert model.asked().request.messages[-1]["content"] == "three"
    assert first.result().stop_reason == "text_response"
    assert third.state == "running"
    if stored:
        assert runtimes.sql(rt, "SELECT state FROM turns ORDER BY id") == [
            ("done",),
            ("cancelled",),
            ("running",),
        ]


@STORED
def test_ticket_cancel_takes_back_a_steer_that_waits(runtimes: Runtimes, stored: bool) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, tools=[LOOK])
    cid = opened(rt, stored)
    turn = rt.submit(cid, "go")
    asked = model.asked()
    steer = rt.steer(cid, "left")
    assert steer.cancel() is True
    assert steer.result().stop_reason == "cancelled"
    asked.answer(Reply(tool_calls=[("look", {})]))
    model.asked().answer("straight on")
    assert turn.result().text == "straight on"
    assert ("user", "left") not in history_of(rt, cid)


@STORED
def test_a_cancelled_turn_keeps_its_completed_steps_and_a_valid_history(
    runtimes: Runtimes, stored: bool
) -> None:
    began = Signal()

    def hang() -> None:
        began.set()
        Signal().wait()

    script = [
        Reply("first", tool_calls=[("look", {})]),
        Reply("then", tool_calls=[("look", {}), ("hang", {})]),
        "fine",
    ]
    model = ScriptedModel(script)
    rt = runtimes.open(model, tools=[LOOK, hang])
    cid = opened(rt, stored)
    ticket = rt.submit(cid, "go")
    began.wait()
    assert rt.cancel(cid) is True
    result = ticket.result()
    assert (result.stop_reason, result.steps) == ("cancelled", 2)
    history = history_of(rt, cid)
    assert history[:5] == [
        ("user", "go"),
        ("assistant", "first"),
        ("tool", "up"),
        ("assistant", "then"),
        ("tool", "up"),
    ]
    assert history[5][0] == "tool"
    assert "interrupted" in history[5][1]
    if stored:
        assert texts(rt.transcript(handle_of(rt, cid))) == history
    assert rt.send(cid, "again").text == "fine"
    asked_for = [c["id"] for m in model.requests[-1].messages for c in m.get("tool_calls", ())]
    answered = [m["tool_call_id"] for m in model.requests[-1].messages if m["role"] == "tool"]
    assert asked_for == answered


def test_ticket_events_begin_now_and_end_with_done(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, tools=[LOOK])
    cid = topic(rt)
    running, queued = rt.submit(cid, "one"), rt.submit(cid, "two")
    of_queued = queued.events()
    asked = model.asked()
    asked.say(Chunk("be"))
    until(asked.pieces.empty)
    gevent.idle()
    of_running = running.events()
    asked.say(Chunk("fore"))
    asked.say(Chunk(tool_calls=[ToolCallDelta(0, "c1", "look", "{}")], finish_reason="tool_calls"))
    asked.end()
    model.asked().answer("whole")
    model.asked().answer("second")
    events = list(of_running)
    assert paired(events)
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["whole"]
    assert done(events) == running.result()
    later = list(of_queued)
    assert kinds(later) == [TextStart, TextDelta, TextEnd, ContextUsage, Done]
    assert done(later).text == "second"
    assert kinds(running.events()) == [Done]


# -- looking and counting --------------------------------------------------------------------------


def test_stats_count_what_there_is(runtimes: Runtimes) -> None:
    clock = ManualClock()
    model = PuppetModel()
    rt = runtimes.open(model, sources=palaver_sources(clock))
    idle, busy = rt.get_or_create("crab", "idle"), topic(rt, "work", "busy")
    rt.submit(busy, "one")
    asked = model.asked()
    rt.submit(busy, "two")
    clock.now += 5
    rt.submit(busy, "three")
    clock.now += 2
    stats = rt.stats()
    assert stats.conversations == {"opening": 0, "idle": 1, "running": 1, "closing": 0, "parked": 0}
    assert (stats.running, stats.queued, stats.oldest_waiting_s) == (1, 2, 7.0)
    assert (stats.subscribers, stats.restarts, stats.closing_down) == (0, 0, False)
    assert stats.commits > 0
    assert stats.database_failed is None
    asked.answer()
    rt.close(busy, mode="now")
    rt.close(idle)
    after = rt.stats()
    assert sum(after.conversations.values()) == after.running == after.queued == 0
    assert after.oldest_waiting_s is None


def palaver_sources(clock: ManualClock) -> Any:
    from persistence.sources import Sources

    return Sources(clock=clock)


# -- memory of a conversation: compaction and titles -----------------------------------------------


@STORED
def test_automatic_compaction_in_the_middle_of_a_turn(runtimes: Runtimes, stored: bool) -> None:
    script = [Reply("one", tool_calls=[("look", {})], usage=Usage(900, 100, 1_000)), Reply("two")]
    model = ScriptedModel(script, summaries=["in short"])
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, compact_threshold=500)], tools=[LOOK])
    cid = opened(rt, stored)
    events = list(rt.stream(cid, "go"))
    [compacted] = [event for event in events if isinstance(event, Compacted)]
    assert compacted == Compacted("in short", "work-1" if stored else None)
    assert [request.purpose for request in model.requests] == ["turn", "compact", "turn"]
    assert [m["content"] for m in model.requests[2].messages] == ["You are a crab.", "in short"]
    assert history_of(rt, cid) == [("user", "in short"), ("assistant", "two")]


def test_automatic_compaction_uses_an_estimate_where_nothing_is_reported(runtimes: Runtimes) -> None:
    model = ScriptedModel(["ok", "x" * 4_000, "ok"], summaries=["in short"])
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, compact_threshold=500)])
    cid = topic(rt)
    rt.send(cid, "small")
    assert len(history_of(rt, cid)) == 2
    rt.send(cid, "large")
    assert history_of(rt, cid) == [("user", "in short")]


def test_no_threshold_is_never(runtimes: Runtimes) -> None:
    script = [Reply("ok", usage=Usage(10**9, 1, 10**9 + 1))]
    rt = runtimes.open(ScriptedModel(script), agents=[attrs.evolve(CRAB, compact_threshold=None)])
    cid = topic(rt)
    rt.send(cid, "go")
    assert len(history_of(rt, cid)) == 2


@STORED
def test_a_failed_summary_leaves_history_and_three_in_a_row_pause(
    runtimes: Runtimes, stored: bool, caplog: pytest.LogCaptureFixture
) -> None:
    summaries = [RuntimeError("no summary"), Reply(""), Reply("cut", finish_reason=None)]
    model = ScriptedModel(
        lambda _request: Reply("ok", usage=Usage(900, 100, 1_000)), summaries=[*summaries, "by hand", "again"]
    )
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, compact_threshold=500)])
    cid = opened(rt, stored)
    skipped: list[CompactionSkipped] = []
    for _ in range(5):
        events = list(rt.stream(cid, "go"))
        assert done(events).text == "ok"
        skipped += [event for event in events if isinstance(event, CompactionSkipped)]
    assert [event.paused for event in skipped] == [False, False, True]
    assert "no summary" in skipped[0].error
    assert "paused" in caplog.text
    assert len(history_of(rt, cid)) == 10
    assert [request.purpose for request in model.requests].count("compact") == 3
    assert rt.compact(cid).summary == "by hand"  # a requested one is still tried, and ends the pause
    rt.send(cid, "go")
    assert history_of(rt, cid) == [("user", "again")]


@STORED
def test_a_requested_compaction_that_fails_changes_nothing(runtimes: Runtimes, stored: bool) -> None:
    rt = runtimes.open(ScriptedModel(summaries=[RuntimeError("no summary"), "", "in short"]))
    cid = opened(rt, stored)
    rt.send(cid, "go")
    for _ in range(2):
        with pytest.raises(CompactionFailed):
            rt.compact(cid)
        assert history_of(rt, cid) == [("user", "go"), ("assistant", "go")]
    assert rt.compact(cid).summary == "in short"


def test_summarize_that_fails_says_so(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel(summaries=[RuntimeError("no summary")]))
    cid = rt.get_or_create("crab", "alice")
    rt.send(cid, "go")
    with pytest.raises(CompactionFailed, match="no summary"):
        rt.summarize(cid)


def test_a_requested_compaction_comes_after_what_was_accepted_before(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    tickets = [rt.submit(cid, "one"), rt.submit(cid, "two")]
    compacting = gevent.spawn(rt.compact, cid)
    gevent.idle()
    later = rt.submit(cid, "three")
    for _ in tickets:
        model.asked().answer()
    compacting.get()
    asked = model.asked()
    assert [m["role"] for m in asked.request.messages] == ["system", "user", "user"]
    asked.answer()
    later.result()
    assert len(history_of(rt, cid)) == 3


def test_a_result_comes_while_the_title_model_is_still_asked(runtimes: Runtimes) -> None:
    model = PuppetModel(purposes=("title",))
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, auto_title=True)])
    cid = topic(rt)
    assert rt.send(cid, "hello there crab").text == "hello there crab"
    asked = model.asked()
    assert rt.send(cid, "next").text == "next"
    assert rt.list_active()[0].title == ""
    asked.answer("«Greetings»")
    until(lambda: rt.list_active()[0].title)
    assert rt.list_active()[0].title == "Greetings"
    assert rt.sessions()[0].title == "Greetings"
    assert [request.purpose for request in model.requests].count("title") == 1


def test_a_title_is_never_overwritten(runtimes: Runtimes) -> None:
    model = ScriptedModel(titles=["The first", "The second"])
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, auto_title=True)])
    cid = topic(rt)
    rt.send(cid, "one")
    until(lambda: rt.list_active()[0].title)
    rt.send(cid, "two")
    later = runtimes.reopen(rt, model, agents=[attrs.evolve(CRAB, auto_title=True)])
    cid = topic(later)
    later.send(cid, "three")
    gevent.idle()
    assert later.list_active()[0].title == "The first"
    assert [request.purpose for request in model.requests].count("title") == 1


@pytest.mark.parametrize("failure", [RuntimeError("no"), gevent.Timeout(1), "", '""'])
def test_a_title_that_fails_is_silent_and_tried_again(runtimes: Runtimes, failure: Any) -> None:
    model = ScriptedModel(titles=[failure, "A title at last"])
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, auto_title=True)])
    cid = topic(rt)
    assert rt.send(cid, "one").text == "one"
    until(lambda: [request.purpose for request in model.requests].count("title") == 1)
    gevent.idle()
    assert rt.send(cid, "two").text == "two"
    until(lambda: rt.list_active()[0].title)
    assert rt.list_active()[0].title == "A title at last"


@pytest.mark.parametrize("change", [{"auto_title": False}, {"auto_title": True, "model": ""}])
def test_no_title_is_asked_for_without_auto_title_or_a_model(
    runtimes: Runtimes, change: dict[str, Any]
) -> None:
    model = ScriptedModel()
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, **change)])
    rt.send(topic(rt), "one")
    gevent.idle()
    assert {request.purpose for request in model.requests} == {"turn"}


def test_no_title_is_asked_for_without_an_answer(runtimes: Runtimes) -> None:
    model = ScriptedModel([RuntimeError("no"), Reply(""), "yes"])
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, auto_title=True)])
    cid = topic(rt)
    for _ in range(2):
        rt.send(cid, "hello")
        gevent.idle()
        assert "title" not in {request.purpose for request in model.requests}
    rt.send(cid, "hello")
    until(lambda: rt.list_active()[0].title)


# -- stored sessions -------------------------------------------------------------------------------


def test_a_live_topic_is_found_by_its_title(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    work = rt.switch_topic("crab", "alice", "work", "d").conversation_id
    play = rt.switch_topic("crab", "alice", "play", "d").conversation_id
    assert rt.conversation_id("crab", "alice") == play
    assert rt.conversation_id("crab", "alice", topic="work") == work
    for agent, sender, title in ("crab", "alice", "rest"), ("crab", "bob", "work"), ("fish", "alice", "work"):
        assert rt.conversation_id(agent, sender, topic=title) is None
    rt.close(work)
    assert rt.conversation_id("crab", "alice", topic="work") is None
    assert rt.conversation_id("crab", "alice", topic="play") == play


def test_resume_after_a_reopening_goes_on_in_the_same_context(runtimes: Runtimes) -> None:
    rt = runtimes.open(tools=[LOOK], model=ScriptedModel([Reply(tool_calls=[("look", {})]), "up it is"]))
    cid = topic(rt)
    rt.send(cid, "go")
    before = rt.conversation(cid)
    model = ScriptedModel()
    later = runtimes.reopen(rt, model)
    again = topic(later)
    after = later.conversation(again)
    assert before is not None
    assert after is not None
    assert after.history == before.history
    later.send(again, "next")
    assert [m["role"] for m in model.requests[0].messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]


def test_a_transcript_is_whole_after_any_number_of_compactions(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    for n in range(4):
        rt.send(cid, f"message {n}")
        rt.compact(cid)
    whole = [pair for n in range(4) for pair in (("user", f"message {n}"), ("assistant", f"message {n}"))]
    assert texts(rt.transcript(handle_of(rt, cid))) == whole
    later = runtimes.reopen(rt)
    assert texts(later.transcript(later.sessions()[0].handle)) == whole


def test_sessions_are_filtered_newest_first(runtimes: Runtimes) -> None:
    clock = ManualClock()
    rt = runtimes.open(agents=[CRAB, WHALE], sources=palaver_sources(clock))
    for agent, sender, title in (
        ("crab", "alice", "one"),
        ("crab", "bob", "one"),
        ("whale", "alice", "two"),
    ):
        clock.now += 1
        topic(rt, title, sender, agent)
    clock.now += 1
    rt.send(rt.conversations()[0], "hello")

    def found(**filters: str) -> list[tuple[str, str, str]]:
        return [(s.agent, s.sender, s.topic) for s in rt.sessions(**filters)]

    assert found() == [("crab", "alice", "one"), ("whale", "alice", "two"), ("crab", "bob", "one")]
    assert found(sender="alice") == [("crab", "alice", "one"), ("whale", "alice", "two")]
    assert found(agent="crab", topic="one") == [("crab", "alice", "one"), ("crab", "bob", "one")]
    assert found(agent="eel") == []
    assert rt.sessions()[0].updated_at > rt.sessions()[0].created_at


def test_transcript_of_an_unknown_session_is_an_error(runtimes: Runtimes) -> None:
    with pytest.raises(SessionNotFound, match="nothing-here"):
        runtimes.open().transcript("nothing-here")


def test_delete_session_of_a_live_one_closes_it_first(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    handle = handle_of(rt, cid)
    ticket = rt.submit(cid, "go")
    model.asked()
    assert rt.delete_session(handle) is True
    assert ticket.result().stop_reason == "cancelled"
    assert rt.conversations() == []
    assert rt.sessions() == []
    with pytest.raises(SessionNotFound):
        rt.load(handle)
    assert rt.delete_session(handle) is False


def test_delete_session_of_a_stored_one_keeps_its_archives(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    rt.send(cid, "hello")
    rt.compact(cid)
    handle = handle_of(rt, cid)
    rt.close(cid)
    assert rt.delete_session(handle) is True
    assert [entry.name for entry in rt.memory.entries("crab", "alice", "archive")] == ["work-1"]
    new = rt.switch_topic("crab", "alice", "work", "anew")
    assert not new.resumed
    rt.send(new.conversation_id, "hello")
    assert rt.compact(new.conversation_id).archive == "work-2"


# -- transfer --------------------------------------------------------------------------------------


def test_transfer_to_a_runtime_whose_ids_would_collide(runtimes: Runtimes) -> None:
    old, new = runtimes.open(), runtimes.open()
    cid = topic(old)
    for n in range(5):
        old.send(cid, f"old {n}", key=f"key {n}")
    new.close(topic(new, "other"))
    old.transfer_to(new)
    for n in range(10):
        assert new.send(cid, f"new {n}").text == f"new {n}"
    assert new.send(cid, "old 3", key="key 3").text == "old 3"
    assert len(new.transcript(handle_of(new, cid))) == 30
    ids = runtimes.sql(new, "SELECT id FROM turns")
    assert len(set(ids)) == 15


def test_transfer_to_takes_queued_turns_steers_and_their_tickets(runtimes: Runtimes) -> None:
    model = PuppetModel()
    old, new = runtimes.open(model), runtimes.open(model)
    tmp, work = old.get_or_create("crab", "alice"), topic(old)
    tickets: list[Ticket] = []
    for cid in (tmp, work):
        tickets += [old.submit(cid, "running"), old.submit(cid, "queued")]
        tickets.append(old.steer(cid, "steer"))
    asked = [model.asked(), model.asked()]
    moving = gevent.spawn(old.transfer_to, new)
    gevent.idle()
    for one in asked:
        one.answer("done in the old one")
    assert moving.get() == 2
    for _ in range(4):
        model.asked().answer("done in the new one")
    said = ["done in the old one", "done in the new one", "done in the new one"]
    assert [ticket.result().text for ticket in tickets] == said * 2
    assert [c for role, c in history_of(new, work) if role == "user"] == ["running", "steer", "queued"]
    assert runtimes.sql(new, "SELECT count(*) FROM turns WHERE state <> 'done'") == [(0,)]
    stats = old.stats()
    assert (stats.running, stats.queued) == (0, 0)


def test_transfer_to_a_runtime_that_lacks_an_agent_moves_nothing(runtimes: Runtimes) -> None:
    old, new = runtimes.open(), runtimes.open(agents=())
    cid = topic(old)
    with pytest.raises(AgentNotRegistered):
        old.transfer_to(new)
    assert old.send(cid, "still here").text == "still here"
    assert new.conversations() == []
    assert topic(old, "another") == cid + 1


def test_transfer_to_itself_or_to_something_else_is_refused(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    for other in (rt, None, "agents.db"):
        with pytest.raises(InvalidInput):
            rt.transfer_to(other)  # type: ignore[arg-type]


def test_the_source_of_a_transfer_can_still_be_used(runtimes: Runtimes) -> None:
    old, new = runtimes.open(), runtimes.open()
    cid = old.get_or_create("crab", "alice")
    old.transfer_to(new)
    with pytest.raises(ConversationNotFound):
        old.send(cid, "hello")
    again = old.get_or_create("crab", "alice")
    assert again > cid
    assert old.send(again, "hello").text == "hello"


# -- threads and processes -------------------------------------------------------------------------


def test_from_thread_is_the_way_in_from_a_native_thread(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)

    def in_another_thread() -> str:
        future = rt.from_thread(rt.send, cid, "from afar", sender="bob")
        assert isinstance(future, concurrent.futures.Future)
        return future.result(timeout=10).text

    assert in_thread(in_another_thread) == "from afar"
    assert rt.transcript(handle_of(rt, cid))[0].sender == "bob"


def test_from_thread_carries_errors_over(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    future = in_thread(lambda: rt.from_thread(rt.send, 99, "hello"))
    error = in_thread(lambda: future.exception(timeout=10))
    assert isinstance(error, ConversationNotFound)


_CALLS: list[Callable[[Runtime, int], object]] = [
    lambda rt, _cid: rt.add_agent(WHALE),
    lambda rt, _cid: rt.upsert_agent(WHALE),
    lambda rt, _cid: rt.remove_agent("crab"),
    lambda rt, _cid: rt.agent("crab"),
    lambda rt, _cid: rt.agents(),
    lambda rt, _cid: rt.add_ephemeral(WHALE),
    lambda rt, _cid: rt.remove_ephemeral("crab"),
    lambda rt, _cid: rt.get_or_create("crab", "alice"),
    lambda rt, _cid: rt.switch_topic("crab", "alice", "work"),
    lambda rt, _cid: rt.load("x"),
    lambda rt, cid: rt.send(cid, "hello"),
    lambda rt, cid: rt.submit(cid, "hello"),
    lambda rt, cid: rt.stream(cid, "hello"),
    lambda rt, cid: rt.steer(cid, "hello"),
    lambda rt, cid: rt.cancel(cid),
    lambda rt, cid: rt.summarize(cid),
    lambda rt, cid: rt.compact(cid),
    lambda rt, cid: rt.close(cid),
    lambda rt, _cid: rt.list_active(),
    lambda rt, cid: rt.conversation(cid),
    lambda rt, _cid: rt.conversations(),
    lambda rt, _cid: rt.conversation_count(),
    lambda rt, _cid: rt.conversation_id("crab", "alice"),
    lambda rt, _cid: rt.transfer_to(rt),
    lambda rt, _cid: rt.sessions(),
    lambda rt, _cid: rt.transcript("x"),
    lambda rt, _cid: rt.delete_session("x"),
    lambda rt, _cid: rt.memory.remember("crab", "alice", "n", "c"),
    lambda rt, _cid: rt.memory.recall("crab", "alice", "q"),
    lambda rt, _cid: rt.memory.forget("crab", "alice", "n"),
    lambda rt, _cid: rt.memory.entries("crab", "alice"),
    lambda rt, _cid: rt.memory.search_topics("crab", "alice", "q"),
    lambda rt, _cid: rt.subscribe(),
    lambda rt, _cid: rt.stats(),
    lambda rt, _cid: rt.shutdown(),
]


def test_every_call_from_another_thread_is_refused_by_name(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)

    def refused(call: Callable[[Runtime, int], object]) -> str:
        try:
            call(rt, cid)
        except WrongThread as error:
            return str(error)
        return "taken"

    said = [in_thread(refused, call) for call in _CALLS]
    assert ["from_thread" in words for words in said] == [True] * len(_CALLS), said
    assert rt.send(cid, "unharmed").text == "unharmed"


_FORKED = """
from gevent import monkey
monkey.patch_all()
import os, sys
from palaver import AgentConfig, Runtime, ScriptedModel, WrongThread

rt = Runtime.open(sys.argv[1], ScriptedModel())
rt.add_agent(AgentConfig(name="crab"))
cid = rt.switch_topic("crab", "alice", "work", "d").conversation_id
rt.send(cid, "before")
# gevent's own waitpid may miss a child that ends at once
fork, wait = monkey.get_original("os", ["fork", "waitpid"])
pid = fork()
if pid == 0:
    refused = 0
    for call in (lambda: rt.send(cid, "in the child"), rt.list_active, rt.shutdown,
                 lambda: rt.from_thread(rt.list_active), lambda: rt.memory.recall("crab", "alice", "x")):
        try:
            call()
        except WrongThread as error:
            refused += "forked" in str(error)
    os._exit(refused)
_, status = wait(pid, 0)
print("refused", os.waitstatus_to_exitcode(status))
print(rt.send(cid, "after").text)
rt.shutdown()
"""


def test_a_forked_child_is_refused_and_the_parent_goes_on(tmp_path: Any) -> None:
    ran = run_script(_FORKED, tmp_path / "agents.db")
    assert ran.stdout.split() == ["refused", "5", "after"], ran.stderr


# -- shutdown --------------------------------------------------------------------------------------


def test_shutdown_drains_what_was_accepted(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    tmp, work = rt.get_or_create("crab", "alice"), topic(rt)
    tickets = [rt.submit(cid, text) for cid in (tmp, work) for text in ("one", "two")]
    ending = gevent.spawn(rt.shutdown)
    until(lambda: rt.stats().closing_down)
    for call in (rt.send, rt.submit, rt.stream, rt.steer):
        with pytest.raises(RuntimeClosed):
            call(work, "too late")
    for _ in tickets:
        model.asked().answer("done")
    ending.get()
    assert [ticket.result().text for ticket in tickets] == ["done"] * 4
    later = runtimes.open(path=rt.path)
    assert len(history_of(later, topic(later))) == 4


def test_shutdown_without_a_drain_cancels_and_keeps_queued_topic_turns_in_the_journal(
    runtimes: Runtimes,
) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    tmp, work = rt.get_or_create("crab", "alice"), topic(rt)
    tickets = [rt.submit(cid, text) for cid in (tmp, work) for text in ("one", "two")]
    asked = [model.asked(), model.asked()]
    rt.shutdown(drain=0)
    assert all(one.closed.is_set() for one in asked)
    assert [tickets[n].result().stop_reason for n in (0, 1, 2)] == ["cancelled", "closed", "cancelled"]
    with pytest.raises(RuntimeClosed):
        tickets[3].result()
    with sqlite3.connect(rt.path) as conn:
        turns = conn.execute("SELECT content, state FROM turns ORDER BY id").fetchall()
    conn.close()
    assert turns == [("one", "cancelled"), ("two", "queued")]


def test_a_message_that_is_stored_while_the_runtime_suspends_waits_and_counts_no_attempt(
    runtimes: Runtimes,
) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    with runtimes.held_database(rt):
        submitting = gevent.spawn(rt.submit, cid, "one", key="k")
        gevent.sleep(0)
        stopping = gevent.spawn(rt.shutdown, 0)
        for _ in range(50):
            gevent.sleep(0)
    ticket = submitting.get()
    stopping.get()
    with pytest.raises(RuntimeClosed):
        ticket.result()
    with sqlite3.connect(rt.path) as conn:
        turns = conn.execute("SELECT content, state, attempts FROM turns").fetchall()
    conn.close()
    assert turns == [("one", "queued", 0)]


def test_shutdown_a_second_time_waits_for_the_first_and_changes_nothing(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    ticket = rt.submit(topic(rt), "one")
    asked = model.asked()
    first = gevent.spawn(rt.shutdown)
    until(lambda: rt.stats().closing_down)
    second = gevent.spawn(rt.shutdown)
    gevent.idle()
    assert not second.ready()
    asked.answer("done")
    gevent.joinall([first, second], raise_error=True)
    rt.shutdown()
    rt.shutdown(drain=0)
    assert ticket.result().text == "done"


def test_every_call_that_starts_something_is_refused_after_shutdown(runtimes: Runtimes) -> None:
    rt, other = runtimes.open(), runtimes.open()
    cid = topic(rt)
    handle = handle_of(rt, cid)
    rt.shutdown()
    calls: list[Callable[[], object]] = [
        lambda: rt.add_agent(WHALE),
        lambda: rt.upsert_agent(WHALE),
        lambda: rt.remove_agent("crab"),
        lambda: rt.get_or_create("crab", "alice"),
        lambda: rt.switch_topic("crab", "alice", "work", "d"),
        lambda: rt.load(handle),
        lambda: rt.send(cid, "x"),
        lambda: rt.submit(cid, "x"),
        lambda: rt.stream(cid, "x"),
        lambda: rt.steer(cid, "x"),
        lambda: rt.cancel(cid),
        lambda: rt.summarize(cid),
        lambda: rt.compact(cid),
        lambda: rt.close(cid),
        rt.sessions,
        lambda: rt.transcript(handle),
        lambda: rt.delete_session(handle),
        lambda: rt.memory.remember("crab", "alice", "n", "c"),
        lambda: rt.memory.recall("crab", "alice", "q"),
        rt.subscribe,
        lambda: rt.transfer_to(other),
        lambda: other.transfer_to(rt),
    ]
    for call in calls:
        with pytest.raises(RuntimeClosed):
            call()


def test_a_file_can_be_opened_again_as_soon_as_shutdown_has_returned(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    for _ in range(3):
        rt.send(topic(rt), "hello")
        rt = runtimes.reopen(rt)
    assert len(rt.transcript(rt.sessions()[0].handle)) == 6


def test_transfer_to_and_back_again(runtimes: Runtimes, tmp_path: Path) -> None:
    first = runtimes.open(path=tmp_path / "first.db")
    cid = first.switch_topic("crab", "alice", "there and back", "about it").conversation_id
    assert first.send(cid, "one").stop_reason == "text_response"
    second = runtimes.open(path=tmp_path / "second.db")
    assert first.transfer_to(second) == 1
    assert second.send(cid, "two").stop_reason == "text_response"
    assert second.transfer_to(first) == 1
    assert first.send(cid, "three").stop_reason == "text_response"
    said = [entry.content for entry in first.transcript(handle_of(first, cid)) if entry.role == "user"]
    assert said == ["one", "two", "three"]
    assert second.sessions() == []


def test_a_transfer_that_fails_midway_leaves_every_conversation_alive_on_one_side(
    runtimes: Runtimes, tmp_path: Path
) -> None:
    first = runtimes.open(path=tmp_path / "first.db")
    second = runtimes.open(path=tmp_path / "second.db")
    chat = first.get_or_create("crab", "alice")
    moves = first.switch_topic("crab", "alice", "moves", "about it").conversation_id
    stays = first.switch_topic("crab", "bob", "stays", "about it").conversation_id
    for cid in (chat, moves, stays):
        assert first.send(cid, "before").text == "before"
    for rt, content in ((first, "one thing"), (second, "another")):
        rt.memory.remember("crab", "bob", "a note", content)  # which the copy must not overwrite
    with pytest.raises(StorageError, match="a note"):
        first.transfer_to(second)
    assert (second.conversations(), first.conversations()) == ([chat, moves], [stays])
    assert second.conversation_id("crab", "alice") == moves
    assert first.get_or_create("crab", "bob") == stays
    for rt, cid in ((second, chat), (second, moves), (first, stays)):
        assert rt.send(cid, "after").text == "after"
    assert [entry.content for entry in first.transcript(handle_of(first, stays))] == [
        "before",
        "before",
        "after",
        "after",
    ]
    assert first.get_or_create("crab", "carol") > stays  # it opens new ones again


def test_who_waits_for_a_session_to_be_looked_up_hears_of_a_shutdown(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    with runtimes.held_database(rt):
        waiting = [
            gevent.spawn(call, handle)
            for call in (rt.load, rt.delete_session)
            for handle in ("one", "another")
        ]
        gevent.idle()
        stopping = gevent.spawn(rt.shutdown, 0)
        gevent.idle()
    stopping.get()
    outcomes = [_error_or_value(one) for one in waiting]
    assert all(isinstance(o, RuntimeClosed | SessionNotFound) or o is False for o in outcomes), outcomes


def _error_or_value(greenlet: gevent.Greenlet) -> object:
    try:
        return greenlet.get()
    except PalaverError as error:
        return error
