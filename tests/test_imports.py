"""Imports: nothing damaged is taken, nothing is taken by half, nothing that is there is harmed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from exports_support import (
    everything,
    exported_directory,  # noqa: F401 - a fixture
    lived_in_file,  # noqa: F401 - a fixture
    of_one_disk,  # noqa: F401 - a fixture
)
from sqlite_utils import Database
from support import Runtimes, opened_runtimes, topic  # noqa: F401 - a fixture

from palaver import AgentConfig, PalaverError, RecordError, Runtime, ScriptedModel, StorageError, copies
from palaver.copies import export_database, import_database
from palaver.offline import offline, verify_database
from persistence import exports
from persistence.database import close_database, open_database
from persistence.imports import import_export, open_export
from persistence.sessions import delete_session, list_sessions
from persistence.transaction import transaction
from persistence.verify import verify

# -- damage --------------------------------------------------------------------------------------------

Damage = Callable[[Path], str]


def session_file(directory: Path, number: int = 0) -> Path:
    """A session's file; the first has turns, steers and more than ten lines."""
    paths = [line.split("  ")[1] for line in (directory / "SHA256SUMS").read_text().splitlines()]
    return directory / [path for path in paths if path.startswith("sessions/")][number]


def change(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def drop_last_bytes(directory: Path) -> str:
    path = session_file(directory)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5])[:-20])
    return f"sessions/{path.name}, line 5: not a whole line of JSON"


def drop_last_lines(directory: Path) -> str:
    path = session_file(directory)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    return f"sessions/{path.name}, line 5: the file ends here"


def change_a_value(directory: Path) -> str:
    path = session_file(directory)
    number = path.read_bytes()[: path.read_bytes().index(b"look there")].count(b"\n") + 1
    change(path, b"look there", b"look here!")
    return f"sessions/{path.name}, line {number}: it was changed"


def swap_two_lines(directory: Path) -> str:
    path = session_file(directory)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2], lines[3] = lines[3], lines[2]
    path.write_bytes(b"".join(lines))
    return f"sessions/{path.name}, line 3: it was changed"


def leave_a_line_out(directory: Path) -> str:
    path = session_file(directory)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    return f"sessions/{path.name}, line {len(lines) - 1}: {len(lines) - 2} lines come before the end"


def add_after_the_end(directory: Path) -> str:
    path = session_file(directory)
    count = path.read_bytes().count(b"\n")
    path.write_bytes(path.read_bytes() + b'{"type":"turn","v":1}\n')
    return f"sessions/{path.name}, line {count + 1}: something follows the end"


def of_a_newer_version(directory: Path) -> str:
    path = session_file(directory)
    change(path, b',"v":1,"handle"', b',"v":2,"handle"')
    return f"sessions/{path.name}, line 1: it has version 2"


def of_an_unknown_type(directory: Path) -> str:
    path = session_file(directory)
    change(path, b'"type":"turn"', b'"type":"tune"')
    return f"sessions/{path.name}, line 2: a line of the type 'tune'"


def with_an_unknown_field(directory: Path) -> str:
    path = session_file(directory)
    change(path, b'"attempts"', b'"attempt"')
    return f"sessions/{path.name}, line 2: the field 'attempt' is unknown"


def without_a_field(directory: Path) -> str:
    path = session_file(directory)
    change(path, b'"guest":null,', b"")
    return f"sessions/{path.name}, line 2: the field 'guest' is missing"


def as_no_object(directory: Path) -> str:
    path = session_file(directory)
    path.write_bytes(b"[]\n" + path.read_bytes())
    return f"sessions/{path.name}, line 1: not an object"


def as_garbage(directory: Path) -> str:
    path = session_file(directory)
    path.write_bytes(b"\xff\x00" * 100)
    return f"sessions/{path.name}, line 1: not a whole line"


def as_an_empty_file(directory: Path) -> str:
    path = session_file(directory)
    path.write_bytes(b"")
    return f"sessions/{path.name}, line 1: the file ends here"


