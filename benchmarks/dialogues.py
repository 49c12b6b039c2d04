"""Recorded dialogues with their tool calls, 1,000 at a time."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402  # gevent patches first
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from itertools import islice  # noqa: E402
from pathlib import Path  # noqa: E402

import attrs  # noqa: E402
import gevent  # noqa: E402
from gevent.pool import Pool  # noqa: E402

from actors.models.dialogues import Dialogue, RecordedModel, read_dialogues, recorded_tools  # noqa: E402
from benchmarks.report import Goal, Part, Row, Series, Tell  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from benchmarks.turns import rate_goal, raw  # noqa: E402
from benchmarks.work import HubWatch, running, settled, temporary_file  # noqa: E402
from palaver.demo import demo_dialogues  # noqa: E402

ABOUT = """Every dialogue of a recording is a sender with a topic of its own; 1,000 of them at a time say
what was said, the model makes the recorded tool calls and gives the recorded answers, and the tools the
recorded results. A turn with tool calls is two model rounds and two commits. `raw` writes the rows of as many
plain turns by sqlite3 alone, 1,000 to a commit. $PALAVER_DIALOGUES names the
recording; it is ../shared/data/dialogues.jsonl if that is there, else the dialogues of the demonstration,
again and again."""
VARIABLE = "PALAVER_DIALOGUES"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "dialogues.jsonl"
AT_ONCE = 1_000


def recording(most: int) -> tuple[str, list[Dialogue]]:
    """Where the dialogues are from, and so many of them."""
    path = Path(os.environ.get(VARIABLE) or SHARED)
    if path.exists():
        return path.name, list(islice(read_dialogues(path), most))
    few = demo_dialogues()
    numbers = range(most // len(few))
    many = [attrs.evolve(each, id=f"{each.id} {number}") for number in numbers for each in few]
    return "the demonstration's", many


def play(dialogues: Sequence[Dialogue]) -> tuple[float, float, float]:
    """Turns/s, how long the hub was blocked, and what of that it worked itself, in ms."""
    model = RecordedModel(dialogues, chunk_chars=0)
    tools = recorded_tools(dialogues)
    with temporary_file() as path, running(path, model, tools=tools) as rt, settled():

        def talk(dialogue: Dialogue) -> int:
            cid = rt.switch_topic("agent", dialogue.id, "topic", "recorded").conversation_id
            for turn in dialogue.turns:
                assert rt.send(cid, turn.user).text == turn.assistant
            return len(dialogue.turns)

        pool = Pool(AT_ONCE)
        with HubWatch() as hub:
            began = time.perf_counter()
            turns = sum(pool.imap_unordered(talk, dialogues))
            spent = time.perf_counter() - began
    gevent.sleep(0)
    return turns / spent, hub.blocked_ms, hub.busy_ms


def run(quick: bool, tell: Tell) -> Part:
    name, dialogues = recording(200 if quick else 100_000 if Path(SHARED).exists() else 2_000)
    rounds = 1 if quick else 5
    calls = sum(len(turn.calls) for each in dialogues for turn in each.turns)
    found = []
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}, {len(dialogues):,} dialogues")
        found.append((*play(dialogues), raw(AT_ONCE)))
    rates, blocked, busy, raws = (Series(tuple(values)) for values in zip(*found, strict=True))
    rows = [
        Row(f"turns/s, {calls:,} tool calls among them", {"ours": rates, "raw": raws}),
        Row("hub blocked, ms", {"ours": blocked}),
        Row("of which at work itself, ms", {"ours": busy}),
    ]
    goals = [
        rate_goal("turns/s with tool calls", rates, raws, 4_000),
        Goal("hub blocked, ms", blocked.median, 50, at_most=True),
    ]
    notes = [f"{len(dialogues):,} dialogues, from {name}"]
    return Part("dialogues", ABOUT, rows, (), goals, notes, setting("gevent", "sqlite-utils"))
