"""What a power loss may leave on a disk that honours fsync: images of a database's files.

What was synced is kept. Of everything after a file's last sync, each write may be there, be lost, or be
torn at sectors; so may each truncation, and each name that was made or deleted after the folder's last
sync. SQLite's own assumption (`SQLITE_IOCAP_POWERSAFE_OVERWRITE`) is kept: bytes beside a write stay.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from attrs import define, field, frozen

from crash.disk_log import Create, Delete, Event, Sync, SyncFolder, Truncate, Write

SECTOR = 512
WAL_HEADER = 32
FRAME_HEADER = 24

Fate = Literal["kept", "lost", "torn"]
# From an operation's place among those that its file has pending, and their number, to what becomes of it.
Chooser = Callable[[int, int], Fate]


@frozen
class Image:
    """The files' contents by name, as the next start may find them; `how` says how they came about."""

    files: dict[str, bytes]
    how: str


@define(eq=False)
class _Inode:
    """A file: what is safe, and what is on its way."""

    safe: bytearray = field(factory=bytearray)
    pending: list[Write | Truncate] = field(factory=list)
    end: int = 0  # of the last write: where a log goes on
    safe_end: int = 0
    _safe_bytes: bytes | None = None

    def do(self, step: Write | Truncate) -> None:
        self.pending.append(step)
        self.end = step.offset + len(step.data) if isinstance(step, Write) else min(self.end, step.size)

    def sync(self) -> None:
        for step in self.pending:
            _apply(self.safe, step)
        if self.pending:
            self.pending = []
            self._safe_bytes = None
        self.safe_end = self.end

    def as_synced(self) -> bytes:
        """What is safe; the same object for as long as it stays the same."""
        if self._safe_bytes is None:
            self._safe_bytes = bytes(self.safe)
        return self._safe_bytes

    def whole(self) -> bytearray:
        """With everything that is pending."""
        data = bytearray(self.safe)
        for step in self.pending:
            _apply(data, step)
        return data


