"""Writing everything that a file holds as a directory of text: JSON lines, and Markdown for memory.

    DIR/manifest.json       format, version, counts, and the checksum of SHA256SUMS
    DIR/SHA256SUMS          a line per file, as sha256sum writes it, in the order of the database
    DIR/deleted.jsonl       what is left of deleted sessions: their handles, and ids never to be given again
    DIR/sessions/*.jsonl    a session each: its row, turns, steers, entries, compactions, events,
                            dead letters, timers, keys
    DIR/memory/AGENT/SCOPE/KIND/NAME.md

The same content gives the same bytes. Numbers that only the database file uses (`sessions.id` and the like)
are left out; the order that they keep is the order of the lines.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256

from attrs import define, field, frozen
from sqlite_utils import Database

from persistence.bundles import KEYS, KEYS_OF_SESSION, MEMORY, OF_SESSION, PARTS, SESSION, rows_of
from persistence.ids import highest_timer
from persistence.jsonl import LineWriter, compact, nested
from persistence.markdown import encode_memory
from persistence.names import file_name
from persistence.newfiles import Path, inside, new_directory, sync_files
from persistence.records import JsonObject
from persistence.sessions import highest_ids

FORMAT = "palaver-export"
VERSION = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
TOMBSTONES = "deleted.jsonl"
SHARED = "_shared"  # the directory of the scope "", which no name of a sender becomes

DELETED = "handle, deleted_at, last_turn, last_steer"
# The type of a line -> the table it is of, and its fields.
KINDS = {
    "session": ("sessions", SESSION),
    "turn": ("turns", PARTS["turns"]),
    "steer": ("steers", PARTS["steers"]),
    "entry": ("entries", PARTS["entries"]),
    "compaction": ("compactions", PARTS["compactions"]),
    "event": ("events", PARTS["events"]),
    "dead_letter": ("dead_letters", PARTS["dead_letters"]),
    "timer": ("timers", PARTS["timers"]),
    "key": ("keys", KEYS),
    "deleted": ("deleted_sessions", DELETED),
}
JSON_COLUMNS = ("result", "body")  # stored JSON, shown as the object that it is

Progress = Callable[[int, int], object]


@frozen
class Contents:
    """How many rows of each kind an export holds; `memory` counts notes, topics and archives."""

    sessions: int = 0
    turns: int = 0
    steers: int = 0
    entries: int = 0
    compactions: int = 0
    events: int = 0
    dead_letters: int = 0
    timers: int = 0
    keys: int = 0
    memory: int = 0
    deleted_sessions: int = 0


def export_database(db: Database, to: Path, progress: Progress = lambda _done, _total: None) -> Contents:
    """Write all that `db` holds to the new directory `to`, which appears when it is complete and synced.

    Changes nothing. Nobody else may use `db` meanwhile.

    Args:
        to: a path that does not exist, or an empty directory.
        progress: called with the sessions and memory entries that are written, and with all of them; what
            it raises ends the export.

    Raises:
        StorageError: it could not be written; nothing is left of it.
    """
    with new_directory(to) as part:
        export = _Export(db, part, progress)
        contents = export.write()
        sync_files(part, export.paths)
    return contents


def memory_path(row: JsonObject, *, long: bool = False) -> str:
    """Where a row of memory is written; `long` if its short path is taken."""
    scope = file_name(row["scope"]) if row["scope"] else SHARED
    identity = compact([row[name] for name in ("agent", "scope", "kind", "name")]) if long else ""
    name = file_name(row["name"], identity=identity)
    return f"memory/{file_name(row['agent'])}/{scope}/{row['kind']}/{name}.md"


@define
class _Export:
    db: Database
    directory: str
    progress: Progress
    total: int = 0
    done: int = 0
    counts: Counter[str] = field(factory=Counter)
    sums: dict[str, str] = field(factory=dict)  # path -> SHA-256, in order

    @property
    def paths(self) -> list[str]:
        return [*self.sums, SUMS, MANIFEST]

    def write(self) -> Contents:
        sessions = self.db.execute("SELECT id, handle FROM sessions ORDER BY id").fetchall()
        self.total = len(sessions) + self.db.table("memory_entries").count
        self._tombstones()
        for id_, handle in sessions:
            self._session(id_, handle)
            self._step()
        for row in rows_of(self.db, MEMORY, "memory_entries ORDER BY id"):
            self._memory(row)
            self._step()
        contents = Contents(**self.counts)
        self._manifest(contents)
        return contents

    def _step(self) -> None:
        self.done += 1
        self.progress(self.done, self.total)

    def _tombstones(self) -> None:
        rows = rows_of(self.db, DELETED, "deleted_sessions ORDER BY handle")
        self._lines(TOMBSTONES, (("deleted", row) for row in rows))

    def _session(self, id_: int, handle: str) -> None:
        path = f"sessions/{file_name(handle)}.jsonl"
        if path in self.sums:
            path = f"sessions/{file_name(handle, identity=handle)}.jsonl"
        self._lines(path, self._session_rows(id_))

    def _session_rows(self, id_: int) -> Iterator[tuple[str, JsonObject]]:
        for kind, (table, columns) in KINDS.items():
            match kind:
                case "session":
                    source = "sessions WHERE id = ?"
                case "key":
                    source = KEYS_OF_SESSION
                case "deleted":
                    continue
                case _:
                    source = f"{table} {OF_SESSION}"
            for row in rows_of(self.db, columns, source, id_):
                yield kind, row

    def _lines(self, path: str, rows: Iterator[tuple[str, JsonObject]]) -> None:
        with open(self._made(path), "xb") as file:
            writer = LineWriter(file)
            for kind, row in rows:
                for column in JSON_COLUMNS:
                    if column in row:
                        row[column] = nested(row[column])
                writer.write(kind, row)
                self.counts[KINDS[kind][0]] += 1
            self.sums[path] = writer.end()

    def _memory(self, row: JsonObject) -> None:
        path = memory_path(row)
        if path in self.sums:
            path = memory_path(row, long=True)
        data = encode_memory(row)
        with open(self._made(path), "xb") as file:
            file.write(data)
        self.sums[path] = sha256(data).hexdigest()
        self.counts["memory"] += 1

    def _made(self, path: str) -> bytes:
        """The whole path of a file, with its directory made."""
        whole = inside(self.directory, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        return whole

    def _manifest(self, contents: Contents) -> None:
        sums = "".join(f"{digest}  {path}\n" for path, digest in self.sums.items()).encode()
        turn, steer = highest_ids(self.db)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "counts": {name: getattr(contents, name) for name in Contents.__annotations__},
            "highest_ids": {"turn": turn, "steer": steer, "timer": highest_timer(self.db)},
            "sha256sums": sha256(sums).hexdigest(),
        }
        for name, data in ((SUMS, sums), (MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())):
            with open(self._made(name), "xb") as file:
                file.write(data)
