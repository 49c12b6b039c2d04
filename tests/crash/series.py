"""Lives of a host on one file, one after the other, with one ledger for all of them."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crash.audit import audit
from crash.driver import Driver, Kill
from crash.evidence import Evidence
from crash.ledger import Ledger
from crash.picture import Picture, take_picture

POINTS_A_LIFE = {"statement": 500, "begin": 40, "commit": 40, "committed": 40, "checkpoint": 8}


class Series:
    """One file in `folder`, and what its lives said. After each life the file is compared with the ledger.

    Args:
        driver: what forks the lives.
        seed: of everything that lives choose.
        name: of the file.
        common: what every life is ordered.
    """

    def __init__(self, driver: Driver, folder: Path, seed: str, name: str, **common: Any) -> None:
        self.ledger = Ledger()
        self.path = folder / f"{name}.db"
        self.lives = 0
        self.last: dict[str, Any] = {}
        self.picture = Picture()
        self._driver = driver
        self._folder = folder
        self._notes = folder / f"{name}.notes"
        self._said: list[dict[str, Any]] = []  # all that the ledger heard, for whoever looks at a failure
        self._read = 0
        self._common = {
            "path": str(self.path),
            "notes": str(self._notes),
            "seed": f"{seed} {name}",
            **common,
        }

    def live(
        self, mode: str, kill: Kill | None = None, *, drained: bool = False, **order: Any
    ) -> dict[str, Any]:
        """Let one life live and die, and audit what it left.

        Args:
            drained: whether it must have left nothing undone.

        Returns:
            The last thing that it said, or {}.
        """
        self.lives += 1
        said: dict[str, Any] = {}
        full = {"life": str(self.lives), "mode": mode, **self._common, **order}
        self.ledger.begin(full.get("recover", "run"))
        for event in self._driver.live(full, kill):
            self._hear(event)
            if event["e"] == "ended":
                self.last = event
            else:
                said = event
        self.audit(drained=drained)
        return said

    def begin(self, mode: str, life: str, **order: Any) -> None:
        """Fork a life beside others; nothing is heard of it yet."""
        self._driver.begin({"life": life, "mode": mode, **self._common, **order})

    def hear_until(self, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Book what the lives say, until `enough` is true of something."""
        while True:
            event = self._driver.hear()
            self._hear(event)
            if enough(event):
                return event

    def end(self, life: str) -> None:
        """Kill a life that was begun, and wait for its end."""
        self._driver.kill(life)
        self.hear_until(lambda event: event["life"] == life and event["e"] == "ended")

    def audit(self, *, drained: bool = False) -> None:
        """Compare the file with the ledger.

        Raises:
            AssertionError: with what is wrong, and after which life. All that lives said is beside the file
                then, a line of JSON each.
        """
        try:
            self.picture = take_picture(self.path, self._folder)
            audit(Evidence(self.ledger, self.picture, self._new_notes(), drained))
        except AssertionError as error:
            lines = "".join(f"{json.dumps(event)}\n" for event in self._said)
            self.path.with_suffix(".said").write_text(lines)
            raise AssertionError(f"{error}\n(life {self.lives} on {self.path})") from error

    @property
    def killed(self) -> bool:
        """Whether the last life was killed, and did not end by itself."""
        return bool(self.last["status"] == -signal.SIGKILL)

    def _hear(self, event: dict[str, Any]) -> None:
        self._said.append(event)
        self.ledger.hear(event)

    def _new_notes(self) -> list[tuple[str, str]]:
        if not self._notes.exists():
            return []
        with self._notes.open() as file:
            file.seek(self._read)
            lines = file.read().splitlines()
            self._read = file.tell()
        return [(life, what) for life, _, what in (line.partition(" ") for line in lines)]


def some_death(rng: random.Random) -> tuple[Kill | None, dict[str, Any]]:
    """A way to die: half of them at random moments, half at chosen points of the work with the file."""
    order: dict[str, Any] = {"wal_pages": rng.choice((None, None, 4, 40))}
    chance = rng.random()
    if chance < 0.5:
        kill = Kill(rng.randint(1, 160), rng.randint(0, 3_000))
        return kill, order
    if chance < 0.58:  # while the file is opened, and what is in it brought back
        return None, {**order, "point": ["statement", rng.randint(1, 80), 0]}
    if chance < 0.66:  # while it is closed
        later = rng.choice((0, rng.randint(1, 3_000)))
        return None, {
            **order,
            "acts": rng.randint(1, 12),
            "point": ["close", 1, later],
            "shutdown": rng.choice((0, 0.01)),
        }
    place = rng.choice(list(POINTS_A_LIFE))
    later = rng.randint(1, 800) if place in ("commit", "checkpoint") and rng.random() < 0.6 else 0
    point = [place, rng.randint(1, POINTS_A_LIFE[place]), later]
    return None, {**order, "point": point, "checkpoint_every": 5 if place == "checkpoint" else 0}
