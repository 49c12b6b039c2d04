"""`Runtime.memory`: notes, topics and archives, scoped, searched, committed."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import gevent
import pytest
from support import (
    CRAB,
    ManualClock,
    Runtimes,
    opened_runtimes,  # noqa: F401 - a fixture
    topic,
)

from actors import tools
from actors.builtin_tools import builtin_tools
from palaver import AgentNotRegistered, InvalidInput, MemoryEntry, Reply, Runtime, ScriptedModel, StorageError
from palaver.memory import Memory
from persistence.sources import Sources

WHALE = attrs.evolve(CRAB, name="whale")


def names(entries: list[MemoryEntry]) -> list[str]:
    return [entry.name for entry in entries]


def test_a_note_is_remembered_recalled_and_forgotten(runtimes: Runtimes) -> None:
    rt = runtimes.open(sources=Sources(clock=ManualClock()))
    entry = rt.memory.remember("crab", "alice", "colour", "likes blue", aliases=["hue", "shade"])
    assert entry == MemoryEntry("colour", "note", "likes blue", ("hue", "shade"), 1_000.0)
    for query in ("colour", "blue", "hue", "LIKES", "shade colour"):
        assert rt.memory.recall("crab", "alice", query) == [entry]
    assert rt.memory.entries("crab", "alice") == [entry]
    assert rt.memory.forget("crab", "alice", "colour") is True
    assert rt.memory.forget("crab", "alice", "colour") is False
    assert rt.memory.recall("crab", "alice", "blue") == []


def test_a_note_of_the_same_name_is_replaced_and_keeps_its_age(runtimes: Runtimes) -> None:
    clock = ManualClock()
    rt = runtimes.open(sources=Sources(clock=clock))
    first = rt.memory.remember("crab", "alice", "colour", "likes blue", ["hue"])
    clock.now += 50
    second = rt.memory.remember("crab", "alice", "colour", "likes red")
    assert second == attrs.evolve(first, content="likes red", aliases=())
    assert rt.memory.recall("crab", "alice", "blue hue") == []
    assert rt.memory.entries("crab", "alice") == [second]


def test_memory_is_committed_when_the_call_returns(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    rt.memory.remember("crab", "alice", "colour", "likes blue")
    rt.memory.remember("crab", "alice", "size", "small")
    rt.memory.forget("crab", "alice", "size")
    later = runtimes.reopen(rt)
    assert names(later.memory.entries("crab", "alice")) == ["colour"]


def test_every_sender_and_agent_has_a_memory_of_its_own(runtimes: Runtimes) -> None:
    rt = runtimes.open(agents=[CRAB, WHALE])
    for agent, sender in (("crab", "alice"), ("crab", "bob"), ("whale", "alice")):
        rt.memory.remember(agent, sender, "who", f"{agent} knows {sender}")
    for agent, sender in (("crab", "alice"), ("crab", "bob"), ("whale", "alice")):
        [found] = rt.memory.recall(agent, sender, "knows")
        assert found.content == f"{agent} knows {sender}"
    assert rt.memory.forget("crab", "carol", "who") is False
    rt.memory.forget("crab", "alice", "who")
    assert names(rt.memory.entries("crab", "bob")) == names(rt.memory.entries("whale", "alice")) == ["who"]


def test_an_agent_that_says_so_shares_its_memory_among_its_senders(runtimes: Runtimes) -> None:
    rt = runtimes.open(agents=[attrs.evolve(CRAB, memory_scope="agent"), WHALE])
    rt.memory.remember("crab", "alice", "wifi", "the password is crab")
    assert names(rt.memory.recall("crab", "bob", "password")) == ["wifi"]
    assert rt.memory.recall("whale", "alice", "password") == []
    assert rt.memory.forget("crab", "carol", "wifi") is True


def test_recall_reads_all_kinds_and_gives_the_best_first(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel(summaries=["we spoke of lobsters, and much else besides"]))
    cid = topic(rt, "shellfish")
    rt.send(cid, "hello")
    rt.compact(cid)
    rt.switch_topic("crab", "alice", "lobsters", "all about them")
    rt.memory.remember("crab", "alice", "food", "no lobsters for alice")
    found = rt.memory.recall("crab", "alice", "lobsters", limit=10)
    assert found[0].name == "lobsters"  # a word in the name says most
    assert {entry.kind for entry in found} == {"topic", "archive", "note"}
    assert [len(rt.memory.recall("crab", "alice", "lobsters", limit)) for limit in (0, 1, 2, -1)] == [
        0,
        1,
        2,
        0,
    ]


def test_search_topics_finds_titles_and_descriptions_of_topics_alone(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    rt.switch_topic("crab", "alice", "tax return", "forms for 2024")
    rt.switch_topic("crab", "alice", "holiday", "no forms at all")
    rt.memory.remember("crab", "alice", "forms", "a note")
    assert sorted(names(rt.memory.search_topics("crab", "alice", "forms"))) == ["holiday", "tax return"]
    assert names(rt.memory.search_topics("crab", "alice", "return")) == ["tax return"]
    assert len(rt.memory.search_topics("crab", "alice", "forms", limit=1)) == 1
    assert rt.memory.search_topics("crab", "bob", "forms") == []


def test_entries_are_listed_by_kind_in_the_order_of_creation(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    rt.memory.remember("crab", "alice", "z", "first")
    cid = topic(rt, "work")
    rt.send(cid, "hello")
    rt.compact(cid)
    rt.memory.remember("crab", "alice", "a", "last")
    assert names(rt.memory.entries("crab", "alice")) == ["z", "work", "work-1", "a"]
    assert names(rt.memory.entries("crab", "alice", "note")) == ["z", "a"]
    assert names(rt.memory.entries("crab", "alice", kind="topic")) == ["work"]
    assert names(rt.memory.entries("crab", "alice", kind="archive")) == ["work-1"]


def test_topics_and_archives_cannot_be_forgotten(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt, "work")
    rt.send(cid, "hello")
    rt.compact(cid)
    assert [rt.memory.forget("crab", "alice", name) for name in ("work", "work-1")] == [False, False]
    assert len(rt.memory.entries("crab", "alice")) == 2


@pytest.mark.parametrize(
    "query",
    ["", "   ", "don't", "why?", "multi-agent", '"', "a AND", "NOT", "*", "x:y", "(", "\x00", "\ud800", "🦀"],
)
def test_trap_25_any_text_is_a_query(runtimes: Runtimes, query: str) -> None:
    rt = runtimes.open()
    rt.memory.remember("crab", "alice", "note", "why not don't multi agent")
    assert isinstance(rt.memory.recall("crab", "alice", query), list)
    assert rt.memory.search_topics("crab", "alice", query) == []


def test_trap_25_words_with_quotes_and_dashes_are_found(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    rt.memory.remember("crab", "alice", "plan", "the multi-agent setup doesn't work")
    for query in ("don't work?", "multi-agent", '"setup"', "what doesn't work"):
        assert names(rt.memory.recall("crab", "alice", query)) == ["plan"]
    assert rt.memory.recall("crab", "alice", " ?!") == []


_BAD: list[Callable[[Memory], object]] = [
    lambda memory: memory.remember("crab", "alice", "", "content"),
    lambda memory: memory.remember("crab", "alice", "n" * 201, "content"),
    lambda memory: memory.remember("crab", "alice", "n\x00", "content"),
    lambda memory: memory.remember("crab", "alice", "name", ""),
    lambda memory: memory.remember("crab", "alice", "name", "\ud800"),
    lambda memory: memory.remember("crab", "alice", "name", "c" * 1_000_001),
    lambda memory: memory.remember("crab", "alice", "name", None),  # type: ignore[arg-type]
    lambda memory: memory.remember("crab", "alice", "name", "content", "alias"),
    lambda memory: memory.remember("crab", "alice", "name", "content", ["ok", ""]),
    lambda memory: memory.remember("crab", "alice", "name", "content", ["\ud800"]),
    lambda memory: memory.remember("crab", "alice", "name", "content", 5),  # type: ignore[arg-type]
    lambda memory: memory.remember("crab", "", "name", "content"),
    lambda memory: memory.remember("crab", "\ud800", "name", "content"),
    lambda memory: memory.recall("crab", "alice", None),  # type: ignore[arg-type]
    lambda memory: memory.recall("crab", "alice", "q", limit="5"),  # type: ignore[arg-type]
    lambda memory: memory.recall("crab", "alice", "q", limit=1.5),  # type: ignore[arg-type]
    lambda memory: memory.search_topics("crab", "alice", 5),  # type: ignore[arg-type]
    lambda memory: memory.forget("crab", "alice", "\ud800"),
    lambda memory: memory.forget("crab", "alice", None),  # type: ignore[arg-type]
    lambda memory: memory.entries("crab", "alice", "notes"),
    lambda memory: memory.entries("crab", ""),
]


def test_bad_arguments_are_refused_and_nothing_is_stored(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    for call in _BAD:
        with pytest.raises(InvalidInput):
            call(rt.memory)
    assert rt.memory.entries("crab", "alice") == []
    assert rt.memory.recall("crab", "alice", "q", limit=10**30) == []


def test_an_unknown_agent_has_no_memory(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    calls: list[Callable[[Memory], object]] = [
        lambda memory: memory.remember("eel", "alice", "n", "c"),
        lambda memory: memory.recall("eel", "alice", "q"),
        lambda memory: memory.forget("eel", "alice", "n"),
        lambda memory: memory.search_topics("eel", "alice", "q"),
        lambda memory: memory.entries("eel", "alice"),
    ]
    for call in calls:
        with pytest.raises(AgentNotRegistered, match="'eel'"):
            call(rt.memory)


def test_a_note_that_cannot_be_stored_is_an_error(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    runtimes.sql(
        rt,
        "CREATE TRIGGER refused BEFORE INSERT ON memory_entries BEGIN SELECT RAISE(ABORT, 'no room'); END",
    )
    with pytest.raises(StorageError, match="no room"):
        rt.memory.remember("crab", "alice", "n", "c")
    assert rt.memory.entries("crab", "alice") == []


def test_200_greenlets_write_and_read_at_once(runtimes: Runtimes) -> None:
    rt: Runtime = runtimes.open()

    def work(number: int) -> list[str]:
        rt.memory.remember("crab", f"sender {number % 10}", f"note {number}", f"word{number}")
        return names(rt.memory.recall("crab", f"sender {number % 10}", f"word{number}"))

    workers = [gevent.spawn(work, number) for number in range(200)]
    gevent.joinall(workers, raise_error=True)
    assert [worker.value for worker in workers] == [[f"note {number}"] for number in range(200)]
    assert len(rt.memory.entries("crab", "sender 3")) == 20


def test_the_tools_of_each_runtime_reach_its_own_memory(runtimes: Runtimes) -> None:
    told = [(name, ("remember", {"name": "who", "content": f"{name} was here"})) for name in ("one", "two")]
    opened = [runtimes.open(ScriptedModel([Reply(tool_calls=[call]), "ok"])) for _, call in told]
    for rt in opened:
        rt.send(topic(rt), "remember it")
    for rt, (name, _) in zip(opened, told, strict=True):
        assert [entry.content for entry in rt.memory.entries("crab", "alice", "note")] == [f"{name} was here"]


def test_the_tools_of_a_second_runtime_need_no_reading_of_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    first = builtin_tools("one")  # type: ignore[arg-type]
    monkeypatch.setattr(tools, "read_signature", None)
    second = builtin_tools("two")  # type: ignore[arg-type]
    assert [tool.schema for tool in second] == [tool.schema for tool in first]