def as_another_whole_session(directory: Path) -> str:
    path = session_file(directory)
    path.write_bytes(session_file(directory, 1).read_bytes())
    return f"sessions/{path.name}: it is not the file that was exported"


def without_a_session_file(directory: Path) -> str:
    session_file(directory, 3).unlink()
    return f"sessions/{session_file(directory, 3).name}: the file is missing"


def with_a_file_more(directory: Path) -> str:
    (directory / "memory" / "crab" / "new.md").write_text("mine")
    return "memory/crab/new.md: no such file was exported"


def with_a_link_to_outside(directory: Path) -> str:
    path = session_file(directory)
    moved = directory.parent / "outside.jsonl"
    path.rename(moved)
    path.symlink_to(moved)
    return f"sessions/{path.name}: it is no regular file"


def with_a_linked_folder(directory: Path) -> str:
    (directory / "sessions").rename(directory.parent / "outside")
    (directory / "sessions").symlink_to(directory.parent / "outside")
    return f"sessions/{session_file(directory).name}: the file is missing"


def with_an_edited_note(directory: Path) -> str:
    path = directory / "memory/crab/alice/note/soil.md"
    change(path, b"Heavy clay", b"Light sand")
    return "memory/crab/alice/note/soil.md: it was changed after it was exported; if that was on purpose"


def with_half_a_note(directory: Path) -> str:
    path = directory / "memory/crab/alice/note/soil.md"
    path.write_bytes(path.read_bytes()[:60])
    return "memory/crab/alice/note/soil.md, line 5: "


def with_a_note_that_is_not_utf_8(directory: Path) -> str:
    path = directory / "memory/crab/alice/note/soil.md"
    change(path, b"needs", b"need\xff")
    return "memory/crab/alice/note/soil.md, line 13: not UTF-8"


def with_an_odd_front_matter(directory: Path) -> str:
    change(directory / "memory/crab/alice/note/soil.md", b'["earth', b"[17, ")
    return "memory/crab/alice/note/soil.md, line 7: "


def without_a_manifest(directory: Path) -> str:
    (directory / "manifest.json").unlink()
    return "is no export of Palaver's: it has no manifest.json"


def with_a_broken_manifest(directory: Path) -> str:
    change(directory / "manifest.json", b'"counts": {', b'"counts": ')
    return "manifest.json, line 5: not JSON"


def with_a_foreign_manifest(directory: Path) -> str:
    change(directory / "manifest.json", b"palaver-export", b"something-else")
    return "its manifest.json is of something else"


def with_a_newer_manifest(directory: Path) -> str:
    change(directory / "manifest.json", b'"version": 1', b'"version": 2')
    return "manifest.json: the export has version 2"


def with_other_counts(directory: Path) -> str:
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["counts"]["entries"] += 1
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return "manifest.json: it counts "


def with_a_manifest_without_ids(directory: Path) -> str:
    change(directory / "manifest.json", b'"turn":', b'"tune":')
    return "manifest.json: its highest_ids"


def with_an_edited_list(directory: Path) -> str:
    lines = (directory / "SHA256SUMS").read_text().splitlines()
    (directory / "SHA256SUMS").write_text("\n".join(lines[:-1]) + "\n")
    return "SHA256SUMS: it is not the one that manifest.json describes"


def with_half_a_list(directory: Path) -> str:
    text = (directory / "SHA256SUMS").read_text()
    (directory / "SHA256SUMS").write_text("\n".join(text.splitlines()[:4])[:-10])
    return "SHA256SUMS, line 4: "


def with_a_path_to_outside(directory: Path) -> str:
    """With every checksum as it should be."""
    (directory.parent / "evil.jsonl").write_bytes(session_file(directory).read_bytes())
    listed = (directory / "SHA256SUMS").read_text()
    name = session_file(directory).name
    reseal(directory, listed.replace(f"sessions/{name}", "sessions/../evil.jsonl"))
    return "SHA256SUMS, line 2: not a checksum and one of the export's files"


