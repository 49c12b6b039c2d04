"""Bodies of requests made of what is kept from earlier ones: byte for byte what a fresh encoding says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import gevent
import pytest
from attrs import evolve
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from turns_support import deadline, runtime

from actors.history import ENTRY_BYTES, LiveHistory, entry_chars, to_wire, tool_result
from actors.models import encoded
from actors.models.base import Message
from actors.models.completion import request_body
from actors.models.unlisted import for_model, others_of, unlisted
from palaver import (
    AgentConfig,
    Chunk,
    HistoryEntry,
    ModelRequest,
    Reply,
    Runtime,
    ScriptedModel,
    Tool,
    ToolCall,
)


def plain_body(request: ModelRequest, extra: dict[str, Any] | None = None) -> bytes:
    """The whole body, encoded anew."""
    body: dict[str, Any] = {"messages": request.messages}
    if request.model:
        body["model"] = request.model
    if request.tools:
        choice: Any = request.tool_choice
        if choice not in ("auto", "none", "required"):
            choice = {"type": "function", "function": {"name": choice}}
        body |= {"tools": request.tools, "tool_choice": choice}
    body |= {"stream": True, "stream_options": {"include_usage": True}, **(extra or {})}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class Compared(ScriptedModel):
    """Makes the body of every request both ways, and notes how many messages were encoded for it."""

    def __init__(self, script: Any = None, **options: Any) -> None:
        super().__init__(script, **options)
        self.wrong: list[tuple[bytes, bytes]] = []
        self.shared: list[int] = []

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        for _ in encoded.write_ahead(request):
            gevent.sleep(0)
        self.shared.append(sum(count for _, count, _ in request.encoded))
        found, expected = request_body(request, {}), plain_body(request)
        if found != expected:
            self.wrong.append((found, expected))
        yield from super().stream(request)


# -- of a history ----------------------------------------------------------------------------------------

texts = st.text(alphabet=st.sampled_from('a"\\\né\ud83d\U0001f642\x00</'), max_size=4)
calls = st.lists(st.builds(ToolCall, st.uuids().map(str), texts, texts), min_size=1, max_size=3)


@st.composite
def steps(draw: Any) -> list[HistoryEntry]:
    entries = [HistoryEntry("user", draw(texts), sender="s")]
    if draw(st.booleans()):
        asked = tuple(draw(calls))
        entries.append(HistoryEntry("assistant", draw(texts), tool_calls=asked))
        entries += [tool_result(call, draw(texts)) for call in asked if draw(st.booleans())]
    if draw(st.booleans()):
        entries.append(HistoryEntry("assistant", draw(texts), agent=draw(st.sampled_from(["", "guest"]))))
    return entries


def others(draw: Any, messages: list[Message]) -> list[Message]:
    """The messages as somebody passes them on who changes some."""
    changed = deepcopy(messages) if draw(st.booleans()) else list(messages)
    at = draw(st.integers(0, len(changed)))
    match draw(st.sampled_from(["insert", "drop", "replace", "end", "turn round"])):
        case "insert":
            changed.insert(at, {"role": "user", "content": draw(texts)})
        case "drop":
            del changed[at : at + 2]
        case "replace":
            changed[at : at + 1] = [{"role": "user", "content": draw(texts)}]
        case "end":
            del changed[at:]
        case _:
            changed.reverse()
    return changed


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.data())
def test_a_body_is_the_same_whatever_was_kept_of_the_requests_before(data: Any) -> None:
    history, draw = LiveHistory(), data.draw
    for _ in range(draw(st.integers(1, 5))):
        match draw(st.sampled_from(["more", "mend", "summary", "cut"])):
            case "more":
                history.extend(draw(steps()))
            case "mend":
                history.mend()
            case "summary":
                history.replace(HistoryEntry("user", draw(texts)))
            case _:
                history.cut(draw(st.integers(0, len(history))))
        base, own = draw(st.integers(0, len(history))), [to_wire(entry) for entry in draw(steps())]
        system = [{"role": "system", "content": "be kind"}] * draw(st.integers(0, 1))
        injected = [{"role": "user", "content": "today"}] * draw(st.integers(0, 1))
        messages = [*system, *history.wire[:base], *injected, *own]
        runs = (
            (len(system), base, history.encoded),
            (len(messages) - len(own), len(own), encoded.Encoded(own)),
        )
        kept = runs[: draw(st.integers(0, 2))]
        request = ModelRequest("m", messages, encoded=kept)
        assert request_body(request, {}) == plain_body(request)
        rest = [*system, *(injected if kept else messages[len(system) :]), *(own if len(kept) == 1 else [])]
        check_unlisted(ModelRequest("m", rest, encoded=kept), request)
        changed = evolve(request, messages=others(draw, messages))
        assert request_body(changed, {}) == plain_body(changed)
        assert request_body(request, {}) == plain_body(request)
        assert history.bytes == history.encoded.size + sum(
            entry_chars(entry) + ENTRY_BYTES for entry in history.entries
        )


def check_unlisted(request: ModelRequest, listed: ModelRequest) -> None:
    """A request whose list is not made yet is the same as one that was given it."""
    request = unlisted(request)
    renamed = for_model(for_model(request, "other"), "m")
    assert request_body(request, {}) == request_body(renamed, {}) == plain_body(listed)
    assert others_of(request) is not None
    others_changed = evolve(request, messages=[{"role": "user", "content": "else"}])
    assert request_body(others_changed, {}) == plain_body(others_changed)
    assert renamed == deepcopy(request) == request == listed
    assert request.messages is request.messages
    request.messages.append({"role": "user", "content": "and more"})
    assert request_body(request, {}) == plain_body(request)
    assert for_model(request, "m") == request != listed


@pytest.mark.parametrize("extra", [{"temperature": 0}, {"messages": []}, {"stream": False}, {"model": "x"}])
def test_what_the_extra_fields_say_wins(extra: dict[str, Any]) -> None:
    history = LiveHistory([HistoryEntry("user", "hi")])
    request = ModelRequest("m", [*history.wire], encoded=((0, 1, history.encoded),))
    assert request_body(request, extra) == plain_body(request, extra)


def test_a_long_history_is_written_in_bursts_that_others_run_between() -> None:
    size = 2 * encoded.BURST + 2
    history = LiveHistory([HistoryEntry("user", str(number)) for number in range(size)])
    request = ModelRequest("m", [*history.wire], encoded=((0, size, history.encoded),))
    assert len(list(encoded.write_ahead(request))) == 2
    assert request_body(request, {}) == plain_body(request)
    assert list(encoded.write_ahead(request)) == []


# -- of a conversation -----------------------------------------------------------------------------------


class Meddling:
    """A hook that injects an entry into every turn, and changes some of what users say."""

    def before_run(self, agent: str, conversation_id: int, history: Sequence[HistoryEntry]) -> Any:
        return [HistoryEntry("user", f"{len(history)} entries so far")]

    def preprocess(self, agent: str, content: str) -> str | None:
        return content.upper() if content.startswith("loud") else None


def answers(request: ModelRequest) -> Reply:
    """Two rounds of tool calls for who asks for work, then words."""
    last = request.messages[-1]
    told = [m for m in request.messages if m["role"] == "tool"]
    if request.tools and ("work" in str(last["content"]) or (last["role"] == "tool" and len(told) % 4 == 2)):
        return Reply("so", tool_calls=[("look", {"what": "é"}), ("missing", {})])
    return Reply("done")


def look(what: str) -> str:
    """Look at it."""
    return f"seen {what}"


@pytest.mark.parametrize("hooks", [(), (Meddling(),)])
def test_every_body_of_a_conversation_is_what_a_fresh_encoding_says(tmp_path: Path, hooks: Any) -> None:
    model = Compared(answers, summaries=["all of it"] * 9)
    agents = [AgentConfig("crab", system_prompt="be kind", auto_title=False), AgentConfig("guest")]
    options: dict[str, Any] = {"tools": [Tool(look)], "hooks": hooks}
    with deadline(), runtime(tmp_path / "a.db", model, *agents, **options) as rt:
        cid = rt.switch_topic("crab", "alice", "topic", "new").conversation_id
        play(rt, cid)
        rt.upsert_agent(AgentConfig("crab", system_prompt="be short", compact_threshold=60))
        rt.send(cid, "now a long line " + "x" * 300)
        play(rt, cid)
    with deadline(), runtime(tmp_path / "a.db", model, *agents, **options) as rt:
        play(rt, rt.switch_topic("crab", "alice", "topic").conversation_id)
    assert model.wrong == []
    assert max(model.shared) > 10


def play(rt: Runtime, cid: int) -> None:
    for said in ("hello", "work", "loud", "work and \U0001f642"):
        rt.send(cid, said)
    rt.send(cid, "what does a guest say?", guest="guest")
    rt.send(cid, "work", tool_choice="look")
    rt.compact(cid)
    rt.send(cid, "after that, work")


class Redacting:
    """Passes requests on without what is secret, as a wrapper of a model may."""

    def __init__(self, model: Compared) -> None:
        self.model = model

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        shown = [
            m if "secret" not in m["content"] else {**m, "content": "[redacted]"} for m in request.messages
        ]
        return self.model.stream(evolve(request, messages=shown))


def test_a_wrapper_of_a_model_sends_what_it_has_changed(tmp_path: Path) -> None:
    inner = Compared(lambda _: "ok")
    with deadline(), runtime(":memory:", Redacting(inner)) as rt:
        cid = rt.get_or_create("crab", "alice")
        for said in ("hello", "a secret", "and then?", "the end"):
            rt.send(cid, said)
    assert inner.wrong == []
    bodies = [request_body(request, {}) for request in inner.requests]
    assert not any(b"secret" in body for body in bodies)
    assert bodies[-1].count(b"[redacted]") == 1


class Keeping(ScriptedModel):
    """Keeps every request too, reads none of them, and changes the list of every other."""

    def __init__(self) -> None:
        super().__init__(answers, summaries=["all of it"] * 9)
        self.kept: list[ModelRequest] = []

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        self.kept.append(request)
        yield from super().stream(for_model(request, request.model))
        if len(self.kept) % 2:
            request.messages[:1] = [{"role": "user", "content": "to be told"}] * 2


def test_what_a_model_keeps_is_what_it_was_asked_whenever_it_is_read() -> None:
    model = Keeping()
    with (
        deadline(),
        runtime(":memory:", model, AgentConfig("crab"), AgentConfig("guest"), tools=[Tool(look)]) as rt,
    ):
        play(rt, rt.get_or_create("crab", "alice"))
        play(rt, rt.get_or_create("crab", "alice"))
    assert len(model.kept) > 30
    assert [request.messages for request in model.kept[1::2]] == [
        request.messages for request in model.requests[1::2]
    ]
    assert "to be told" not in str(model.requests)


def test_a_message_is_encoded_for_one_request_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    real = encoded._items  # noqa: SLF001  # what is counted is how often it is asked
    model = Compared(answers)

    def items(messages: Sequence[Message]) -> bytes:
        written.append(len(messages))
        return real(messages)

    monkeypatch.setattr(encoded, "_items", items)
    with deadline(), runtime(":memory:", model, tools=[Tool(look)]) as rt:
        cid = rt.get_or_create("crab", "alice")
        for _ in range(20):
            rt.send(cid, "work")
        total = len(rt.conversation(cid).history)  # type: ignore[union-attr]
    assert total > 80
    # Once as the turn's own, perhaps once more with what the turn says next, and once as history.
    assert sum(written) <= 3 * total
