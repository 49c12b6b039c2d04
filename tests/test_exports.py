"""Exports and imports: nothing is lost, nothing leaves its directory, nothing damaged is taken."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import gevent
import pytest
from attrs import asdict
from exports_support import (
    everything,
    exported_directory,  # noqa: F401 - a fixture
    files_of,
    lived_in_file,  # noqa: F401 - a fixture
    of_one_disk,  # noqa: F401 - a fixture
    round_trip,
)
from gevent.monkey import get_original
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import CRAB, ROOT, Runtimes, in_thread, opened_runtimes, texts, topic  # noqa: F401 - a fixture

from actors.models.dialogues import read_dialogues
from palaver import (
    AgentConfig,
    DatabaseInUse,
    InvalidInput,
    Runtime,
    ScriptedModel,
    StorageError,
    copies,
)
from palaver.copies import Contents, export_database, import_database
from palaver.offline import offline, verify_database
from palaver.replay import replay
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence import exports, imports, names, newfiles
from persistence.bundles import KEYS, MEMORY, PARTS, SESSION
from persistence.database import close_database, open_database
from persistence.inline import InlineWorker
from persistence.markdown import decode_memory, encode_memory
from persistence.migrations import TABLES
from persistence.names import HASH_CHARS, file_name
from persistence.sessions import list_sessions
from persistence.sources import seeded_sources

allocate_lock = get_original("_thread", "allocate_lock")

RECORDED = Path(__file__).parents[1] / "palaver" / "data"


# -- round trips ---------------------------------------------------------------------------------------


def test_a_round_trip_loses_nothing(lived_in: Path, tmp_path: Path) -> None:
    rows = everything(lived_in)
    assert all(rows[table] for table in TABLES), "some of everything"
    round_trip(lived_in, tmp_path)
    assert verify_database(tmp_path / "back.db") == []


def test_every_column_that_is_stored_is_exported() -> None:
    db = open_database(":memory:")
    numbers_of_the_file = {"id", "session_id"}
    kept = {"turns", "steers", "timers"}  # their ids are known outside
    for table, columns in exports.KINDS.values():
        stored = {row[1] for row in db.execute(f"PRAGMA table_info({table})").fetchall()}
        assert {*columns.split(", ")} == stored - numbers_of_the_file | ({"id"} if table in kept else set())
    stored = {row[1] for row in db.execute("PRAGMA table_info(memory_entries)").fetchall()}
    assert {*MEMORY.split(", ")} == stored - {"id"}
    tables = {table for table, _ in exports.KINDS.values()} | {"memory_entries", "memory_entries_fts"}
    assert tables == set(TABLES)
    close_database(db)


def test_real_dialogues_come_back_as_they_were(tmp_path: Path) -> None:
    dialogues = read_dialogues(next(RECORDED.glob("*.jsonl")))[:40]
    assert replay(dialogues, tmp_path / "agents.db", compact_threshold=400).ok
    round_trip(tmp_path / "agents.db", tmp_path)
    assert verify_database(tmp_path / "back.db") == []


def test_an_empty_database_comes_back_empty(tmp_path: Path) -> None:
    close_database(open_database(tmp_path / "agents.db"))
    assert [*files_of(round_trip(tmp_path / "agents.db", tmp_path))] == [
        "SHA256SUMS",
        "deleted.jsonl",
        "manifest.json",
    ]


def test_ids_are_not_given_again_after_a_round_trip(
    lived_in: Path, tmp_path: Path, runtimes: Runtimes
) -> None:
    with offline(lived_in) as db:
        highest = imports_highest(db)
    round_trip(lived_in, tmp_path)
    rt = runtimes.open(path=tmp_path / "back.db", agents=(), recover="hold")
    rt.add_agent(AgentConfig(name="crab", auto_title=False))
    assert rt.submit(topic(rt, "new"), "hello").turn_id > highest
    assert sum(each.turns + each.steers for each in rt.unfinished()) == 3


def imports_highest(db: Any) -> int:
    found: int = db.execute(
        "SELECT max((SELECT max(id) FROM turns), (SELECT max(last_turn) FROM deleted_sessions))"
    ).fetchall()[0][0]
    return found


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAME = st.one_of(
    ANY.filter(bool),
    st.sampled_from(
        ["a", "A", "é", "e\u0301", "..", ".", "a/b", "nul", "Con.txt", "x" * 300, "-", "~", "_shared"]
    ),
)
WHEN = st.floats(0, 1e10)
MAYBE = st.one_of(st.none(), ANY)
BODY = st.one_of(
    ANY, st.dictionaries(ANY, st.one_of(ANY, st.integers(), WHEN), max_size=3).map(exports.compact)
)


@st.composite
def databases(draw: st.DrawFn) -> list[tuple[str, tuple[Any, ...]]]:
    """Rows of all tables; what they mean is of no matter here."""
    rows: list[tuple[str, tuple[Any, ...]]] = []
    handles = draw(st.lists(NAME, unique=True, max_size=4))
    for number, handle in enumerate(handles, start=1):
        session = (
            number,
            handle,
            *(draw(ANY) for _ in range(5)),
            draw(WHEN),
            draw(WHEN),
            3,
            4,
            9,
            draw(MAYBE),
            2,
        )
        rows.append((f"sessions (id, {SESSION})", session))
        for turn in range(draw(st.integers(0, 2))):
            id_ = 10 * number + turn
            ended = draw(st.sampled_from(["done", "running", "failed"]))
            times = (draw(WHEN), draw(st.one_of(st.none(), WHEN)))
            texts = (draw(MAYBE), draw(MAYBE), draw(MAYBE))
            rows.append(
                (
                    f"turns (session_id, {PARTS['turns']})",
                    (
                        number,
                        id_,
                        draw(ANY),
                        draw(ANY),
                        ended,
                        1,
                        *texts,
                        *times,
                        draw(st.one_of(st.none(), BODY)),
                        draw(MAYBE),
                    ),
                )
            )
            rows.append((f"keys ({KEYS})", (draw(ANY), draw(ANY), f"{draw(ANY)}{id_}", id_, draw(WHEN))))
            steer = (
                number,
                id_ + 10,  # as a turn of the next session: in old files they have numbers of their own
                id_,
                draw(ANY),
                draw(ANY),
                draw(WHEN),
                draw(st.sampled_from([None, id_])),
            )
            rows.append((f"steers (session_id, {PARTS['steers']})", steer))
            rows.append(
                (f"entries (session_id, {PARTS['entries']})", (number, turn, id_, draw(BODY), draw(WHEN)))
            )
            rows.append((f"events (session_id, {PARTS['events']})", (number, id_, draw(WHEN), draw(BODY))))
            rows.append(
                (
                    f"compactions (session_id, {PARTS['compactions']})",
                    (number, turn, draw(ANY), draw(ANY), draw(WHEN)),
                )
            )
    for handle in draw(st.lists(ANY, unique=True, max_size=2)):
        rows.append(
            (f"deleted_sessions ({exports.DELETED})", (handle, draw(st.one_of(st.none(), WHEN)), 7, 8))
        )
    kind = st.sampled_from(["note", "archive", "topic"])
    for agent, scope, each, name in draw(st.lists(st.tuples(NAME, ANY, kind, NAME), unique=True, max_size=6)):
        aliases = draw(
            st.one_of(ANY, st.lists(ANY, max_size=2).map(lambda x: json.dumps(x, ensure_ascii=False)))
        )
        rows.append(
            (
                f"memory_entries ({MEMORY})",
                (agent, scope, each, name, draw(ANY), aliases, draw(WHEN), draw(MAYBE)),
            )
        )
    return rows


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=databases())
def test_whatever_is_stored_comes_back(
    rows: list[tuple[str, tuple[Any, ...]]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exports, "sync_files", lambda _directory, _paths: None)
    tmp_path = tmp_path_factory.mktemp("any")
    db = open_database(tmp_path / "agents.db")
    for into, values in rows:
        db.execute(f"INSERT INTO {into} VALUES ({','.join('?' * len(values))})", values)
    db.conn.commit()
    close_database(db)
    round_trip(tmp_path / "agents.db", tmp_path)
    shutil.rmtree(tmp_path)


# -- names ---------------------------------------------------------------------------------------------

EVIL = [
    "../../etc/passwd",
    "..",
    ".",
    "",
    " ",
    "a/b",
    "a\\b",
    "C:evil",
    "-rf",
    "~",
    "_shared",
    "con",
    "CON",
    "nul.txt",
    "com1",
    "lpt9.md",
    "a",
    "A",
    "a.",
    "a ",
    "\u00e9",
    "e\u0301",
    "\ufb01",
    "fi",
    "\u0130",
    "i\u0307",
    "ß",
    "ss",
    "名前" * 100,
    "n" * 48,
    "n" * 49,
    "n" * 400,
    "\u202egnp.exe",
    "\u2028",
    "tab\tnew\nline\x07",
    "\U0001f980",
    "a~b",
    "name.md",
    "name.jsonl",
    ".hidden",
    "x" * 60 + "\u0301" * 40,
]


def folded(name: str) -> str:
    """As the most forgetful file system knows it."""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())


def test_different_names_have_different_files_whatever_the_file_system_forgets() -> None:
    made = [file_name(name) for name in EVIL]
    assert len({folded(name) for name in made}) == len(EVIL)
    for name in made:
        assert re.fullmatch(r"[^/\\:*?\"<>|\x00-\x1f.~_-][^/\\:*?\"<>|\x00-\x1f]*|~[a-z2-7]+", name), name
        assert len(name.encode()) < 200
        assert not re.fullmatch(r"(?i)(con|nul|aux|prn|com\d|lpt\d)(\..*)?", name)
        assert not name.endswith((".", " "))
    assert file_name("soil") == "soil"
    assert file_name("dialogue-17.b_c") == "dialogue-17.b_c"
    assert file_name("Sailing on Sunday").startswith("sailing-on-sunday~")
    assert file_name("名前").startswith("名前~")


@given(st.lists(ANY, unique=True, min_size=2, max_size=2))
def test_two_names_never_share_a_file(names: list[str]) -> None:
    assert len({folded(file_name(name)) for name in names}) == 2


@pytest.mark.parametrize("chars", [HASH_CHARS, 0])  # with 0, every name that needs a hash shares it
def test_evil_names_stay_inside_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chars: int
) -> None:
    monkeypatch.setattr(names, "HASH_CHARS", chars)
    monkeypatch.setattr(exports, "sync_files", lambda _directory, _paths: None)
    db = open_database(tmp_path / "agents.db")
    for number, name in enumerate(EVIL):
        if name:
            db.execute(
                f"INSERT INTO sessions ({SESSION}) VALUES (?, ?, ?, ?, ?, '', 1, 2, 3, 4, 0, NULL, 0)",
                [name, name, name, name, name],
            )
        for place in ("agent", "scope", "name"):
            at = {"agent": "crab", "scope": "alice", "name": f"name{number}", place: name}
            if at["name"]:
                db.execute(
                    f"INSERT INTO memory_entries ({MEMORY}) VALUES (?, ?, 'note', ?, ?, '[]', 1, NULL)",
                    [at["agent"], at["scope"], at["name"], f"in {place}"],
                )
    db.conn.commit()
    close_database(db)
    before = {*os.listdir(tmp_path), *os.listdir(tmp_path.parent)}
    directory = round_trip(tmp_path / "agents.db", tmp_path)
    assert {*os.listdir(tmp_path), *os.listdir(tmp_path.parent)} - before == {"one", "two", "back.db"}
    assert (directory / "memory" / "crab" / "_shared" / "note").is_dir()
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=directory, check=False)
    assert done.returncode == 0


_ASCII = """
import sys
from persistence.database import open_database, close_database
from palaver.copies import export_database, import_database
assert sys.getfilesystemencoding() == "ascii", sys.getfilesystemencoding()
db = open_database("a.db")
db.execute("INSERT INTO memory_entries (agent, scope, kind, name, content, created_at)"
           " VALUES ('\\u540d', '', 'note', '\\u540d\\u524d', 'x', 1)")