def with_a_note_outside(directory: Path) -> str:
    """With every checksum as it should be."""
    path = "memory/crab/alice/note/soil.md"
    (directory / path).rename(directory.parent / "evil.md")
    listed = (directory / "SHA256SUMS").read_text()
    number = listed[: listed.index(path)].count("\n") + 1
    reseal(directory, listed.replace(path, "memory/../../../evil.md"))
    return f"SHA256SUMS, line {number}: not a checksum and one of the export's files"


def with_a_forged_state(directory: Path) -> str:
    """With every checksum as it should be, so that the database has to refuse it."""
    forge(session_file(directory), b'"state":"done"', b'"state":"gone"')
    return f"sessions/{session_file(directory).name}: it does not fit the database"


def with_a_forged_result(directory: Path) -> str:
    forge(session_file(directory), b'"attempts":1', b'"attempts":"many"')
    return f"sessions/{session_file(directory).name}: it does not fit the database"


def with_a_forged_kind(directory: Path) -> str:
    path = directory / "memory/crab/alice/note/soil.md"
    digest = sha256(path.read_bytes()).hexdigest()
    change(path, b'kind: "note"', b'kind: "tune"')
    listed = (directory / "SHA256SUMS").read_text()
    reseal(directory, listed.replace(digest, sha256(path.read_bytes()).hexdigest()))
    return "memory/crab/alice/note/soil.md: it does not fit the database"


def with_two_sessions_in_a_file(directory: Path) -> str:
    path = session_file(directory)
    lines = path.read_bytes().splitlines()[:-1]
    rewrite(path, [lines[0], lines[0], *lines[1:]])
    return f"sessions/{path.name}, line 2: a second session"


def without_a_session_line(directory: Path) -> str:
    path = session_file(directory)
    rewrite(path, path.read_bytes().splitlines()[1:-1])
    return f"sessions/{path.name}, line 1: the session itself should be here"


def forge(path: Path, old: bytes, new: bytes) -> None:
    rewrite(path, path.read_bytes().replace(old, new, 1).splitlines()[:-1])


def rewrite(path: Path, lines: list[bytes]) -> None:
    """Write a file of lines anew, with an end and checksums that fit."""
    digest = sha256(path.read_bytes()).hexdigest()
    with path.open("wb") as file:
        writer = exports.LineWriter(file)
        for line in lines:
            fields = json.loads(line)
            del fields["v"]
            writer.write(fields.pop("type"), fields)
        new = writer.end()
    directory = path.parents[1]
    reseal(directory, (directory / "SHA256SUMS").read_text().replace(digest, new))


def reseal(directory: Path, listed: str) -> None:
    (directory / "SHA256SUMS").write_text(listed)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["sha256sums"] = sha256(listed.encode()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest))


DAMAGES: list[Damage] = [
    drop_last_bytes,
    drop_last_lines,
    change_a_value,
    swap_two_lines,
    leave_a_line_out,
    add_after_the_end,
    of_a_newer_version,
    of_an_unknown_type,
    with_an_unknown_field,
    without_a_field,
    as_no_object,
    as_garbage,
    as_an_empty_file,
    as_another_whole_session,
    without_a_session_file,
    with_a_file_more,
    with_a_link_to_outside,
    with_a_linked_folder,
    with_an_edited_note,
    with_half_a_note,
    with_a_note_that_is_not_utf_8,
    with_an_odd_front_matter,
    without_a_manifest,
    with_a_broken_manifest,
    with_a_foreign_manifest,
    with_a_newer_manifest,
    with_other_counts,
    with_a_manifest_without_ids,
    with_an_edited_list,
    with_half_a_list,
    with_a_path_to_outside,
    with_a_note_outside,
    with_a_forged_state,
    with_a_forged_result,
    with_a_forged_kind,
    with_two_sessions_in_a_file,
    without_a_session_line,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_export_is_refused_by_name_and_nothing_of_it_is_stored(
    exported: Path, tmp_path: Path, damage: Damage
) -> None:
    expected = damage(exported)
    other = tmp_path / "other.db"
    with pytest.raises(PalaverError, match=re.escape(expected)) as told:
        import_database(exported, tmp_path / "new.db")
    assert isinstance(told.value, RecordError)
    close_database(open_database(other))
    before = everything(other)
    with pytest.raises(RecordError, match=re.escape(expected)):
        import_database(exported, other)
    assert everything(other) == before
    assert [name for name in os.listdir(tmp_path) if name == "new.db" or name.endswith(".part")] == []


def test_every_byte_that_is_changed_is_noticed(exported: Path) -> None:
    """In turn: at some places of each file of an export."""
    places = 0
    db = open_database(":memory:")
    for path in sorted(exported.rglob("*")):
        if not path.is_file() or path.name == "manifest.json":
            continue
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 3)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with (
                pytest.raises(RecordError, match=re.escape(str(path.relative_to(exported)))),
                transaction(db),
            ):
                import_export(db, open_export(exported))
            places += 1
        path.write_bytes(whole)
    assert places > 60
    with transaction(db):
        import_export(db, open_export(exported))
    assert verify(db) == []
    close_database(db)


