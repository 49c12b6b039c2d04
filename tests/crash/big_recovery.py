"""How long a large file takes to open after a crash: `python tests/crash/big_recovery.py [FILE]`.

Prints the seconds until a file with 10,000 conversations and 100,000 queued turns is open and takes new work,
and until all of that is done. G20 allows 10 s for the first.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402 - patched first
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import gevent  # noqa: E402

from palaver import AgentConfig, Limits, Reply, Runtime, ScriptedModel  # noqa: E402
from persistence.database import close_database, open_database  # noqa: E402
from persistence.records import TurnRow  # noqa: E402
from persistence.sessions import open_session  # noqa: E402
from persistence.writes import WriteSet, apply  # noqa: E402

CONVERSATIONS = 10_000
TURNS_EACH = 10


def make_file(path: Path, conversations: int = CONVERSATIONS, turns_each: int = TURNS_EACH) -> None:
    """A file as a host leaves it that accepted much and was killed before it did any of it."""
    db = open_database(path)
    try:
        db.execute("BEGIN IMMEDIATE")
        waiting: list[tuple[str, int, str]] = []
        for number in range(conversations):
            topic = {"agent": "clerk", "sender": f"sender {number}", "topic": "work"}
            found = open_session(
                db, **topic, handle=f"{number:032x}", at=1.0, scope=topic["sender"], description="work"
            )
            assert found is not None
            waiting += [(f"message {turn}", found[0].id, topic["sender"]) for turn in range(turns_each)]
        # As they were accepted: the first message of everybody, then the second.
        rows = (
            TurnRow(id_, session_id, sender, content, "queued", accepted_at=1.0)
            for id_, (content, session_id, sender) in enumerate(sorted(waiting), start=1)
        )
        apply(db, [WriteSet(new_turns=tuple(rows))])
        db.commit()
    finally:
        close_database(db)


def measure(path: Path) -> dict[str, float]:
    """Seconds since the opening began until: the call returned, the agent was registered, a new message of a
    new sender was answered, every conversation was live, everything was done."""
    began = time.perf_counter()
    seconds: dict[str, float] = {}

    def reached(what: str) -> None:
        seconds[what] = time.perf_counter() - began

    limits = Limits(queued_total=1_000_000)
    model = ScriptedModel(lambda _request: Reply("done"), keep_requests=0)
    with Runtime.open(path, model, limits=limits) as rt:
        reached("open")
        rt.add_agent(AgentConfig(name="clerk", auto_title=False))
        reached("registered")
        cid = rt.switch_topic("clerk", "somebody new", "now", "something new").conversation_id
        rt.send(cid, "hello")
        reached("new message answered")
        while rt.unfinished():
            gevent.sleep(0.05)
        reached("all live")
        while rt.stats().queued or rt.stats().running:
            gevent.sleep(0.05)
        reached("all done")
    reached("closed")
    return seconds


def main() -> None:
    """Make a file, or use the given path for it, and print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "big.db"
        make_file(path)
        size = path.stat().st_size / 1e6
        print(f"{CONVERSATIONS:,} conversations, {CONVERSATIONS * TURNS_EACH:,} queued turns, {size:.0f} MB")
        for what, seconds in measure(path).items():
            print(f"{what:>24}: {seconds:6.2f} s")


if __name__ == "__main__":
    main()
