"""Opening the file: exclusive, durable, migrated, and refused without a trace when it is not ours."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import gevent
import pytest
import sqlite_utils
from sqlite_utils import hookimpl
from sqlite_utils.plugins import pm
from support import folder_for_all  # noqa: F401 - a fixture

from persistence import database as database_module
from persistence import newtables
from persistence.database import close_database, open_database
from persistence.errors import DatabaseInUse, DatabaseTooNew, DatabaseUnusable, StorageError
from persistence.migrations import MIGRATIONS_TABLE, NAMES, TABLES, migrations
from persistence.sessions import open_session

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


@pytest.fixture
def db(path: Path) -> Iterator[sqlite_utils.Database]:
    db = open_database(path)
    yield db
    close_database(db)


def pragma(db: sqlite_utils.Database, name: str) -> object:
    return db.execute(f"PRAGMA {name}").fetchall()[0][0]


def digest(directory: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(directory.iterdir())}


def run(code: str, *args: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, **options)  # type: ignore[call-overload,no-any-return]


OPEN = """
import sys
from persistence.database import open_database
from persistence.errors import StorageError
try:
    open_database(sys.argv[1])
except StorageError as error:
    print(type(error).__name__, error)
else:
    print("opened")
"""


def test_trap_20_settings_are_the_ones_that_nothing_is_lost_with(db: sqlite_utils.Database) -> None:
    assert pragma(db, "journal_mode") == "wal"
    assert pragma(db, "synchronous") == 2
    assert pragma(db, "foreign_keys") == 1
    assert pragma(db, "locking_mode") == "exclusive"
    assert pragma(db, "wal_autocheckpoint") * pragma(db, "page_size") <= 32 << 20  # type: ignore[operator]
    assert pragma(db, "journal_size_limit") == 16 << 20


def test_trap_20_no_installed_plugin_runs(path: Path) -> None:
    class Plugin:
        prepared = 0

        @hookimpl
        def prepare_connection(self, conn: sqlite3.Connection) -> None:
            Plugin.prepared += 1

    pm.register(Plugin(), "noisy")
    try:
        sqlite_utils.Database(memory=True)
        assert Plugin.prepared == 1, "the plugin is there"
        close_database(open_database(path))
    finally:
        pm.unregister(name="noisy")
    assert Plugin.prepared == 1


def test_trap_20_the_connection_may_be_used_in_another_native_thread(db: sqlite_utils.Database) -> None:
    pool = gevent.get_hub().threadpool
    assert pool.apply(lambda: db.execute("SELECT 1").fetchall()) == [(1,)]


def test_foreign_keys_are_enforced(db: sqlite_utils.Database) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        db.execute("INSERT INTO events (session_id, turn_id, at, body) VALUES (99, 1, 1.0, '{}')")


def test_every_table_is_strict(db: sqlite_utils.Database) -> None:
    for name in TABLES:
        if not name.endswith("_fts"):
            assert db.table(name).strict, name
    with pytest.raises(sqlite3.IntegrityError, match="cannot store TEXT value in REAL"):
        db.execute("INSERT INTO deleted_sessions VALUES ('h', 'yesterday', 0, 0)")


def test_unknown_states_and_kinds_are_refused(db: sqlite_utils.Database) -> None:
    opened = open_session(
        db, agent="a", sender="s", topic="t", handle="h", at=1.0, scope="s", description="d"
    )
    assert opened is not None
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        db.execute(
            """INSERT INTO turns (id, session_id, sender, content, state, accepted_at)
                VALUES (1, ?, 's', 'hi', 'asleep', 1.0)""",
            [opened[0].id],
        )
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        db.execute(
            """INSERT INTO memory_entries (agent, scope, kind, name, content, created_at)
                VALUES ('a', 's', 'rumour', 'n', 'c', 1.0)"""
        )


def test_looking_up_a_topic_is_an_index_lookup(db: sqlite_utils.Database) -> None:
    plan = db.execute(
        """EXPLAIN QUERY PLAN SELECT * FROM sessions s
            WHERE s.agent = 'a' AND s.sender = 'b' AND s.topic = 'c' ORDER BY s.id DESC LIMIT 1"""
    ).fetchall()
    assert "SEARCH s USING INDEX sessions_by_topic (agent=? AND sender=? AND topic=?)" in str(plan)
    assert "TEMP B-TREE" not in str(plan)


def test_unfinished_turns_are_found_by_their_own_index(db: sqlite_utils.Database) -> None:
    sql = "SELECT * FROM turns WHERE state IN ('queued', 'running') ORDER BY session_id, id"
    assert "turns_unfinished" in str(db.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall())


def test_a_memory_database_works() -> None:
    db = open_database(":memory:")
    assert db.table("sessions").exists()
    close_database(db)


def test_two_memory_databases_are_two() -> None:
    one, other = open_database(":memory:"), open_database(":memory:")
    open_session(one, agent="a", sender="s", topic="t", handle="h", at=1.0, scope="s", description="d")
    assert other.execute("SELECT count(*) FROM sessions").fetchall() == [(0,)]
    close_database(one)
    close_database(other)


def test_what_was_stored_is_there_when_opened_again(path: Path) -> None:
    for expected in (False, True):
        db = open_database(path)
        opened = open_session(
            db, agent="a", sender="s", topic="t", handle="h", at=1.0, scope="s", description="d"
        )
        assert opened is not None
        assert opened[1] is expected
        close_database(db)
    assert [f.name for f in path.parent.iterdir()] == ["agents.db"], "closing leaves no WAL"


def test_strange_names_are_just_names(tmp_path: Path) -> None:
    for name in ("ünï?mode=memory.db", "with space#%41&x.db", "file:x.db"):
        db = open_database(tmp_path / name)
        close_database(db)
        assert (tmp_path / name).stat().st_size > 0
    relative = os.path.relpath(tmp_path / "relative.db")
    close_database(open_database(relative))
    assert (tmp_path / "relative.db").exists()


# -- in use ----------------------------------------------------------------------------------------


def test_a_second_opening_in_this_process_is_refused(db: sqlite_utils.Database, path: Path) -> None:
    with pytest.raises(DatabaseInUse, match="by another Runtime or connection"):
        open_database(path)
    link = path.with_name("link.db")
    link.symlink_to(path)
    with pytest.raises(DatabaseInUse):
        open_database(link)


def test_a_second_process_is_refused_and_may_come_when_the_first_is_done(path: Path) -> None:
    db = open_database(path)
    assert run(OPEN, path).stdout.startswith("DatabaseInUse")
    with pytest.raises(DatabaseInUse):  # the refusals here must not have let go of the lock
        open_database(path)
    assert run(OPEN, path).stdout.startswith("DatabaseInUse")
    close_database(db)
    assert run(OPEN, path).stdout.strip() == "opened"


def test_another_programs_reader_is_in_use_too(path: Path) -> None:
    close_database(open_database(path))
    reader = sqlite3.connect(path)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM sessions").fetchall()
    with pytest.raises(DatabaseInUse):
        open_database(path)
    reader.close()
    close_database(open_database(path))


def test_trap_22_processes_that_start_together_do_not_migrate_together(path: Path) -> None:
    code = OPEN.replace('print("opened")', 'print("opened", flush=True); sys.stdin.read()')
    command = [sys.executable, "-c", code, str(path)]
    several = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(3)
    ]
    said = sorted(p.stdout.readline().split()[0] for p in several if p.stdout is not None)
    for p in several:
        p.communicate("")
    assert said == ["DatabaseInUse", "DatabaseInUse", "opened"]
    db = open_database(path)
    assert migrations.pending(db) == []
    close_database(db)


def test_waiting_for_the_lock_is_short() -> None:
    assert database_module.LOCK_WAIT_S <= 1.0


# -- unusable --------------------------------------------------------------------------------------


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnusable, match="is a directory; give the path of a file"):
        open_database(tmp_path)


def test_a_missing_parent_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnusable, match="there is no directory"):
        open_database(tmp_path / "no" / "agents.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "nul\0byte.db"])
def test_an_impossible_path_is_refused(name: str) -> None:
    with pytest.raises(DatabaseUnusable):
        open_database(name)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatabaseUnusable, match="not a regular file"):
        open_database(tmp_path / "pipe")


@pytest.mark.parametrize("content", [b"hello\n", b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 3000])
def test_what_is_no_database_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    before = digest(path.parent)
    with pytest.raises(DatabaseUnusable) as caught:
        open_database(path)
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert digest(path.parent) == before


def test_a_database_of_another_program_is_refused_and_left_as_it_is(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE cheeses (name TEXT)")
    other.commit()
    other.close()
    before = digest(path.parent)
    with pytest.raises(DatabaseUnusable, match="another program"):
        open_database(path)
    assert digest(path.parent) == before


def test_a_newer_file_is_refused_and_not_migrated(path: Path) -> None:
    db = open_database(path)
    db.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('palaver', 'm999_x', 'now')"
    )
    db.execute("DELETE FROM _sqlite_migrations WHERE name = ?", [NAMES[-1]])
    close_database(db)
    before = digest(path.parent)
    with pytest.raises(DatabaseTooNew, match="m999_x"):
        open_database(path)
    assert digest(path.parent) == before


def test_another_set_of_migrations_in_the_file_is_none_of_ours(path: Path) -> None:
    db = open_database(path)
    db.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('other', 'm999_x', 'now')"
    )
    close_database(db)
    close_database(open_database(path))


def test_a_file_that_lost_a_table_is_refused(path: Path) -> None:
    db = open_database(path)
    db.execute("DROP TABLE events")
    close_database(db)
    with pytest.raises(DatabaseUnusable, match="its table events is missing"):
        open_database(path)


def test_a_damaged_schema_is_refused(path: Path) -> None:
    close_database(open_database(path))
    content = bytearray(path.read_bytes())
    content[100:4096] = b"\xee" * (4096 - 100)
    path.write_bytes(content)
    with pytest.raises(DatabaseUnusable, match="damaged"):
        open_database(path)


def test_a_read_only_file_is_refused(shown_folder: Path) -> None:
    path = shown_folder / "agents.db"
    close_database(open_database(path))
    path.chmod(0o444)
    # The superuser may write anything, so somebody else has to try.
    leave = "import os\nif os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    said = run(OPEN.replace("try:", f"{leave}try:"), path)
    assert said.stdout.startswith("DatabaseUnusable"), said
    assert "is read-only" in said.stdout


def test_without_create_a_missing_or_empty_file_is_refused(path: Path) -> None:
    with pytest.raises(DatabaseUnusable, match="no such file"):
        open_database(path, create=False)
    assert not path.exists()
    path.touch()
    with pytest.raises(DatabaseUnusable, match="is empty"):
        open_database(path, create=False)
    assert path.read_bytes() == b""
    close_database(open_database(path))
    close_database(open_database(path, create=False))


def test_every_refusal_is_a_storage_error() -> None:
    for error in (DatabaseInUse, DatabaseTooNew, DatabaseUnusable):
        assert issubclass(error, StorageError)


# -- migrations ------------------------------------------------------------------------------------


def test_the_known_migrations_are_the_ones_that_are_applied(db: sqlite_utils.Database) -> None:
    assert tuple(each.name for each in migrations.applied(db)) == NAMES
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables.issuperset(TABLES)


@pytest.fixture(params=[True, False], ids=["copied", "migrated"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tables are made as where SQLite can copy a database from bytes, and as where it cannot."""
    monkeypatch.setattr(newtables, "_COPIES", request.param)
    newtables.image.cache_clear()
    yield
    newtables.image.cache_clear()


