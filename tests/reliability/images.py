"""Power loss: whatever a disk that honours fsync may hold then, it opens, and nothing acknowledged is gone.

A workload is recorded write by write (`crash/disk_workload.py`); images of what a power loss may leave at
each moment of it are made from the record (`crash/disk_images.py`), opened (`crash/disk_examiner.py`), and
compared with what had been acknowledged by then (`crash/disk_ledger.py`).

A violation keeps the record in a file, and `python tests/reliability/images.py FILE NUMBER` makes and checks
its image again: the record is not the same twice, because threads take part in it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import sys
import tempfile
import unittest
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import frozen

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from crash.disk import NoRecorder
from crash.disk_examiner import Desk, Examiner
from crash.disk_images import Disk, Image
from crash.disk_ledger import Ledger
from crash.disk_log import Ack, Event, Sync
from crash.disk_workload import Plan, record

from reliability.check import Check

STEPS = 150  # of a day: few enough for its states to be read in seconds
LIFE_EVERY = 100  # of so many images, one is opened by a Runtime, which ends what was left undone

# What becomes of writes that are under way, and what may lie behind a log that is safe.
HOWS = ("kept", "newest", "missing", "mixed", "mixed", "mixed", "garbage", "stale")
SPOILED = ("garbage", "stale")


@frozen
class Order:
    """An image to be made: of a power loss before `log[at]`; `cut` numbers one of the places at which the
    WAL may be cut then."""

    number: int
    at: int
    how: str
    cut: int = 0


def orders(log: Sequence[Event], count: int, seed: int) -> list[Order]:
    """`count` images, in the order of the log.

    Before each sync there is one without all that is not safe: as of the sync before, but with everything
    that was acknowledged since. Then some commits are cut at every 512 bytes; the rest is drawn.
    """
    rng = random.Random(f"orders {seed}")
    wanted = [(at, "lost", 0) for at, event in enumerate(log) if isinstance(event, Sync)]
    wanted.append((len(log), "lost", 0))
    if len(wanted) > count // 2:
        wanted = rng.sample(wanted, count // 2)
    wanted += _cuts(log, count // 3, rng)
    acks = [at + 1 for at, event in enumerate(log) if isinstance(event, Ack)]
    while len(wanted) < count:
        if acks and rng.random() < 0.2:
            wanted.append((rng.choice(acks), rng.choice(SPOILED), 0))
        else:
            wanted.append((rng.randint(0, len(log)), rng.choice(HOWS), 0))
    return [Order(number, *each) for number, each in enumerate(sorted(wanted))]


def _cuts(log: Sequence[Event], count: int, rng: random.Random) -> list[tuple[int, str, int]]:
    """All cuts of as many commits as make up `count`, at the moment before their sync."""
    disk = Disk(log)
    found: list[list[tuple[int, str, int]]] = []
    for at, event in enumerate(log):
        if isinstance(event, Sync):
            disk.advance(at)
            found.append([(at, "cut", place) for place in range(len(disk.cuts()))])
    rng.shuffle(found)
    return [each for commit in found for each in commit][:count]


def make(disk: Disk, order: Order, seed: int) -> Image:
    """The image that is ordered; `disk` must not be beyond it."""
    rng = random.Random(f"image {seed} {order.number}")
    disk.advance(order.at)
    if order.how == "cut":
        return disk.cut(disk.cuts()[order.cut], rng)
    return disk.image(order.how, rng)


# -- the check ----------------------------------------------------------------------------------------


def power_loss(count: int, seed: int, folder: Path) -> int:
    """Record a day, and check `count` images of it."""
    with _fast_folder(folder) as fast:
        try:
            recorded = record(Plan(seed, min(STEPS, max(40, count // 20))), fast)
        except NoRecorder as error:
            raise unittest.SkipTest(f"power-loss: {error}") from error
        examine(recorded.log, count, seed, fast)
    assert recorded.failure is None, f"power-loss: the workload of seed {seed} failed:\n{recorded.failure}"
    return count


def examine(log: Sequence[Event], count: int, seed: int, folder: Path, only: int | None = None) -> None:
    """Check `count` images of a log, or one of them.

    Raises:
        AssertionError: a guarantee does not hold; says how to see it again.
    """
    desk = Desk(folder / "image")
    desk.folder.mkdir()
    examiner = Examiner(Ledger(log), desk)
    disk = Disk(log)
    for order in orders(log, count, seed):
        if only not in (None, order.number):
            continue
        image = make(disk, order, seed)
        try:
            examiner.examine(image, order.at, life=order.number % LIFE_EVERY == 0)
        except Exception as error:
            kept = _keep(log, count, seed)
            words = error if isinstance(error, AssertionError) else f"G1: {error!r}"
            raise AssertionError(
                f"{words}\nseed {seed}, image {order.number}: power loss before event {order.at:,} of "
                f"{len(log):,}, {image.how}. To see it again: python tests/reliability/images.py {kept} "
                f"{order.number}"
            ) from error


def _keep(log: Sequence[Event], count: int, seed: int) -> Path:
    kept = Path(tempfile.gettempdir()) / f"palaver-power-loss-{seed}.log"
    kept.write_bytes(pickle.dumps((list(log), count, seed)))
    return kept


@contextlib.contextmanager
def _fast_folder(folder: Path) -> Iterator[Path]:
    """A folder in memory if there is one: the images are many, and fsync means nothing for them."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else folder
    with tempfile.TemporaryDirectory(prefix="palaver-", dir=where) as name:
        yield Path(name)


CHECKS = (Check("power-loss", (1, 3, 9), "images", 3_000, 200_000, power_loss, chunk=10_000),)


if __name__ == "__main__":
    log, count, seed = pickle.loads(Path(sys.argv[1]).read_bytes())
    with _fast_folder(Path(tempfile.gettempdir())) as fast:
        examine(log, count, seed, fast, only=int(sys.argv[2]))
    print("this image is fine")
