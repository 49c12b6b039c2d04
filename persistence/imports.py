"""Reading what `exports` wrote into a database: all of it or nothing."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from attrs import Factory, define, frozen
from sqlite_utils import Database

from persistence.bundles import VERSION as BUNDLE
from persistence.bundles import import_session, store_memory
from persistence.errors import RecordError, StorageError
from persistence.exports import (
    FORMAT,
    JSON_COLUMNS,
    KINDS,
    MANIFEST,
    SUMS,
    TOMBSTONES,
    VERSION,
    Contents,
    Progress,
    memory_path,
)
from persistence.ids import highest_timer, no_timer_up_to
from persistence.jsonl import flat, read_lines
from persistence.markdown import decode_memory
from persistence.newfiles import Path, inside
from persistence.records import JsonObject

_SUM = re.compile(r"([0-9a-f]{64})  (deleted\.jsonl|sessions/[^/]+\.jsonl|memory(?:/[^/]+){4}\.md)")
_OF_SESSIONS = {kind: columns for kind, (_, columns) in KINDS.items() if kind != "deleted"}


@frozen
class Imported:
    """What an import stored.

    Attributes:
        contents: the rows of each kind.
        edited: the memory files that were changed by hand since the export.
        renumbered: turns, steers and timers whose id was taken, and that have a new one.
    """

    contents: Contents
    edited: tuple[str, ...]
    renumbered: int


@frozen
class Export:
    """A directory that `export_database` wrote, as its manifest describes it."""

    directory: str
    counts: JsonObject
    highest_id: int
    highest_timer: int
    sums: dict[str, str]


def open_export(directory: Path) -> Export:
    """Read and check the manifest of an export, and that its files are there and no others.

    Raises:
        RecordError: not an export, one of another version, or a damaged one; names file and line.
    """
    name = os.fsdecode(directory)
    if not os.path.isdir(name):
        raise RecordError(f"{name!r} is no directory; give one that `palaver export` wrote")
    manifest = _manifest(name)
    digest, ids = manifest.get("sha256sums"), manifest.get("highest_ids")
    counts = manifest.get("counts")
    if not isinstance(ids, dict) or not isinstance(counts, dict) or not isinstance(digest, str):
        raise RecordError(f"{MANIFEST}: its counts, ids or checksum are missing")
    turn, steer, timer = ids.get("turn"), ids.get("steer"), ids.get("timer", 0)
    if not isinstance(turn, int) or not isinstance(steer, int) or not isinstance(timer, int):
        raise RecordError(f"{MANIFEST}: its highest_ids are no numbers")
    sums = _sums(name, digest)
    _check_files(name, sums)
    return Export(name, counts, max(turn, steer), timer, sums)


def import_export(
    db: Database,
    export: Export,
    *,
    edited: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Imported:
    """Store what an export holds, beside what is in `db`. Runs in the caller's transaction.

    Sessions keep their handles and, where they are free, the ids of their turns, steers and timers.

    Args:
        edited: whether memory files may have been changed by hand since: content and aliases, no names.
        progress: called with the files that are read, and with all of them; what it raises ends the import.

    Raises:
        RecordError: a file that is damaged or was changed; names file and line.
        StorageError: a session that is stored already, or memory with other content; names the first.
            Whatever is raised: roll back, part of it may be written.
    """
    ((known,),) = db.execute("SELECT coalesce(max(id), 0) FROM sessions").fetchall()
    return _Import(db, export, edited, progress, known, highest_timer(db)).run()


@define
class _Import:
    db: Database
    export: Export
    edits_allowed: bool
    progress: Progress
    known: int  # the last session that was there before
    known_timer: int  # the last timer that ever was there before
    counts: Counter[str] = Factory(Counter)
    edited: list[str] = Factory(list)
    renumbered: int = 0

    def run(self) -> Imported:
        no_timer_up_to(self.db, self.export.highest_timer)
        for done, (path, digest) in enumerate(self.export.sums.items(), start=1):
            with _named(path):
                self._file(path, digest)
            self.progress(done, len(self.export.sums))
        contents = Contents(**self.counts)
        for name in Contents.__annotations__:
            if self.export.counts.get(name, 0) != getattr(contents, name):
                raise RecordError(
                    f"{MANIFEST}: it counts {self.export.counts.get(name, 0)} {name}, "
                    f"but the files hold {getattr(contents, name)}"
                )
        return Imported(contents, tuple(self.edited), self.renumbered)

    def _file(self, path: str, digest: str) -> None:
        if path.endswith(".md"):
            self._memory(path, digest)
        elif path == TOMBSTONES:
            self._tombstones(self._lines(path, digest, {"deleted": KINDS["deleted"][1]}))
        else:
            self._session(path, self._lines(path, digest, _OF_SESSIONS))

    def _lines(self, path: str, digest: str, kinds: dict[str, str]) -> list[tuple[str, JsonObject]]:
        sha = sha256()

        def lines() -> Iterator[bytes]:
            with open(inside(self.export.directory, path), "rb") as file:
                for line in file:
                    sha.update(line)
                    yield line

        found = list(read_lines(lines(), path, kinds))
        if sha.hexdigest() != digest:
            raise RecordError(f"{path}: it is not the file that was exported, its checksum is another")
        return found

    def _tombstones(self, lines: list[tuple[str, JsonObject]]) -> None:
        for _, row in lines:
            self.db.execute(
                """INSERT INTO deleted_sessions (handle, deleted_at, last_turn, last_steer)
                    VALUES (:handle, :deleted_at, :last_turn, :last_steer)
                    ON CONFLICT (handle) DO UPDATE SET last_turn = max(last_turn, excluded.last_turn),
                        last_steer = max(last_steer, excluded.last_steer)""",
                row,
            )
        self.counts["deleted_sessions"] += len(lines)

    def _session(self, path: str, lines: list[tuple[str, JsonObject]]) -> None:
        if [kind for kind, _ in lines[:1]] != ["session"]:
            raise RecordError(f"{path}, line 1: the session itself should be here")
        bundle: dict[str, Any] = {table: [] for table, _ in KINDS.values()}
        for number, (kind, row) in enumerate(lines, start=1):
            if kind == "session" and number > 1:
                raise RecordError(f"{path}, line {number}: a second session; each has a file of its own")
            for column in JSON_COLUMNS:
                if column in row:
                    row[column] = flat(row[column])
            bundle[KINDS[kind][0]].append(row)
        for table, rows in bundle.items():
            self.counts[table] += len(rows)
        bundle |= {"v": BUNDLE, "session": bundle["sessions"][0], "memory": []}
        stored = import_session(
            self.db,
            bundle,
            above=self.export.highest_id,
            beside=self.known,
            timers_beside=self.known_timer,
        )
        ids = (*stored.turn_ids.items(), *stored.steer_ids.items(), *stored.timer_ids.items())
        self.renumbered += sum(old != new for old, new in ids)

    def _memory(self, path: str, digest: str) -> None:
        with open(inside(self.export.directory, path), "rb") as file:
            data = file.read()
        row = decode_memory(data, path)
        if sha256(data).hexdigest() != digest:
            self._check_edit(path, row)
        store_memory(self.db, row)
        self.counts["memory"] += 1

    def _check_edit(self, path: str, row: JsonObject) -> None:
        if not self.edits_allowed:
            raise RecordError(
                f"{path}: it was changed after it was exported; "
                "if that was on purpose, import with --edited (edited=True)"
            )
        if path not in (memory_path(row), memory_path(row, long=True)):
            raise RecordError(
                f"{path}: agent, scope, kind and name must stay as they were exported: "
                "other entries point to them"
            )
        self.edited.append(path)


def _manifest(directory: str) -> JsonObject:
    try:
        with open(inside(directory, MANIFEST), "rb") as file:
            manifest = json.loads(file.read())
    except FileNotFoundError as error:
        raise RecordError(f"{directory!r} is no export of Palaver's: it has no {MANIFEST}") from error
    except json.JSONDecodeError as error:
        raise RecordError(f"{MANIFEST}, line {error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{MANIFEST}: not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RecordError(f"{directory!r} is no export of Palaver's: its {MANIFEST} is of something else")
    if manifest.get("version") != VERSION:
        raise RecordError(
            f"{MANIFEST}: the export has version {manifest.get('version')!r}; this Palaver reads {VERSION}"
        )
    return manifest


def _sums(directory: str, digest: str) -> dict[str, str]:
    with _named(SUMS), open(inside(directory, SUMS), "rb") as file:
        data = file.read()
    sums: dict[str, str] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").removesuffix("\n").split("\n"), start=1):
        found = _SUM.fullmatch(line)
        if found is None or {".", ".."} & {*found[2].split("/")} or found[2] in sums:
            raise RecordError(f"{SUMS}, line {number}: not a checksum and one of the export's files")
        sums[found[2]] = found[1]
    if sha256(data).hexdigest() != digest:
        raise RecordError(f"{SUMS}: it is not the one that {MANIFEST} describes; one of the two was changed")
    return sums


def _check_files(directory: str, sums: dict[str, str]) -> None:
    """Every file that is listed is there, a regular one inside the directory; and no other is."""
    top = os.fsencode(directory)
    missing = dict.fromkeys(path.encode() for path in (*sums, SUMS, MANIFEST))
    for parent, folders, files in os.walk(top):
        folders[:] = [folder for folder in folders if not folder.startswith(b".")]
        for file in files:
            whole = os.path.join(parent, file)
            path = os.path.relpath(whole, top)
            if path not in missing:
                if file.startswith(b"."):  # a desktop's or an editor's
                    continue
                raise RecordError(f"{os.fsdecode(path)}: no such file was exported; remove it")
            if os.path.islink(whole) or not os.path.isfile(whole):
                raise RecordError(f"{os.fsdecode(path)}: it is no regular file")
            del missing[path]
    for path in missing:
        raise RecordError(f"{path.decode()}: the file is missing")


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Let every error name the file that it is about."""
    try:
        yield
    except FileNotFoundError as error:
        raise RecordError(f"{path}: the file is missing") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    except sqlite3.IntegrityError as error:
        raise RecordError(f"{path}: it does not fit the database: {error}") from error
    except StorageError as error:
        if str(error).startswith(path):
            raise
        raise type(error)(f"{path}: {error}") from error
