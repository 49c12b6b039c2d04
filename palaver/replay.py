"""Replaying recorded dialogues of many senders through the whole runtime, and checking the file."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Callable, Sequence

from attrs import frozen
from gevent.pool import Pool

from actors.config import AgentConfig
from actors.errors import InvalidInput
from actors.models.dialogues import Dialogue, RecordedModel, expected_entries, recorded_tools
from palaver.offline import compare_transcripts, inspect, offline, refuse_known_senders
from palaver.running import running
from palaver.runtime import Runtime
from persistence.errors import PalaverError
from persistence.sources import Clock, SystemClock

AGENT = "recorded"


@frozen
class ReplayReport:
    """What a replay did, how fast, and everything that is not as it should be.

    `p50_ms` and `p99_ms` are of a turn, from the call of `send` to its return; `commits` are those of the
    database thread; `problems` is what `verify` found in the file, `differences` where an answer or a
    stored transcript is not the recorded one.
    """

    dialogues: int
    senders: int
    turns: int
    seconds: float
    turns_per_s: float
    p50_ms: float
    p99_ms: float
    entries: int
    tool_calls: int
    compactions: int
    archives: int
    commits: int
    peak_memory_mb: float
    problems: tuple[str, ...]
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return not self.problems and not self.differences


def replay(
    dialogues: Sequence[Dialogue],
    path: str | os.PathLike[str],
    *,
    senders: int = 100,
    compact_threshold: int | None = 100_000,
    on_turn: Callable[[], object] = lambda: None,
    clock: Clock | None = None,
) -> ReplayReport:
    """Replay dialogues, each by a sender of its own in a topic of its own; then check the file.

    The model makes the recorded calls, tools give their recorded results, and the model gives the
    recorded answers. Blocks the calling greenlet while the dialogues run, and its thread while the file
    is checked. The file is closed however it ends.

    Args:
        dialogues: one or more, each with an id of its own.
        path: the database; made if it is missing.
        senders: dialogues that run at a time.
        compact_threshold: estimated tokens above which history is compacted; None is never.
        on_turn: called after each turn.
        clock: the machine's if None.

    Raises:
        InvalidInput: no dialogues, no senders, or the file holds sessions of theirs already.
        StorageError: the file cannot be opened.
    """
    run = Replay(dialogues, path, clock=clock)
    run.play(senders=senders, compact_threshold=compact_threshold, on_turn=on_turn)
    return run.check()


class Replay:
    """As `replay`, in two steps: `play` blocks the calling greenlet, `check` the whole thread."""

    def __init__(
        self, dialogues: Sequence[Dialogue], path: str | os.PathLike[str], *, clock: Clock | None = None
    ) -> None:
        if not dialogues:
            raise InvalidInput("a replay needs one or more dialogues; there are none")
        self._dialogues = dialogues
        self._path = path
        self._clock = clock or SystemClock()
        self._latencies_s: list[float] = []
        self._differences: list[str] = []
        self._senders = self._commits = 0
        self._seconds = 0.0

    def play(
        self,
        *,
        senders: int = 100,
        compact_threshold: int | None = 100_000,
        on_turn: Callable[[], object] = lambda: None,
    ) -> None:
        """Let the dialogues run in a runtime on the file, and shut it down."""
        if senders < 1:
            raise InvalidInput(f"a replay needs one or more senders, not {senders}")
        self._senders = min(senders, len(self._dialogues))
        refuse_known_senders(self._path, AGENT, [dialogue.id for dialogue in self._dialogues])
        model, tools = RecordedModel(self._dialogues, chunk_chars=None), recorded_tools(self._dialogues)
        with running(Runtime.open(self._path, model, tools=tools)) as rt:
            rt.add_agent(AgentConfig(AGENT, model=AGENT, compact_threshold=compact_threshold))
            began = self._clock.monotonic()
            pool = Pool(self._senders)
            try:
                for _ in pool.imap_unordered(lambda each: self._speak(rt, each, on_turn), self._dialogues):
                    pass
            finally:
                pool.kill()
            self._seconds = self._clock.monotonic() - began
        self._commits = rt.stats().commits

    def check(self) -> ReplayReport:
        """Verify the file, compare what it holds with the dialogues, and report."""
        with offline(self._path) as db:
            problems = inspect(db).problems
            wanted = {(each.id, topic_of(each)): expected_entries(each) for each in self._dialogues}
            stored = compare_transcripts(db, AGENT, wanted)
        return ReplayReport(
            dialogues=len(self._dialogues),
            senders=self._senders,
            turns=len(self._latencies_s),
            seconds=self._seconds,
            turns_per_s=len(self._latencies_s) / self._seconds,
            p50_ms=1000 * percentile(self._latencies_s, 50),
            p99_ms=1000 * percentile(self._latencies_s, 99),
            entries=stored.entries,
            tool_calls=stored.tool_calls,
            compactions=stored.compactions,
            archives=stored.archives,
            commits=self._commits,
            peak_memory_mb=peak_memory_mb(),
            problems=problems,
            differences=(*self._differences, *stored.differences),
        )

    def _speak(self, rt: Runtime, dialogue: Dialogue, on_turn: Callable[[], object]) -> None:
        number = 0
        try:
            title, about = topic_of(dialogue), dialogue.turns[0].user
            cid = rt.switch_topic(AGENT, dialogue.id, title, about).conversation_id
            for number, turn in enumerate(dialogue.turns):
                began = self._clock.monotonic()
                result = rt.send(cid, turn.user)
                self._latencies_s.append(self._clock.monotonic() - began)
                on_turn()
                if (result.stop_reason, result.text) != ("text_response", turn.assistant):
                    said = result.error or f"{result.stop_reason}, {result.text!r}"
                    self._differ(dialogue, number, f"should answer {turn.assistant!r}, gave {said}")
        except PalaverError as error:
            self._differ(dialogue, number, f"{type(error).__name__}: {error}")

    def _differ(self, dialogue: Dialogue, number: int, words: str) -> None:
        self._differences.append(f"sender {dialogue.id!r}, turn {number}: {words}")


def topic_of(dialogue: Dialogue) -> str:
    """The title of the topic that a dialogue is replayed in."""
    return f"dialogue {dialogue.id}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` per cent do not exceed; 0 of none."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def peak_memory_mb() -> float:
    """The most memory (resident, in MB of 1,000,000 bytes) that this process has had so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
