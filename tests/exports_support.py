"""What tests of exports and imports share: a file with some of everything, and all rows of a file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from palaver import AgentConfig, Reply, Runtime, ScriptedModel
from palaver.copies import export_database, import_database
from palaver.offline import offline, verify_database
from persistence import exports
from persistence.bundles import KEYS, MEMORY, PARTS, SESSION
from persistence.migrations import TABLES


def everything(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables, in order, with handles in place of the row ids of sessions."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    with offline(path) as db:
        found["sessions"] = db.execute(f"SELECT {SESSION} FROM sessions ORDER BY id").fetchall()
        for table, columns in PARTS.items():
            named = ", ".join(f"x.{column}" for column in columns.split(", "))
            found[table] = db.execute(
                f"""SELECT s.handle, {named} FROM {table} x JOIN sessions s ON s.id = x.session_id
                    ORDER BY s.id, x.id"""
            ).fetchall()
        found["keys"] = db.execute(f"SELECT {KEYS} FROM keys ORDER BY agent, sender, key").fetchall()
        found["memory_entries"] = db.execute(f"SELECT {MEMORY} FROM memory_entries ORDER BY id").fetchall()
        found["deleted_sessions"] = db.execute(
            f"SELECT {exports.DELETED} FROM deleted_sessions ORDER BY handle"
        ).fetchall()
        search = "SELECT rowid FROM memory_entries_fts WHERE memory_entries_fts MATCH 'the' ORDER BY rank"
        ids = {id_: at for at, (id_,) in enumerate(db.execute("SELECT id FROM memory_entries ORDER BY id"))}
        found["memory_entries_fts"] = [(ids[id_],) for (id_,) in db.execute(search).fetchall()]
    assert set(found) == set(TABLES)
    return found


def files_of(directory: Path) -> dict[str, bytes]:
    """Path and content of each file, links not followed."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def round_trip(path: Path, tmp_path: Path) -> Path:
    """Export, import, and export again: the rows are the same, and so are the bytes. The export."""
    one, two, back = tmp_path / "one", tmp_path / "two", tmp_path / "back.db"
    contents = export_database(path, one)
    imported = import_database(one, back)
    assert imported.contents == contents
    assert (imported.edited, imported.renumbered) == ((), 0)
    assert everything(back) == everything(path)
    export_database(back, two)
    assert files_of(one) == files_of(two)
    return one


@pytest.fixture(name="lived_in", scope="module")
def lived_in_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with some of everything: steers, keys, guests, tools, archives, deletions, unfinished work."""
    directory = tmp_path_factory.mktemp("lived")
    path = directory / "agents.db"
    clock = 0

    def look(number: int) -> str:
        """Look at something."""
        return f"saw {number}\n--- and \u2028 more"

    def model(request: Any) -> Any:
        last = request.messages[-1]["content"]
        if last.startswith("look"):
            return Reply(tool_calls=[("look", {"number": 7})], reasoning="I should look.")
        return f"heard: {last}"

    with Runtime.open(path, ScriptedModel(model), tools=[look]) as rt:
        rt.add_agent(AgentConfig(name="crab"))
        rt.add_agent(AgentConfig(name="Fish/1", memory_scope="agent", auto_title=False))
        for agent, sender in (("crab", "alice"), ("crab", "Alice"), ("Fish/1", "bob"), ("crab", "../Ünï")):
            for title in ("boats", "Boats", "Sailing on Sunday: where?"):
                cid = rt.switch_topic(agent, sender, title, f"the {title}\nof {sender}\n").conversation_id
                rt.send(cid, "hello\n", key=f"key {clock}")
                rt.send(cid, "look there")
                rt.send(cid, "and you?", guest="Fish/1", sender="someone else")
                if clock % 2:
                    rt.compact(cid)
                    rt.send(cid, "after that")
                clock += 1
        rt.memory.remember(
            "crab", "alice", "soil", "Heavy clay,\n\nneeds the sand.", aliases=["earth", "Löß"]
        )
        rt.memory.remember("crab", "alice", "Soil", "---\nname: other\n---\n")
        rt.memory.remember("Fish/1", "bob", "CON", "the reserved one\r\n")
        for session in rt.sessions(sender="Alice")[:2]:
            rt.delete_session(session.handle)
        rt.cancel_timer(rt.after(1e6, cid, "never comes").id)
        rt.after(1e6, cid, "later\n", sender="someone", key="key later")
        rt.every(86_400, rt.load(rt.sessions(sender="alice")[0].handle), "every day", first_after=1e5)
    _leave_undone(path)
    assert verify_database(path) == []
    return path


def _leave_undone(path: Path) -> None:
    with offline(path) as db:
        ((session_id, turn_id),) = db.execute("SELECT session_id, id FROM turns LIMIT 1").fetchall()
        turn, steer = (900, 940)
        db.execute(
            "INSERT INTO steers (id, session_id, turn_id, sender, content, accepted_at, applied_turn)"
            " VALUES (?, ?, ?, 'alice', 'applied', 3.5, ?), (?, ?, ?, 'alice', 'not yet', 4.5, NULL)",
            [steer, session_id, turn_id, turn_id, steer + 1, session_id, turn_id],
        )
        db.execute(
            "INSERT INTO turns (id, session_id, sender, content, state, attempts, accepted_at)"
            " VALUES (?, ?, 'alice', 'never answered', 'running', 2, 5.25),"
            " (?, ?, 'alice', 'waits', 'queued', 0, 6)",
            [turn, session_id, turn + 1, session_id],
        )
        db.execute(
            "INSERT INTO dead_letters (session_id, turn_id, reason, attempts, at, retried_as)"
            " VALUES (?, ?, 'given up', 3, 7.5, ?)",
            [session_id, turn_id, turn + 1],
        )
        db.conn.commit()


@pytest.fixture(autouse=True, name="one_disk_for_all")
def of_one_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's other data is none of these tests'; each file is synced all the same."""
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture(name="exported")
def exported_directory(lived_in: Path, tmp_path: Path) -> Path:
    """An export of it, to damage."""
    first = lived_in.with_name("export")
    if not first.exists():
        export_database(lived_in, first)
    return Path(shutil.copytree(first, tmp_path / "export"))
