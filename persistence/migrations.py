"""The schema, as ordered migrations. A migration that was released is never changed; add another."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

SET = "palaver"
MIGRATIONS_TABLE = Migrations.migrations_table

migrations = Migrations(SET)

TABLES = (
    "sessions",
    "deleted_sessions",
    "turns",
    "keys",
    "steers",
    "entries",
    "compactions",
    "events",
    "dead_letters",
    "timers",
    "memory_entries",
    "memory_entries_fts",
)


@migrations()
def m001_sessions(db: Database) -> None:
    """Sessions, and what is left of deleted ones."""
    # AUTOINCREMENT: a row id that was a deleted session's must not become another's.
    db.execute("""
        CREATE TABLE sessions (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            handle TEXT NOT NULL UNIQUE CHECK (handle <> ''),
            agent TEXT NOT NULL,
            sender TEXT NOT NULL,
            topic TEXT NOT NULL,
            scope TEXT NOT NULL,
            title TEXT NOT NULL DEFAULT '',
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL,
            uptime_ms INTEGER NOT NULL DEFAULT 0,
            revision INTEGER NOT NULL DEFAULT 0,
            next_seq INTEGER NOT NULL DEFAULT 0,
            archive TEXT,
            archive_seq INTEGER NOT NULL DEFAULT 0 CHECK (archive_seq BETWEEN 0 AND next_seq)
        ) STRICT""")
    db.execute("CREATE INDEX sessions_by_topic ON sessions (agent, sender, topic, id)")
    # The highest ids outlive the rows, so that no id is ever given twice.
    db.execute("""
        CREATE TABLE deleted_sessions (
            handle TEXT PRIMARY KEY,
            deleted_at REAL,
            last_turn INTEGER NOT NULL,
            last_steer INTEGER NOT NULL
        ) STRICT""")


@migrations()
def m002_turns(db: Database) -> None:
    """Accepted messages, their idempotency keys, steers."""
    db.execute("""
        CREATE TABLE turns (
            id INTEGER PRIMARY KEY,
            session_id INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
            sender TEXT NOT NULL,
            content TEXT NOT NULL,
            state TEXT NOT NULL
                CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled', 'closed')),
            attempts INTEGER NOT NULL DEFAULT 0,
            key TEXT,
            guest TEXT,
            tool_choice TEXT,
            accepted_at REAL NOT NULL,
            finished_at REAL,
            result TEXT,
            error TEXT
        ) STRICT""")
    db.execute("CREATE INDEX turns_by_session ON turns (session_id)")
    db.execute("CREATE INDEX turns_unfinished ON turns (session_id, id) WHERE state IN ('queued', 'running')")
    db.execute("""
        CREATE TRIGGER turns_stay_ended BEFORE UPDATE ON turns
        WHEN old.state NOT IN ('queued', 'running')
        BEGIN SELECT RAISE(ABORT, 'the turn has ended and cannot change any more'); END""")
    db.execute("""
        CREATE TABLE keys (
            agent TEXT NOT NULL,
            sender TEXT NOT NULL,
            key TEXT NOT NULL,
            turn_id INTEGER NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
            created_at REAL NOT NULL,
            PRIMARY KEY (agent, sender, key)
        ) STRICT, WITHOUT ROWID""")
    db.execute("CREATE INDEX keys_by_turn ON keys (turn_id)")
    db.execute("""
        CREATE TABLE steers (
            id INTEGER PRIMARY KEY,
            session_id INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
            turn_id INTEGER NOT NULL,
            sender TEXT NOT NULL,
            content TEXT NOT NULL,
            accepted_at REAL NOT NULL,
            applied_turn INTEGER
        ) STRICT""")
    db.execute("CREATE INDEX steers_by_session ON steers (session_id)")


@migrations()
def m003_history(db: Database) -> None:
    """Entries, compaction markers, the trace of turns."""
    # A rowid table on purpose: what many sessions append in one commit lands on the same few pages.
    db.execute("""
        CREATE TABLE entries (
            id INTEGER PRIMARY KEY,
            session_id INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
            seq INTEGER NOT NULL CHECK (seq >= 0),
            turn_id INTEGER NOT NULL,
            body TEXT NOT NULL,
            created_at REAL NOT NULL
        ) STRICT""")
    db.execute("CREATE UNIQUE INDEX entries_in_order ON entries (session_id, seq)")
    db.execute("""
        CREATE TABLE compactions (
            id INTEGER PRIMARY KEY,
            session_id INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
            seq INTEGER NOT NULL,
            archive TEXT NOT NULL,
            scope TEXT NOT NULL,
            created_at REAL NOT NULL
        ) STRICT""")
    db.execute("CREATE INDEX compactions_by_session ON compactions (session_id)")
    db.execute("""
        CREATE TABLE events (
            id INTEGER PRIMARY KEY,
            session_id INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
            turn_id INTEGER NOT NULL,
            at REAL NOT NULL,
            body TEXT NOT NULL
        ) STRICT""")
    db.execute("CREATE INDEX events_by_session ON events (session_id)")


@migrations()
def m004_memory(db: Database) -> None:
    """Notes, topics and archives, with full-text search."""
    # `handle` is the session that an archive is of: it outlives the session, and `verify` asks for it.
    db.execute("""
        CREATE TABLE memory_entries (
            id INTEGER PRIMARY KEY,
            agent TEXT NOT NULL,
            scope TEXT NOT NULL,
            kind TEXT NOT NULL CHECK (kind IN ('note', 'archive', 'topic')),
            name TEXT NOT NULL CHECK (name <> ''),
            content TEXT NOT NULL,
            aliases TEXT NOT NULL DEFAULT '[]',
            created_at REAL NOT NULL,
            handle TEXT,
            UNIQUE (agent, scope, kind, name)
        ) STRICT""")
    db.table("memory_entries").enable_fts(
        ["name", "content", "aliases"], tokenize="porter unicode61", create_triggers=True
    )
    # A word in the name or an alias says more than one in the content.
    db.execute("""INSERT INTO memory_entries_fts (memory_entries_fts, rank)
        VALUES ('rank', 'bm25(10.0, 1.0, 10.0)')""")


@migrations()
def m005_recovery(db: Database) -> None:
    """Finding what was left undone, and keys that have had their time, without reading everything."""
    db.execute("CREATE INDEX steers_unapplied ON steers (session_id) WHERE applied_turn IS NULL")
    db.execute("CREATE INDEX keys_by_age ON keys (created_at)")


@migrations()
def m006_timers(db: Database) -> None:
    """Messages that are to come later."""
    # AUTOINCREMENT: the id of a timer that ended must not become another's, whom a caller could cancel by it.
    db.execute("""
        CREATE TABLE timers (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            session_id INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
            said_by TEXT NOT NULL,
            content TEXT NOT NULL,
            key TEXT,
            due_at REAL NOT NULL,
            every_s REAL CHECK (every_s > 0),
            created_at REAL NOT NULL
        ) STRICT""")
    db.execute("CREATE INDEX timers_by_session ON timers (session_id)")
    db.execute("CREATE INDEX timers_by_key ON timers (key) WHERE key IS NOT NULL")


@migrations()
def m007_dead_letters(db: Database) -> None:
    """Messages that were given up."""
    db.execute("""
        CREATE TABLE dead_letters (
            id INTEGER PRIMARY KEY,
            session_id INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
            turn_id INTEGER NOT NULL UNIQUE REFERENCES turns (id) ON DELETE CASCADE,
            reason TEXT NOT NULL,
            attempts INTEGER NOT NULL,
            at REAL NOT NULL,
            retried_as INTEGER
        ) STRICT""")
    db.execute("CREATE INDEX dead_letters_by_session ON dead_letters (session_id)")


_ALL = (
    m001_sessions,
    m002_turns,
    m003_history,
    m004_memory,
    m005_recovery,
    m006_timers,
    m007_dead_letters,
)
NAMES = tuple(each.__name__ for each in _ALL)