@define(eq=False)
class Disk:
    """A disk on which the recorded events happen one by one, with what is safe on it and what is not."""

    log: Sequence[Event]
    at: int = 0
    _inodes: dict[int, _Inode] = field(factory=dict)
    _names: dict[str, int] = field(factory=dict)
    _pending_names: list[tuple[str, int | None]] = field(factory=list)
    _older_logs: list[bytes] = field(factory=list)

    def advance(self, to: int) -> None:
        """Let everything happen that comes before `log[to]`."""
        for event in self.log[self.at : to]:
            self._happen(event)
        self.at = to

    def _happen(self, event: Event) -> None:
        match event:
            case Write() | Truncate():
                if isinstance(event, Write) and event.offset == 0 and event.file == self._wal_number():
                    self._older_logs = [*self._older_logs[-3:], bytes(self._inodes[event.file].whole())]
                self._inodes[event.file].do(event)
            case Sync(file):
                self._inodes[file].sync()
            case Create(name, file):
                self._inodes[file] = _Inode()
                self._pending_names.append((name, file))
            case Delete(name):
                self._pending_names.append((name, None))
            case SyncFolder():
                self._names = self._named(len(self._pending_names))
                self._pending_names = []

    # -- images ------------------------------------------------------------------------------------

    def image(self, how: str, rng: random.Random) -> Image:
        """What a power loss now may leave.

        Args:
            how: "lost" or "kept", all that is not safe; "newest", only the last operation on each file;
                "missing", all but one; "mixed", each for itself; "garbage" or "stale", with random bytes
                or frames of an older log where the log goes on.
        """
        base = rng.choice(("lost", "kept", "mixed")) if how in ("garbage", "stale") else how
        choose = _chooser(base, rng)
        files: dict[str, bytes] = {}
        for name, number in self._standing(base, rng).items():
            inode = self._inodes[number]
            if not inode.pending or base == "lost":
                files[name] = inode.as_synced()
                continue
            data = _survivors(inode, choose, rng)
            if base == "mixed" and rng.random() < 0.25:  # the size is there, the content is not
                data.extend(bytes(max(0, len(inode.whole()) - len(data))))
            files[name] = bytes(data)
        if how in ("garbage", "stale"):
            self._spoil(files, how, kept=base == "kept", rng=rng)
        return Image(files, how if base == how else f"{how} after {base}")

    def cuts(self) -> range:
        """The offsets, 512 bytes apart, at which the unsynced part of the WAL may be cut."""
        wal = self._inodes.get(self._wal_number() or 0)
        starts = [step.offset for step in wal.pending if isinstance(step, Write)] if wal else []
        if wal is None or not starts:
            return range(0)
        return range(min(starts) // SECTOR * SECTOR, max(wal.end, min(starts)) + SECTOR, SECTOR)

    def cut(self, at: int, rng: random.Random) -> Image:
        """Everything is kept but what was written to the WAL from byte `at` on."""
        number = self._wal_number()
        files: dict[str, bytes] = {}
        shorter = rng.random() < 0.5
        for name, each in self._named(len(self._pending_names)).items():
            inode = self._inodes[each]
            if each != number:
                files[name] = bytes(inode.whole())
                continue
            data = bytearray(inode.safe)
            for step in inode.pending:
                if isinstance(step, Truncate):
                    _apply(data, step)
                elif step.offset < at:
                    _apply(data, step._replace(data=step.data[: at - step.offset]))
            if shorter and at >= inode.safe_end:
                del data[at:]
            files[name] = bytes(data)
        return Image(files, f"WAL cut at byte {at}{' and ended there' if shorter else ''}")

    def _standing(self, how: str, rng: random.Random) -> dict[str, int]:
        """The names that are there, each as of some moment after the folder's last sync."""
        everything = len(self._pending_names)
        if how == "lost" or not everything:
            return self._named(0)
        if how != "mixed":
            return self._named(everything)
        names = [*self._names, *(name for name, _ in self._pending_names)]
        found: dict[str, int] = {}
        for name in dict.fromkeys(names):
            there = self._named(rng.randint(0, everything)).get(name)
            if there is not None:
                found[name] = there
        return found

    def _named(self, count: int) -> dict[str, int]:
        """The names with the first `count` pending changes done."""
        if not count:
            return self._names
        names = dict(self._names)
        for name, number in self._pending_names[:count]:
            if number is None:
                names.pop(name, None)
            else:
                names[name] = number
        return names

    def _wal_number(self) -> int | None:
        for name, number in self._named(len(self._pending_names)).items():
            if name.endswith("-wal"):
                return number
        return None

    def _spoil(self, files: dict[str, bytes], how: str, *, kept: bool, rng: random.Random) -> None:
        """Put something after the part of the WAL that must be read."""
        name = next((name for name in files if name.endswith("-wal")), None)
        number = self._wal_number()
        if name is None or number is None:
            return
        inode = self._inodes[number]
        at = inode.end if kept else inode.safe_end
        data = bytearray(files[name])
        junk = rng.randbytes(rng.randrange(1, 9000)) if how == "garbage" else self._old_frames(rng)
        if len(data) < at:
            data.extend(bytes(at - len(data)))
        data[at : at + len(junk)] = junk
        files[name] = bytes(data)

    def _old_frames(self, rng: random.Random) -> bytes:
        """Some frames in a row of a log that was written before this one."""
        logs = [log for log in self._older_logs if len(log) > WAL_HEADER]
        if not logs:
            return b""
        log = rng.choice(logs)
        size = FRAME_HEADER + int.from_bytes(log[8:12], "big")
        first = rng.randrange(max(1, (len(log) - WAL_HEADER) // size))
        start = WAL_HEADER + first * size
        return log[start : start + rng.randint(1, 6) * size]


# -- what becomes of each write ---------------------------------------------------------------------


def _chooser(how: str, rng: random.Random) -> Chooser:
    if how == "kept":
        return lambda _number, _count: "kept"
    if how == "newest":
        return lambda number, count: "kept" if number == count - 1 else "lost"
    if how == "missing":
        share = rng.random()
        return lambda number, count: "lost" if number == int(share * count) else "kept"
    weights = rng.choice(((8, 1, 1), (1, 1, 1), (1, 8, 1), (0, 0, 1)))
    fates: tuple[Fate, ...] = ("kept", "lost", "torn")
    return lambda _number, _count: rng.choices(fates, weights)[0]


def _survivors(inode: _Inode, choose: Chooser, rng: random.Random) -> bytearray:
    data = bytearray(inode.safe)
    count = len(inode.pending)
    for number, step in enumerate(inode.pending):
        fate = choose(number, count)
        if fate == "kept" or (fate == "torn" and isinstance(step, Truncate) and rng.random() < 0.5):
            _apply(data, step)
        elif fate == "torn" and isinstance(step, Write):
            for piece in _sectors(step):
                if rng.random() < 0.5:
                    _apply(data, piece)
    return data


def _sectors(write: Write) -> Iterator[Write]:
    """`write` in pieces, none of which crosses the border of a sector."""
    start = write.offset
    end = start + len(write.data)
    while start < end:
        following = min(end, (start // SECTOR + 1) * SECTOR)
        yield Write(write.file, start, write.data[start - write.offset : following - write.offset])
        start = following


def _apply(data: bytearray, step: Write | Truncate) -> None:
    if isinstance(step, Truncate):
        if step.size < len(data):
            del data[step.size :]
        else:
            data.extend(bytes(step.size - len(data)))
        return
    if len(data) < step.offset:
        data.extend(bytes(step.offset - len(data)))
    data[step.offset : step.offset + len(step.data)] = step.data
