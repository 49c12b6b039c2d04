"""A disk that remembers: an SQLite VFS that records every write, truncation, deletion and sync, in order.

It wraps the VFS of the very SQLite library that Python's `sqlite3` uses, through ctypes: files are opened
by the real one, whose table of methods is then swapped for one that records. What a power loss at any
moment may leave can be told from the record (`disk_images`).
"""

from __future__ import annotations

import ctypes
import os
import re
import sqlite3
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from typing import Any

from crash.disk_log import Ack, Ask, Create, Delete, Event, Sync, SyncFolder, Truncate, Write


class NoRecorder(Exception):
    """This Python's SQLite cannot be reached through ctypes, so nothing can be recorded."""


# -- SQLite's structures --------------------------------------------------------------------------

_METHODS = re.findall(
    r"\w+",
    """xClose xRead xWrite xTruncate xSync xFileSize xLock xUnlock xCheckReservedLock xFileControl xSectorSize
    xDeviceCharacteristics xShmMap xShmLock xShmBarrier xShmUnmap xFetch xUnfetch""",
)
_VFS_METHODS = re.findall(
    r"\w+",
    """xOpen xDelete xAccess xFullPathname xDlOpen xDlError xDlSym xDlClose xRandomness xSleep xCurrentTime
    xGetLastError xCurrentTimeInt64 xSetSystemCall xGetSystemCall xNextSystemCall""",
)

# How many methods there are in each version of the table; of a newer one nothing more is copied.
_METHODS_OF = {1: 12, 2: 16, 3: 18}
_VFS_VERSION = 3


class _IoMethods(Structure):
    _fields_ = [("iVersion", c_int), *((name, c_void_p) for name in _METHODS)]


class _File(Structure):
    _fields_ = [("pMethods", c_void_p)]


class _Vfs(Structure):
    _fields_ = [
        ("iVersion", c_int),
        ("szOsFile", c_int),
        ("mxPathname", c_int),
        ("pNext", c_void_p),
        ("zName", c_char_p),
        ("pAppData", c_void_p),
        *((name, c_void_p) for name in _VFS_METHODS),
    ]


_CLOSE = CFUNCTYPE(c_int, c_void_p)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_SET_CALL = CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p)
_GET_CALL = CFUNCTYPE(c_void_p, c_void_p, c_char_p)
_OPEN_FOLDER = CFUNCTYPE(c_int, c_char_p, POINTER(c_int))

_OK = 0
_IOERR = 10


class _Wrapped:
    """A table of methods that records, made from one of the real VFS; the real functions stay callable."""

    def __init__(self, real: int, recorder: Recorder) -> None:
        version = ctypes.cast(real, POINTER(c_int)).contents.value
        self.table = _IoMethods()
        known = _METHODS_OF[min(version, max(_METHODS_OF))]
        size = _IoMethods.xClose.offset + known * ctypes.sizeof(c_void_p)
        ctypes.memmove(ctypes.byref(self.table), real, size)
        self.table.iVersion = min(version, max(_METHODS_OF))
        self.close = _CLOSE(self.table.xClose)
        self.write = _WRITE(self.table.xWrite)
        self.truncate = _TRUNCATE(self.table.xTruncate)
        self.sync = _SYNC(self.table.xSync)
        # Kept here: SQLite holds bare addresses of them.
        self.ours = [
            _CLOSE(recorder.guard(recorder.on_close)),
            _WRITE(recorder.guard(recorder.on_write)),
            _TRUNCATE(recorder.guard(recorder.on_truncate)),
            _SYNC(recorder.guard(recorder.on_sync)),
        ]
        for name, function in zip(("xClose", "xWrite", "xTruncate", "xSync"), self.ours, strict=True):
            setattr(self.table, name, ctypes.cast(function, c_void_p).value)


