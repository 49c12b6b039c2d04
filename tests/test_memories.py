"""Memory: notes, topics and archives in their scopes, and finding them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from persistence import memories
from persistence.database import close_database, open_database
from persistence.records import MemoryEntry
from persistence.verify import verify


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = open_database(tmp_path / "agents.db")
    yield db
    close_database(db)


def note(
    db: Database, name: str, content: str = "x", *, scope: str = "s", agent: str = "a", aliases: object = ()
) -> MemoryEntry:
    return memories.remember(
        db,
        agent=agent,
        scope=scope,
        name=name,
        content=content,
        aliases=aliases,
        at=1.5,  # type: ignore[arg-type]
    )


def other(db: Database, kind: str, name: str, content: str = "x", scope: str = "s") -> None:
    db.execute(
        """INSERT INTO memory_entries (agent, scope, kind, name, content, created_at)
            VALUES ('a', ?, ?, ?, ?, 2.0)""",
        [scope, kind, name, content],
    )


def found(db: Database, query: str, *, scope: str = "s", **more: object) -> list[str]:
    return [m.name for m in memories.recall(db, agent="a", scope=scope, query=query, **more)]  # type: ignore[arg-type]


def test_a_note_is_read_back_as_it_was_written(db: Database) -> None:
    made = note(db, "coffee", "no milk", aliases=["espresso", 'he said "two"'])
    assert made == MemoryEntry("coffee", "note", "no milk", ("espresso", 'he said "two"'), 1.5)  # type: ignore[arg-type]
    assert memories.entries(db, agent="a", scope="s") == [made]


def test_a_note_of_the_same_name_replaces_content_and_aliases(db: Database) -> None:
    note(db, "coffee", "no milk", aliases=["espresso"])
    note(db, "coffee", "oat milk", aliases=["latte"])
    assert [m.content for m in memories.entries(db, agent="a", scope="s")] == ["oat milk"]
    assert found(db, "latte") == found(db, "oat") == ["coffee"]
    assert found(db, "espresso") == []
    assert verify(db) == []


def test_forget_takes_notes_only_and_their_words_with_them(db: Database) -> None:
    note(db, "coffee", "bitter")
    other(db, "topic", "tea", "green")
    other(db, "archive", "tea-1", "black")
    assert memories.forget(db, agent="a", scope="s", name="coffee") is True
    assert memories.forget(db, agent="a", scope="s", name="coffee") is False
    assert memories.forget(db, agent="a", scope="s", name="tea") is False
    assert memories.forget(db, agent="a", scope="s", name="tea-1") is False
    assert found(db, "bitter") == []
    assert found(db, "green") == ["tea"]
    assert verify(db) == []


def test_one_sender_never_sees_anothers_memory(db: Database) -> None:
    note(db, "secret", "treasure", scope="alice")
    note(db, "secret", "treasure map", scope="bob")
    note(db, "secret", "treasure shared", scope="")
    note(db, "secret", "treasure of b", scope="alice", agent="b")
    assert [m.content for m in memories.recall(db, agent="a", scope="alice", query="treasure")] == [
        "treasure"
    ]
    assert [m.content for m in memories.entries(db, agent="a", scope="bob")] == ["treasure map"]
    assert memories.forget(db, agent="a", scope="carol", name="secret") is False
    assert memories.forget(db, agent="a", scope="bob", name="secret") is True
    assert found(db, "treasure", scope="alice") == ["secret"]


def test_names_are_unique_per_scope_and_kind(db: Database) -> None:
    note(db, "tea")
    other(db, "topic", "tea")
    other(db, "archive", "tea")
    assert [m.kind for m in memories.entries(db, agent="a", scope="s")] == ["note", "topic", "archive"]
    assert [m.kind for m in memories.entries(db, agent="a", scope="s", kind="topic")] == ["topic"]


def test_a_hit_in_the_name_or_an_alias_comes_first(db: Database) -> None:
    note(db, "first", "the word kiwi is in here " * 3)
    note(db, "kiwi", "a bird")
    note(db, "second", "and kiwi again")
    note(db, "fruit", "green", aliases=["kiwi"])
    assert sorted(found(db, "kiwi")[:2]) == ["fruit", "kiwi"]
    assert len(found(db, "kiwi")) == 4


def test_all_words_first_and_any_word_when_none_has_all(db: Database) -> None:
    note(db, "one", "red apples")
    note(db, "two", "red pears")
    assert found(db, "red pears") == ["two"]
    assert sorted(found(db, "pears apples")) == ["one", "two"]
    assert found(db, "pears bananas") == ["two"]


def test_words_are_found_in_other_forms_and_scripts(db: Database) -> None:
    note(db, "sport", "she was running; Café Zürich")
    note(db, "jp", "東京 タワー")
    assert found(db, "runs") == found(db, "cafe") == found(db, "ZÜRICH") == ["sport"]
    assert found(db, "cafe\u0301") == ["sport"]
    assert found(db, "東京") == ["jp"]


@pytest.mark.parametrize("blank", ["", " ", "\t\n", "?!", '"', "***", "(", "🙂", "-", "''", "\x00", "\ud800"])
def test_trap_25_a_query_without_a_word_finds_nothing(db: Database, blank: str) -> None:
    note(db, "n", "x 🙂 ?!")
    assert found(db, blank) == []
    assert memories.search(db, blank) == []


@pytest.mark.parametrize(
    "query",
    [
        "don't",
        "why?",
        "multi-agent",
        '"quoted',
        "NEAR(",
        "agent*",
        "name:agent",
        "AND",
        "NOT agent",
        "^agent",
        "a OR",
    ],
)
def test_trap_25_nothing_in_a_query_is_an_operator(db: Database, query: str) -> None:
    note(db, "n", f"this says: {query} indeed")
    note(db, "unrelated", "zzz")
    assert found(db, query) == ["n"]


@pytest.fixture(scope="module")
def empty() -> Iterator[Database]:
    db = open_database(":memory:")
    yield db
    close_database(db)


@settings(max_examples=60, deadline=None)
@given(query=st.text(max_size=40))
def test_no_query_raises(empty: Database, query: str) -> None:
    memories.recall(empty, agent="a", scope="s", query=query)


def test_a_very_long_query_is_fine(db: Database) -> None:
    note(db, "n", "needle")
    assert found(db, "needle " + "straw " * 20_000) == ["n"]


@pytest.mark.parametrize(("limit", "count"), [(0, 0), (-1, 0), (1, 1), (3, 3), (100, 4)])
def test_limit_is_kept(db: Database, limit: int, count: int) -> None:
    for n in range(4):
        note(db, f"n{n}", "same words")
    assert len(found(db, "words", limit=limit)) == count


def test_a_limit_counts_the_scopes_own_hits(db: Database) -> None:
    for n in range(50):
        note(db, f"kiwi {n}", "kiwi kiwi kiwi", scope="loud")
    note(db, "quiet", "one kiwi among other words")
    assert found(db, "kiwi", limit=1) == ["quiet"]


def test_recall_can_be_of_one_kind(db: Database) -> None:
    note(db, "tea", "green")
    other(db, "topic", "teas", "green")
    assert found(db, "green", kind="topic") == ["teas"]


# -- archives --------------------------------------------------------------------------------------


def highest(db: Database, slug: str, scope: str = "s") -> int:
    return memories.highest_archive(db, agent="a", scope=scope, slug=slug)


def test_only_canonical_numbers_of_exactly_this_slug_count(db: Database) -> None:
    for name in (
        "auth-1",
        "auth-02",
        "auth-+7",
        "auth- 9",
        "auth-",
        "auth-x-8",
        "auth-٣",
        "auth-5\n",
        "authx-9",
    ):
        other(db, "archive", name)
    assert highest(db, "auth") == 1
    other(db, "archive", "auth-10")
    other(db, "archive", "auth-9")
    assert highest(db, "auth") == 10
    assert highest(db, "auth-x") == 8
    assert highest(db, "none") == 0


def test_wildcards_in_a_slug_are_just_characters(db: Database) -> None:
    for name in ("a_b-1", "axb-7", "a%-2", "abc-9"):
        other(db, "archive", name)
    assert highest(db, "a_b") == 1
    assert highest(db, "a%") == 2


def test_archive_numbers_are_counted_per_scope_and_kind(db: Database) -> None:
    other(db, "archive", "t-3", scope="alice")
    other(db, "archive", "t-1", scope="bob")
    note(db, "t-9", scope="bob")
    assert highest(db, "t", "alice") == 3
    assert highest(db, "t", "bob") == 1
    assert highest(db, "t", "") == 0


# -- for the command line --------------------------------------------------------------------------


def test_search_and_listing_name_agent_and_scope(db: Database) -> None:
    note(db, "one", "kiwi", scope="alice")
    note(db, "two", "kiwi", scope="bob", agent="b")
    note(db, "three", "plum", scope="")
    every = [(agent, scope, m.name) for agent, scope, m in memories.list_entries(db)]
    assert every == [("a", "alice", "one"), ("b", "bob", "two"), ("a", "", "three")]
    hits = [(agent, scope, m.name) for agent, scope, m in memories.search(db, "kiwi")]
    assert sorted(hits) == [("a", "alice", "one"), ("b", "bob", "two")]
    assert [m.name for _, _, m in memories.search(db, "kiwi", agent="b")] == ["two"]
    assert [m.name for _, _, m in memories.search(db, "kiwi", sender="alice")] == ["one"]
    assert len(memories.search(db, "kiwi", limit=1)) == 1
    assert [m.name for _, _, m in memories.list_entries(db, "a", "")] == ["three"]
