"""How what waits for the database is divided into transactions, and into statements within one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from attrs import define
from sqlite_utils import Database

from persistence.records import TurnRow
from persistence.writes import WriteSet

T = TypeVar("T")

# A function of the database that neither yields to another greenlet nor ends the transaction. Nothing but
# the database may be changed by it: on a full disk it may be run once more, after a rollback.
Job = Callable[[Database], T]
# What is called after the commit: with a value and None, or with None and the error.
Then = Callable[[T | None, BaseException | None], None]

# Of text, in one transaction. The WAL has to hold the whole of it: at four bytes a character this and what
# waits for a checkpoint stay far under 64 MiB.
MOST_CHARS = 4_000_000


@define(eq=False)
class Item:
    """A job or a write set on its way; after the batch, exactly one of `value` and `error` is meant."""

    work: Job[Any] | WriteSet
    then: Then[Any] | None = None
    direct: bool = False
    taken: bool = False  # on its way to the disk: it does not change any more
    value: Any = None
    error: BaseException | None = None


def portions(batch: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """`batch` in order, cut where a transaction would become larger than `MOST_CHARS`."""
    start, chars = 0, 0
    for at, item in enumerate(batch):
        new = text_of(item.work)
        if chars and new and chars + new > MOST_CHARS:
            yield batch[start:at]
            start, chars = at, 0
        chars += new
    yield batch[start:] if start else batch


def groups(batch: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """`batch` in order: neighbouring write sets together, every other job alone."""
    start = 0
    for at, item in enumerate(batch):
        if not isinstance(item.work, WriteSet):
            if start < at:
                yield batch[start:at]
            yield batch[at : at + 1]
            start = at + 1
    if start < len(batch):
        yield batch[start:]


def text_of(work: object) -> int:
    """About how many characters a piece of work stores; of a function, only what is bound in a partial."""
    if isinstance(work, WriteSet):
        chars = 0
        turns, updates, entries, _, steers, _, events, *_ = work
        for turn in turns:
            chars += len(turn.content)
        for _, _, _, entry, _ in entries:
            chars += len(entry.content) + len(entry.reasoning)
            for call in entry.tool_calls:
                chars += len(call.arguments)
        for _, _, _, result, _, _ in updates:
            if result is not None:
                chars += len(result.text)
        for steer in steers:
            chars += len(steer.content)
        for event in events:
            chars += len(event.body)
        return chars
    if isinstance(work, partial):
        return sum(_bound(value) for value in (*work.args, *work.keywords.values()))
    return 0


def _bound(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, TurnRow):
        return len(value.content)
    return text_of(value) if isinstance(value, WriteSet) else 0