@pytest.mark.parametrize("where", ["nowhere", "file", "empty"])
def test_what_is_no_export_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match=r"no directory|no export"):
        import_database(tmp_path / where, tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()


def test_files_that_desktops_and_editors_leave_are_passed_over(exported: Path, tmp_path: Path) -> None:
    (exported / ".DS_Store").write_bytes(b"x")
    (exported / "memory" / ".soil.md.swp").write_bytes(b"x")
    (exported / ".git").mkdir()
    (exported / ".git" / "config").write_bytes(b"x")
    assert import_database(exported, tmp_path / "new.db").contents.sessions


# -- edits ---------------------------------------------------------------------------------------------


def test_a_note_that_a_person_corrected_is_taken_when_asked_for(exported: Path, tmp_path: Path) -> None:
    path = exported / "memory/crab/alice/note/soil.md"
    text = path.read_text()
    path.write_text(text.replace("Heavy clay", "Light sand").replace('["earth"', '["ground"').rstrip("\n"))
    found = import_database(exported, tmp_path / "new.db", edited=True)
    assert found.edited == ("memory/crab/alice/note/soil.md",)
    with offline(tmp_path / "new.db") as db:
        sql = "SELECT content, aliases FROM memory_entries WHERE name = 'soil'"
        assert db.execute(sql).fetchall() == [("Light sand,\n\nneeds the sand.", '["ground", "Löß"]')]
    assert verify_database(tmp_path / "new.db") == []


def test_what_an_entry_is_found_by_cannot_be_edited(exported: Path, tmp_path: Path) -> None:
    change(exported / "memory/crab/alice/note/soil.md", b'name: "soil"', b'name: "sand"')
    with pytest.raises(RecordError, match="must stay as they were exported"):
        import_database(exported, tmp_path / "new.db", edited=True)
    assert not (tmp_path / "new.db").exists()


def test_asking_for_edits_lets_no_session_be_edited(exported: Path, tmp_path: Path) -> None:
    change_a_value(exported)
    with pytest.raises(RecordError, match="it was changed"):
        import_database(exported, tmp_path / "new.db", edited=True)


# -- into what is there --------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A file with sessions of other people, whose turns have the same ids."""
    path = tmp_path / "other.db"
    with Runtime.open(path, ScriptedModel()) as rt:
        rt.add_agent(AgentConfig(name="crab", auto_title=False))
        for title in ("one", "two"):
            rt.send(topic(rt, title, sender="carol"), "hello", key=title)
    return path


def test_an_import_comes_beside_what_is_there(exported: Path, lived_in: Path, other: Path) -> None:
    before, added = everything(other), everything(lived_in)
    found = import_database(exported, other)
    assert found.renumbered == 2
    assert verify_database(other) == []
    after = everything(other)
    assert after["sessions"] == before["sessions"] + added["sessions"]
    assert after["turns"][:2] == before["turns"]
    assert len(after["turns"]) == len(before["turns"]) + len(added["turns"])
    assert len({row[1] for row in after["turns"]}) == len(after["turns"])
    assert after["deleted_sessions"] == added["deleted_sessions"]
    assert [row[:2] + row[3:] for row in after["entries"][-9:]] == [
        row[:2] + row[3:] for row in added["entries"][-9:]
    ]
    moved = {row[1] for row in after["turns"]} - {row[1] for row in added["turns"]}
    assert all(id_ > 941 for id_ in moved), "above every id of both files"


def test_new_ids_are_none_that_the_import_brings_itself(other: Path, tmp_path: Path) -> None:
    with Runtime.open(tmp_path / "more.db", ScriptedModel()) as rt:
        rt.add_agent(AgentConfig(name="crab", auto_title=False))
        for title in ("three", "four", "five"):
            rt.send(topic(rt, title), title)
    export_database(tmp_path / "more.db", tmp_path / "more")
    assert import_database(tmp_path / "more", other).renumbered == 2
    assert [row[1] for row in everything(other)["turns"]] == [1, 2, 4, 5, 3]
    assert verify_database(other) == []


def test_a_session_that_is_there_already_is_named_and_nothing_is_stored(
    exported: Path, lived_in: Path, tmp_path: Path
) -> None:
    import_database(exported, tmp_path / "new.db")
    before = everything(tmp_path / "new.db")
    with offline(lived_in) as db:
        ((first,),) = db.execute("SELECT handle FROM sessions ORDER BY id LIMIT 1").fetchall()
    with pytest.raises(StorageError, match=f"{first}.jsonl: the session {first} is stored here already"):
        import_database(exported, tmp_path / "new.db")
    assert everything(tmp_path / "new.db") == before


def test_memory_with_other_content_is_named_and_nothing_is_stored(exported: Path, other: Path) -> None:
    with Runtime.open(other, ScriptedModel()) as rt:
        rt.add_agent(AgentConfig(name="crab"))
        rt.memory.remember("crab", "alice", "soil", "something else")
    before = everything(other)
    with pytest.raises(StorageError, match=r"soil\.md: the note 'soil' of 'crab' is stored here with other"):
        import_database(exported, other)
    assert everything(other) == before


def test_equal_memory_is_no_clash(exported: Path, lived_in: Path, tmp_path: Path) -> None:
    import_database(exported, tmp_path / "new.db")
    with offline(tmp_path / "new.db") as db:
        for session in list_sessions(db):
            delete_session(db, session.handle, at=9.0)
        db.conn.commit()
    import_database(exported, tmp_path / "new.db")
    assert everything(tmp_path / "new.db")["memory_entries"] == everything(lived_in)["memory_entries"]
    assert verify_database(tmp_path / "new.db") == []


def test_an_import_that_is_interrupted_stores_nothing(exported: Path, other: Path, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    before = everything(other)
    for path in (other, tmp_path / "new.db"):
        with pytest.raises(KeyboardInterrupt):
            import_database(exported, path, progress=interrupt)
    assert everything(other) == before
    assert sorted(os.listdir(tmp_path)) == ["export", "other.db"]


def test_a_new_file_that_could_not_be_closed_leaves_no_wal_either(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave_the_wal(db: Database) -> None:  # as where the disk has no room for what is in it
        db.conn.interrupt()
        db.close()

    def interrupt(done: int, _total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(copies, "close_database", leave_the_wal)
    with pytest.raises(KeyboardInterrupt):
        import_database(exported, tmp_path / "new.db", progress=interrupt)
    assert os.listdir(tmp_path) == ["export"]


def test_a_full_disk_stores_nothing_of_an_import(exported: Path, other: Path) -> None:
    before = everything(other)

    def fill(done: int, _total: int) -> None:
        if done == 1:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        import_database(exported, other, progress=fill)
    assert everything(other) == before


def test_an_unfinished_turn_goes_on_where_it_is_imported(
    exported: Path, tmp_path: Path, runtimes: Runtimes
) -> None:
    import_database(exported, tmp_path / "new.db")
    rt = runtimes.open(path=tmp_path / "new.db", agents=(), recover="hold")
    rt.add_agent(AgentConfig(name="crab", auto_title=False))
    (left,) = rt.unfinished()
    (ticket, *_) = rt.tickets(rt.load(left.handle))
    assert ticket.result().text == "never answered"