def content(conn: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables, without the moments of the migrations."""
    schema = conn.execute("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master").fetchall()
    tables = [name for kind, name, *_ in schema if kind == "table"]
    rows = {name: conn.execute(f'SELECT * FROM "{name}"').fetchall() for name in tables}
    rows[MIGRATIONS_TABLE] = [row[:-1] for row in rows[MIGRATIONS_TABLE]]
    return {"the schema": schema, **rows}


@pytest.mark.usefixtures("made")
def test_a_new_database_holds_what_the_migrations_make_one_after_the_other(path: Path) -> None:
    one_by_one = sqlite_utils.Database(memory=True)
    for name in (*NAMES[1:], None):
        migrations.apply(one_by_one, stop_before=name)
    expected = content(one_by_one.conn)
    assert len(expected["the schema"]) > 30
    for new in (path, ":memory:"):
        db = open_database(new)
        assert content(db.conn) == expected
        assert [pragma(db, "user_version"), pragma(db, "integrity_check")] == [0, "ok"]
        assert pragma(db, "journal_mode") == ("memory" if new == ":memory:" else "wal")
        close_database(db)


@pytest.mark.usefixtures("made")
def test_a_new_file_says_when_its_own_tables_were_made(path: Path) -> None:
    close_database(open_database(":memory:"))
    before = datetime.now(UTC).replace(microsecond=0)
    db = open_database(path)
    for each in migrations.applied(db):
        assert before <= datetime.fromisoformat(each.applied_at) <= datetime.now(UTC)
    close_database(db)


@pytest.mark.usefixtures("made")
def test_a_migration_that_fails_leaves_a_new_file_without_tables(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(db: sqlite_utils.Database) -> None:
        raise sqlite3.OperationalError("no luck")

    last = migrations._migrations[-1]  # noqa: SLF001 - the only way to make a released migration fail
    monkeypatch.setattr(last, "fn", fail)
    with pytest.raises(DatabaseUnusable, match="no luck"):
        open_database(path)
    monkeypatch.undo()
    look = sqlite3.connect(path)
    assert look.execute("SELECT name FROM sqlite_master").fetchall() == []
    look.close()
    close_database(open_database(path))


def test_a_partly_migrated_file_is_finished(path: Path) -> None:
    conn = sqlite3.connect(path)
    old = sqlite_utils.Database(conn, execute_plugins=False)
    migrations.apply(old, stop_before=NAMES[-1])
    conn.commit()
    conn.close()
    db = open_database(path)
    assert db.table("memory_entries").exists()
    close_database(db)