class Recorder:
    """Records what is done to the database `path` and the files beside it, from `install` on.

    For a process that does nothing else: every later connection of it goes through the recorder, which
    cannot be taken out again. The files must not exist yet. Events may be appended from any thread.

    Attributes:
        log: everything that happened, in order.
        failure: what went wrong in the recorder itself; the log is worth nothing then.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.log: list[Event] = []
        self.failure: BaseException | None = None
        self._inodes: dict[str, int] = {}
        self._open: dict[int, tuple[int | None, _Wrapped]] = {}
        self._wrapped: dict[int, _Wrapped] = {}
        self._made = 0
        self._vfs = _Vfs()

    def install(self) -> None:
        """Make the recorder the default VFS of this process.

        Raises:
            NoRecorder: the library is not within reach; the message says why.
        """
        library = reachable_sqlite()
        library.sqlite3_vfs_find.restype = c_void_p
        library.sqlite3_vfs_find.argtypes = [c_char_p]
        library.sqlite3_vfs_register.argtypes = [c_void_p, c_int]
        self._real = library.sqlite3_vfs_find(None)
        version = ctypes.cast(self._real, POINTER(c_int)).contents.value
        if version < _VFS_VERSION:
            raise NoRecorder(f"SQLite's VFS is of version {version}: no system calls to watch")
        ctypes.memmove(ctypes.byref(self._vfs), self._real, ctypes.sizeof(_Vfs))
        self._vfs.iVersion = _VFS_VERSION
        self._vfs.pNext = None
        self._vfs.zName = b"palaver-recorder"
        self._real_open = _OPEN(self._vfs.xOpen)
        self._real_delete = _DELETE(self._vfs.xDelete)
        self._ours = (_OPEN(self.guard(self.on_open)), _DELETE(self.guard(self.on_delete)))
        self._vfs.xOpen = ctypes.cast(self._ours[0], c_void_p).value
        self._vfs.xDelete = ctypes.cast(self._ours[1], c_void_p).value
        self._watch_folders()
        if library.sqlite3_vfs_register(ctypes.byref(self._vfs), 1) != _OK:
            raise NoRecorder("SQLite refused the recording VFS")

    def ask(self, what: str, about: Any) -> None:
        """Record that a caller is about to ask for something."""
        self.log.append(Ask(what, about))

    def ack(self, what: str, about: Any) -> None:
        """Record that a caller was told something."""
        self.log.append(Ack(what, about))

    # -- called by SQLite, in whatever thread uses the connection ----------------------------------

    def guard(self, function: Callable[..., int]) -> Callable[..., int]:
        """`function`, with an error of its own turned into an I/O error: ctypes would only print it."""

        def guarded(*args: Any) -> int:
            try:
                return function(*args)
            except BaseException as error:
                self.failure = error
                return _IOERR

        return guarded

    def on_open(self, _vfs: int, name: int | None, file: int, flags: int, out_flags: int) -> int:
        path = None if name is None else os.fsdecode(ctypes.string_at(name))
        known = path is not None and path.startswith(self.path)
        before = known and os.path.exists(path or "")
        code: int = self._real_open(self._real, name, file, flags, out_flags)
        if code != _OK:
            return code
        inode = self._inode(path or "", before) if known else None
        holder = _File.from_address(file)
        real = holder.pMethods
        if real is None:
            return code
        if real not in self._wrapped:
            self._wrapped[real] = _Wrapped(real, self)
        self._open[file] = (inode, self._wrapped[real])
        holder.pMethods = ctypes.addressof(self._wrapped[real].table)
        return code

    def _inode(self, path: str, before: bool) -> int:
        if before:
            return self._inodes[path]
        self._made += 1
        self._inodes[path] = self._made
        self.log.append(Create(os.path.basename(path), self._made))
        return self._made

    def on_close(self, file: int) -> int:
        code: int = self._open.pop(file)[1].close(file)
        return code

    def on_write(self, file: int, data: int, amount: int, offset: int) -> int:
        inode, real = self._open[file]
        code: int = real.write(file, data, amount, offset)
        if inode is not None and code == _OK:
            self.log.append(Write(inode, offset, ctypes.string_at(data, amount)))
        return code

    def on_truncate(self, file: int, size: int) -> int:
        inode, real = self._open[file]
        code: int = real.truncate(file, size)
        if inode is not None and code == _OK:
            self.log.append(Truncate(inode, size))
        return code

    def on_sync(self, file: int, flags: int) -> int:
        inode, real = self._open[file]
        code: int = real.sync(file, flags)
        if inode is not None and code == _OK:
            self.log.append(Sync(inode))
        return code

    def on_delete(self, _vfs: int, name: bytes, sync_folder: int) -> int:
        path = os.fsdecode(name)
        there = path in self._inodes and os.path.exists(path)
        at = len(self.log)
        code: int = self._real_delete(self._real, name, sync_folder)
        if there and code == _OK:
            del self._inodes[path]
            # Before the sync of the folder that the real function may have done.
            self.log.insert(at, Delete(os.path.basename(path)))
        return code

    # -- the folder --------------------------------------------------------------------------------

    def _watch_folders(self) -> None:
        """SQLite opens a folder for nothing but to sync it: hear of that through its own override."""
        get = _GET_CALL(self._vfs.xGetSystemCall)
        put = _SET_CALL(self._vfs.xSetSystemCall)
        address = get(self._real, b"openDirectory")
        if not address:
            raise NoRecorder("SQLite's VFS does not let the syncs of folders be watched")
        real = _OPEN_FOLDER(address)

        def open_folder(path: bytes, descriptor: Any) -> int:
            code: int = real(path, descriptor)
            if code == _OK and os.fsdecode(path).startswith(self.path):
                self.log.append(SyncFolder())
            return code

        self._open_folder = _OPEN_FOLDER(self.guard(open_folder))
        if put(self._real, b"openDirectory", ctypes.cast(self._open_folder, c_void_p)) != _OK:
            raise NoRecorder("SQLite's VFS does not let the syncs of folders be watched")


def reachable_sqlite() -> ctypes.CDLL:
    """The library behind the `sqlite3` module.

    Raises:
        NoRecorder: it is linked into something that does not show its symbols.
    """
    import _sqlite3

    where = getattr(_sqlite3, "__file__", None)
    library = ctypes.CDLL(where)  # None, for a module that is built in, looks in the whole program
    for symbol in ("sqlite3_libversion", "sqlite3_vfs_find", "sqlite3_vfs_register"):
        if not hasattr(library, symbol):
            raise NoRecorder(
                f"{where or 'this Python'} shows no {symbol}: its SQLite is linked statically, "
                "so its writes cannot be recorded and power loss cannot be shown here"
            )
    library.sqlite3_libversion.restype = c_char_p
    version = library.sqlite3_libversion().decode()
    if version != sqlite3.sqlite_version:
        raise NoRecorder(
            f"the SQLite within reach is {version}, but Python uses {sqlite3.sqlite_version}: "
            "power loss cannot be shown here"
        )
    return library