db.conn.commit()
close_database(db)
export_database("a.db", "out")
print(import_database("out", "b.db").contents.memory)
"""


def test_an_export_works_where_the_locale_lacks_the_characters(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", _ASCII],
        cwd=tmp_path,
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "1\n", done.stderr


# -- what people and jq read ---------------------------------------------------------------------------


def test_a_session_file_is_lines_of_typed_and_versioned_json(lived_in: Path, exported: Path) -> None:
    with offline(lived_in) as db:
        first = min(list_sessions(db), key=lambda each: each.created_at)
    file = exported / "sessions" / f"{first.handle}.jsonl"
    lines = [json.loads(line) for line in file.read_text().split("\n")[:-1]]
    assert {line["v"] for line in lines} == {1}
    assert list(dict.fromkeys(line["type"] for line in lines)) == [
        "session",
        "turn",
        "steer",
        "entry",
        "event",
        "dead_letter",
        "key",
        "end",
    ]
    assert (lines[0]["agent"], lines[0]["sender"], lines[0]["topic"]) == ("crab", "alice", "boats")
    said = [line["body"] for line in lines if line["type"] == "entry"]
    assert (said[0]["role"], said[0]["content"]) == ("user", "hello\n")
    results = [line["result"] for line in lines if line["type"] == "turn" and line["state"] == "done"]
    assert results[0]["text"] == "heard: hello\n"


def test_a_note_is_a_markdown_file_that_a_person_can_read(exported: Path) -> None:
    file = exported / "memory" / "crab" / "alice" / "note" / "soil.md"
    head, _, content = file.read_text().partition("\n---\n")
    assert content == "Heavy clay,\n\nneeds the sand.\n"
    assert 'name: "soil"' in head
    assert 'aliases: ["earth", "Löß"]' in head
    assert head.startswith("---\npalaver-memory: 1\nagent: ")


@given(st.fixed_dictionaries(dict.fromkeys(("agent", "scope", "kind", "name", "content"), ANY)), ANY, WHEN)
def test_a_memory_file_is_read_back_as_it_was(row: dict[str, Any], alias: str, at: float) -> None:
    row |= {"aliases": json.dumps([alias], ensure_ascii=False), "created_at": at, "handle": None}
    data = encode_memory(row)
    assert decode_memory(data, "x.md") == row
    head = data.decode().partition("\n---\n")[0].split("\n")
    assert len(head) == 9
    assert all(line.isprintable() for line in head)


# -- targets of an export ------------------------------------------------------------------------------


def test_an_empty_directory_is_taken_and_one_that_is_not_is_refused(lived_in: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert isinstance(export_database(lived_in, tmp_path / "empty"), Contents)
    before = files_of(tmp_path / "empty")
    with pytest.raises(StorageError, match="is not empty"):
        export_database(lived_in, tmp_path / "empty")
    assert files_of(tmp_path / "empty") == before


@pytest.mark.parametrize(
    ("target", "words"),
    [("file", "is no directory"), ("nowhere/out", "no directory"), ("", "is no path"), (".", "not empty")],
)
def test_a_target_that_is_no_directory_is_refused(
    lived_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, words: str
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=words):
        export_database(lived_in, target)
    assert os.listdir(tmp_path) == ["file"]


def test_the_working_directory_is_not_replaced(
    lived_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="give one in it"):
        export_database(lived_in, ".")
    assert os.listdir(tmp_path) == []


def test_an_export_that_fails_or_is_interrupted_leaves_nothing(
    lived_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int, total: int) -> None:
        assert 0 < done <= total
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_database(lived_in, tmp_path / "out", progress=interrupt)
    assert os.listdir(tmp_path) == []

    def full(_directory: str, _paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports, "sync_files", full)
    with pytest.raises(StorageError, match="No space left"):
        export_database(lived_in, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_an_export_whose_name_cannot_be_synced_is_not_left(
    lived_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fail(fd: int) -> None:
        if os.path.samestat(os.fstat(fd), os.stat(tmp_path)):
            raise OSError(5, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="Input/output"):
        export_database(lived_in, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_an_export_changes_nothing_in_the_file(lived_in: Path, tmp_path: Path) -> None:
    before = lived_in.read_bytes()
    export_database(lived_in, tmp_path / "out")
    assert lived_in.read_bytes() == before


def test_what_an_export_wrote_is_synced_before_it_has_its_name(
    lived_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = newfiles._sync  # noqa: SLF001 - the one place that syncs

    def note(path: str | bytes) -> None:
        assert not (tmp_path / "out").exists() or os.fsdecode(path) == str(tmp_path)
        synced.append(os.fsdecode(path).rpartition(".part/")[2])
        real(path)

    monkeypatch.setattr(newfiles, "_sync", note)
    export_database(lived_in, tmp_path / "out")
    assert {*synced} >= {*files_of(tmp_path / "out"), "memory", "memory/crab", "sessions"}


# -- in use, and from a runtime ------------------------------------------------------------------------


def test_a_file_in_use_is_neither_exported_nor_imported_into(
    exported: Path, tmp_path: Path, runtimes: Runtimes
) -> None:
    rt = runtimes.open()
    with pytest.raises(DatabaseInUse):
        in_thread(export_database, rt.path, tmp_path / "out")
    with pytest.raises(DatabaseInUse):
        in_thread(import_database, exported, rt.path)
    assert not (tmp_path / "out").exists()


def test_a_runtime_exports_while_it_works(
    runtimes: Runtimes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rt = runtimes.open()
    cids = [topic(rt, f"topic {number}") for number in range(10)]
    for cid in cids:
        rt.send(cid, "said before")
    gate, real = allocate_lock(), copies.export_database
    gate.acquire()

    def slow(path: Path, directory: Path, *, progress: Any) -> Contents:
        def held(done: int, total: int) -> None:
            if done == 3:
                gate.acquire()
            progress(done, total)

        return real(path, directory, progress=held)

    monkeypatch.setattr(copies, "export_database", slow)
    exporting = gevent.spawn(rt.export, tmp_path / "out")
    for sent in range(40):
        rt.send(cids[sent % 10], f"said meanwhile {sent}")
        if sent % 5 == 0:
            rt.compact(cids[sent % 10])
    assert not exporting.ready()
    gate.release()
    assert exporting.get(timeout=60).sessions == 10
    import_database(tmp_path / "out", tmp_path / "back.db")
    assert verify_database(tmp_path / "back.db") == [], "of one moment: each archive has its marker"
    assert sorted(name for name in os.listdir(tmp_path) if name.startswith(".palaver")) == []
    back = runtimes.open(path=tmp_path / "back.db")
    for session in back.sessions():
        assert texts(back.transcript(session.handle))[0] == ("user", "said before")


def test_a_caller_that_is_killed_gives_its_export_up(
    runtimes: Runtimes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rt = runtimes.open()
    for number in range(20):
        rt.send(topic(rt, f"topic {number}"), "hello")
    began, gate, ended = (allocate_lock() for _ in range(3))
    for lock in (began, gate, ended):
        lock.acquire()
    real = copies.export_database

    def slow(path: Path, directory: Path, *, progress: Any) -> Contents:
        def held(done: int, total: int) -> None:
            if done == 3:
                began.release()
                gate.acquire()
            progress(done, total)

        try:
            return real(path, directory, progress=held)
        finally:
            ended.release()

    monkeypatch.setattr(copies, "export_database", slow)
    exporting = gevent.spawn(rt.export, tmp_path / "out")
    in_thread(began.acquire)
    exporting.kill()
    gate.release()
    in_thread(ended.acquire)
    assert not (tmp_path / "out").exists()
    assert [name for name in os.listdir(tmp_path) if name.startswith(".palaver")] == []


def test_a_simulated_runtime_exports_too(tmp_path: Path) -> None:
    def live() -> Contents:
        worker = InlineWorker(":memory:", schedule=gevent.spawn_later)
        sources = seeded_sources(VirtualClock(), 1)
        with Runtime.open(":memory:", ScriptedModel(), worker=worker, sources=sources) as rt:
            rt.add_agent(CRAB)
            rt.send(topic(rt), "hello")
            return rt.export(tmp_path / "out")

    assert run_virtual(live).entries == 2
    assert import_database(tmp_path / "out", tmp_path / "back.db").contents.sessions == 1


def test_an_export_that_a_runtime_cannot_make_says_why(runtimes: Runtimes, tmp_path: Path) -> None:
    rt = runtimes.open()
    with pytest.raises(StorageError, match="not empty"):
        rt.export(tmp_path)
    with pytest.raises(InvalidInput):
        rt.export(None)  # type: ignore[arg-type]


def test_reports_are_plain_records(exported: Path, tmp_path: Path) -> None:
    found = import_database(exported, tmp_path / "new.db")
    assert asdict(found)["contents"]["sessions"] == 10
    assert isinstance(found, imports.Imported)
