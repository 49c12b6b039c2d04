"""SIGKILL, again and again: whatever a host acknowledged is in the file, once, whole and in order."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crash.driver import Driver, Kill
from crash.life import AGENTS
from crash.mind import ANY_LIFE, message
from crash.recoveries import check_order, check_same, outcome, recover_aside
from crash.senders import MIX, SENDERS, TOPICS
from crash.series import Series, some_death

from reliability.check import Check

LIVES_ON_A_FILE = 8
KILLS_OF_A_RECOVERY = 5
KEYS_ON_A_FILE = 250
SENDS_A_LIFE = 150
NAMES_ON_A_FILE = 2_000
CONVERSATIONS = 64
MOST_LIVES = 500
RESTS = (30.0, 30.0, 0.02, 0.003)  # seconds after which idle topics leave memory, to come back at once

MIXED = {"senders": 12, "acts": 30, "delays": [0, 5, 20, 50, 200]}
# All in one topic, which is closed and deleted again and again.
CROWDED = {
    **MIXED,
    "crowded": True,
    "mix": {**MIX, "steer": 24, "close": 6, "delete": 5, "switch": 2, "compact": 2},
}
# Much is accepted and little done, so that a recovery has much to do; no answer depends on when it compacts.
HEAPED = {
    "senders": 16,
    "acts": 40,
    "delays": [0, 100, 5_000, 20_000],
    "steady": True,
    "mix": {"switch": 12, "submit": 50, "steer": 25, "cancel_ticket": 2, "remember": 2, "compact": 1},
}


def kills(count: int, seed: int, folder: Path) -> int:
    """G1, 2, 5, 6, 7, 11: lives of many senders, killed at random moments and at every kind of write."""

    def on_one_file(driver: Driver, rng: random.Random, series: Series) -> int:
        killed = 0
        common = CROWDED if rng.random() < 0.3 else MIXED
        for _ in range(LIVES_ON_A_FILE):
            kill, order = some_death(rng)
            recover = rng.choices(("run", "hold", "fail"), (70, 20, 10))[0]
            more = {"retries": series.ledger.retries(), "recover": recover, "rests": rng.choice(RESTS)}
            series.live("mix", kill, **{**common, **order, **more})
            killed += series.killed
        series.live("drain", drained=True)
        return killed

    return _on_files("kills", on_one_file, count, seed, folder)


def recovery_kills(count: int, seed: int, folder: Path) -> int:
    """G20: what a recovery that was killed again and again comes to is what an undisturbed one comes to."""

    def on_one_file(driver: Driver, rng: random.Random, series: Series) -> int:
        if rng.random() < 0.2:
            return _poisoned(rng, series)
        for _ in range(rng.randint(1, 2)):
            series.live("mix", Kill(rng.randint(120, 300), rng.randint(0, 2_000)))
        left = series.picture
        aside, steps = recover_aside(driver, series)
        check_order(left, aside)
        killed, left_to_do = 0, 1.0
        for kill in range(KILLS_OF_A_RECOVERY):
            place = rng.choice(("statement", "statement", "commit", "committed", "begin"))
            part = rng.random() * 0.7
            number = max(1, round(steps[place] * left_to_do * part))
            series.live("drain", point=[place, number, rng.choice((0, 0, 100)) if place == "commit" else 0])
            left_to_do *= 1 - part
            killed += series.killed
            if kill == 0:
                before = series.picture
                series.live("hold", recover="hold", shutdown=0)
                check_same(before, series.picture, "opening the file with recover='hold' changed it")
        series.live("drain", drained=True)
        check_same(
            outcome(left, aside),
            outcome(left, series.picture),
            "G20: a killed recovery came to another end",
        )
        before = series.picture
        series.live("drain", drained=True)
        check_same(before, series.picture, "G20: recovering again changed what is stored")
        return killed

    return _on_files("recovery-kills", on_one_file, count, seed, folder, **HEAPED)


def retry_storm(count: int, seed: int, folder: Path) -> int:
    """G4: each key up to five times, and once more whenever the answer did not come before the kill."""

    def on_one_file(driver: Driver, rng: random.Random, series: Series) -> int:
        waiting = _sends(rng)
        while waiting:
            now, waiting = waiting[:SENDS_A_LIFE], waiting[SENDS_A_LIFE:]
            kill, order = some_death(rng)
            if not waiting or rng.random() < 0.3:
                kill, order = None, {}
            series.live("storm", kill, **{**order, "sends": now})
            waiting += _unanswered(series, now)
        series.live("drain", drained=True)
        return len(series.ledger.by_kind["send"])

    return _on_files("retry-storm", on_one_file, count, seed, folder, senders=24)


def archive_names(count: int, seed: int, folder: Path) -> int:
    """G10: conversations of one slug in one scope compact all at once; no name is given twice."""

    def on_one_file(driver: Driver, rng: random.Random, series: Series) -> int:
        wanted = min(count, NAMES_ON_A_FILE)
        while (names := _names(series)) < wanted:
            assert series.lives < MOST_LIVES, f"G10: {series.lives} lives made {names} archives"
            kill, order = some_death(rng)
            if kill is not None:
                kill = Kill(kill.acks * 5, kill.later_us)
            series.live("archives", kill, **{**order, "acts": rng.randint(5, 25)})
        return names

    return _on_files("archive-names", on_one_file, count, seed, folder, senders=CONVERSATIONS)


def two_processes(count: int, seed: int, folder: Path) -> int:
    """G6: while one process has the file, another is refused; once it is killed, the next is welcome."""

    def on_one_file(driver: Driver, rng: random.Random, series: Series) -> int:
        for number in range(10):
            _one_pair(rng, series, f"{number}")
        return 10

    return _on_files("two-processes", on_one_file, count, seed, folder, senders=2, delays=[0, 5, 20])


CHECKS = (
    Check("kills", (1, 2, 5, 6, 7, 11), "kills", 60, 2_000, kills),
    Check("recovery-kills", (20,), "kills", 10, 300, recovery_kills),
    Check("retry-storm", (4,), "sends", 2_000, 100_000, retry_storm),
    Check("archive-names", (10,), "names", 2_000, 200_000, archive_names),
    Check("two-processes", (6,), "pairs", 10, 200, two_processes),
)


# -- files ----------------------------------------------------------------------------------------


def _on_files(
    check: str,
    on_one_file: Callable[[Driver, random.Random, Series], int],
    count: int,
    seed: int,
    folder: Path,
    **common: Any,
) -> int:
    """Let `on_one_file` work on one new file after the other until `count` are done."""
    done = 0
    with Driver() as driver:
        for number in itertools.count():
            if done >= count:
                break
            own = folder / f"{check} {number}"
            own.mkdir()
            with _repeatable(f"{check} {count} {seed}", number, own):
                series = Series(driver, own, f"{seed} {number}", "host", **common)
                done += on_one_file(driver, random.Random(f"{check} {seed} {number}"), series)
            shutil.rmtree(own)
    return done


@contextlib.contextmanager
def _repeatable(part: str, number: int, folder: Path) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        again = f"python tests/reliability --part {part}"
        raise AssertionError(f"{error}\n(file {number} in {folder}; again: {again})") from error


# -- recoveries -----------------------------------------------------------------------------------


def _one_pair(rng: random.Random, series: Series, name: str) -> None:
    first, second, third = f"{name}a", f"{name}b", f"{name}c"

    def answer_of(life: str) -> dict[str, Any]:
        return series.hear_until(lambda event: event["life"] == life and event["e"] == "ack")

    series.begin("mix", first, acts=5_000)
    series.hear_until(lambda event: event["e"] == "open")
    series.begin("hold", second)
    told = answer_of(second)
    assert told.get("error") == "DatabaseInUse", f"G6: a second process was told {told}"
    for _ in range(rng.randint(0, 40)):
        series.hear_until(lambda event: event["life"] == first)
    series.end(first)
    series.begin("hold", third, shutdown=0)
    told = answer_of(third)
    assert "error" not in told, f"G6: the file of a killed process was refused: {told}"
    series.hear_until(lambda event: event["life"] == third and event["e"] == "ended")
    series.audit()


def _poisoned(rng: random.Random, series: Series) -> int:
    """A message that takes its process down three times ends `failed`; all others are done."""
    series.ledger.poison = True
    series.live("poison", attempts=3)
    killed = 1
    while series.killed and killed < 5:
        series.live("drain", attempts=3)
        killed += series.killed
    assert killed == 3, f"G12: a message took its process down {killed} times"
    series.audit(drained=True)
    return killed


# -- the same keys again and again -----------------------------------------------------------------


def _sends(rng: random.Random) -> list[list[str]]:
    """[agent, sender, topic, key, content], each up to five times; a few keys also with other content."""
    sends: list[tuple[float, list[str]]] = []
    for number in range(KEYS_ON_A_FILE):
        agent, topic = rng.choice(AGENTS).name, rng.choice(TOPICS)
        key = f"key {number // 4}"  # several senders have keys of the same text
        sender = (*SENDERS, "dan")[number % 4]
        content = message(f"{ANY_LIFE}.{number}", tools=rng.choice((0, 0, 1)), delay=rng.choice((0, 0, 10)))
        at = rng.random()
        for _ in range(rng.randint(1, 5)):  # at once, or much later
            sends.append((at + rng.choice((0, 0.01, 1)) * rng.random(), [agent, sender, topic, key, content]))
        if rng.random() < 0.1:
            other = message(f"{ANY_LIFE}.{number + KEYS_ON_A_FILE}")
            sends.append((at + rng.random() * 0.02, [agent, sender, topic, key, other]))
    return [send for _, send in sorted(sends)]


def _unanswered(series: Series, sends: list[list[str]]) -> list[list[str]]:
    """Those of the last life's sends that it did not answer, or only with its own shutdown."""
    answers = Counter(
        op.facts["content"]
        for op in series.ledger.by_kind["send"]
        if op.life == str(series.lives) and (op.accepted or op.refused)
    )
    left = []
    for send in sends:
        if answers[send[-1]] > 0:
            answers[send[-1]] -= 1
        else:
            left.append(send)
    return left


def _names(series: Series) -> int:
    return sum(1 for op in series.ledger.by_kind["compact"] if op.accepted and op.ack and op.ack["archive"])
