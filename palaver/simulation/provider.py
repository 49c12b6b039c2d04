"""The model and the tool of a simulated host: as fast, as crowded and as faulty as its workload says, until
the faults stop: then everything is answered at once.

What an answer is like depends on the seed, on the act that it answers and on its place among that act's
answers, and on nothing else that happens: it stays the same when other acts are left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

from attrs import define, evolve

from actors.errors import ModelError
from actors.greenlet import GreenletFuture
from actors.models.base import Chunk, ModelRequest, ToolCallDelta
from actors.models.plain import plain_summary, plain_title
from actors.models.retry import back_off
from actors.tools import ToolContext
from palaver.simulation.distributions import Fixed
from palaver.simulation.loop import pause
from persistence.sources import seeded_random

if TYPE_CHECKING:
    from random import Random

    from palaver.simulation.run import Run

TOKEN_CHARS = 4
FIRST = "a"  # what every answer begins with
TOOL = "work"
STALLED_S = 60.0  # the longest that a stall goes on when the faults have stopped


def filled(start: str, chars: int) -> str:
    """`start`, and as many characters behind it as make `chars`."""
    return f"{start} {'.' * (chars - len(start) - 1)}" if chars > len(start) + 1 else start


def act_of(content: str) -> int:
    """The act that a message is of; 0 if it is of none."""
    number = content.partition(" ")[0]
    return int(number) if number.isdigit() else 0


class Streams:
    """Generators by number: each gives the same draws whenever it is asked for."""

    def __init__(self, *of: object) -> None:
        self._rng = seeded_random(*of)
        self._base = self._rng.getrandbits(64) << 96

    def __call__(self, *place: int) -> Random:
        """One generator for all: draw from it before it is asked for another place."""
        number = self._base
        for part in place:
            number = (number << 32) ^ part
        self._rng.seed(number)
        return self._rng


@define(eq=False)
class Answer:
    """One answer as it was drawn."""

    fault: str  # "limited", "error", "empty", "cut", or none
    retry_after_s: float
    first_s: float  # until something is said
    rest_s: float
    stall_s: float
    tool: bool
    tokens: float
    jitter: float

    def random(self) -> float:
        """For the back-off."""
        return self.jitter


class Slots:
    """The places of a provider: first come, first served.

    Attributes:
        taken: calls that are being answered.
        waiting: calls that wait for a place.
    """

    def __init__(self, most: int) -> None:
        self.taken = 0
        self._most = most
        self._line: deque[GreenletFuture[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def full(self) -> bool:
        return bool(self._most) and self.taken >= self._most

    def enter(self) -> None:
        """Wait for a place."""
        if not self._most or self.taken < self._most:
            self.taken += 1
            return
        mine: GreenletFuture[None] = GreenletFuture()
        self._line.append(mine)
        try:
            mine.get()
        except BaseException:
            if mine in self._line:
                self._line.remove(mine)
            else:
                self.leave()
            raise

    def leave(self) -> None:
        """Whoever waits first takes the place."""
        if self._line:
            self._line.popleft().set()
        else:
            self.taken -= 1


class Provider:
    """The model. It tells the run what it does."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._profile = run.workload.provider
        self._rates = run.plan.rates
        self._streams = Streams("provider", run.seed)
        faults = ("limited", "limited"), ("error", "errors"), ("empty", "empty"), ("cut", "cuts")
        self._faults = [(fault, rate) for fault, name in faults if (rate := getattr(self._rates, name))]
        self._refuses = self._profile.over == "429"
        self._others = 0
        self._same = self._undrawn()
        self.slots = Slots(self._profile.concurrency)

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        """An answer; tried again as `OpenAIModel` tries, while nothing was said."""
        if not self._run.check:
            return self._answer(request)
        return self._watched(request)

    def _watched(self, request: ModelRequest) -> Iterator[Chunk]:
        watch = self._run.watch
        watch.check_pairing(request)
        if request.purpose != "turn":
            yield from self._answer(request)
            return
        watch.begins(request)
        with watch.at_work(request.conversation_id, request.turn_id):
            yield from self._answer(request)

    def _answer(self, request: ModelRequest) -> Iterator[Chunk]:
        act, place = self._place(request)
        attempt = 0
        while True:
            if self._same is not None:
                answer = self._same[self._run.healing]
            else:
                answer = self._draw(act, place, attempt, bool(request.tools))
            failure = self._begin(act, answer, request)
            if not failure:
                try:
                    yield from self._say(act, place, answer, request)
                finally:
                    self.slots.leave()
                return
            self._run.figures.answer_failed(failure)
            self._run.note("model", failure, act=act, attempt=attempt)
            after_s = answer.retry_after_s if failure == "limited" else None
            if attempt >= self._profile.retries:
                raise ModelError(
                    f"the provider answered {failure!r} (attempt {attempt + 1})",
                    retryable=True,
                    retry_after_s=after_s,
                )
            wait_s = back_off(attempt, after_s, answer)
            if after_s and request.pause is not None:
                request.pause(after_s)
                wait_s -= after_s
            attempt += 1
            pause(wait_s)

    def _begin(self, act: int, answer: Answer, request: ModelRequest) -> str:
        """Begin an attempt and take its place; what is wrong, if it ends at once and has no place."""
        slots = self.slots
        if self._refuses and slots.full:
            return "limited"
        slots.enter()
        self._run.figures.answering(act)
        if self._run.telling:
            self._run.note("model", "answers", act=act, turn=request.turn_id)
        if answer.fault in ("limited", "error"):
            slots.leave()
            return answer.fault
        return ""

    def _say(self, act: int, place: int, answer: Answer, request: ModelRequest) -> Iterator[Chunk]:
        text = "" if answer.fault == "empty" else self._text(act, place, answer.tokens, request)
        size = -(-len(text) // max(1, self._profile.chunks)) or 1
        last = max(0, len(text) - 1) // size
        gap_s = answer.rest_s / max(1, last) if text else 0.0
        for index in range(last + 1):
            wait_s = (answer.first_s if index == 0 else 0.0) + (gap_s if index or not last else 0.0)
            if wait_s:
                pause(wait_s)
            if index == last and (answer.stall_s or answer.fault == "cut"):
                self._falter(answer)
            over = index == last and not answer.tool
            yield Chunk(text[index * size : (index + 1) * size], finish_reason="stop" if over else None)
        if answer.tool:
            call = ToolCallDelta(0, f"c{act}.{place}", TOOL, "{}")
            yield Chunk(tool_calls=(call,), finish_reason="tool_calls")

    def _falter(self, answer: Answer) -> None:
        if answer.stall_s:
            self._run.note("model", "stalls", for_s=round(answer.stall_s, 6))
            left_s = answer.stall_s
            while left_s > 0.0 and not self._run.healing:
                pause(min(left_s, STALLED_S))
                left_s -= STALLED_S
        if answer.fault == "cut":
            self._run.figures.answer_failed("cut")
            raise ModelError("the provider's answer broke off", retryable=True)

    # -- drawing -----------------------------------------------------------------------------------

    def _place(self, request: ModelRequest) -> tuple[int, int]:
        if request.purpose != "turn":
            self._others += 1
            return 0, self._others
        messages = request.messages
        for place in range(len(messages) - 1, -1, -1):
            if messages[place]["role"] == "user":
                act = act_of(messages[place]["content"])
                return (act, len(messages) - place) if act else (0, request.turn_id)
        return 0, request.turn_id

    def _undrawn(self) -> tuple[Answer, Answer] | None:
        """What each answer is like, while there are faults and afterwards; None where that is drawn."""
        profile, rates = self._profile, self._rates
        drawn = profile.tokens_out, profile.tokens_per_s, profile.first_token_s
        faulty = self._faults or self._refuses or rates.stalls or rates.tool_calls
        if faulty or not all(isinstance(each, Fixed) for each in drawn):
            return None
        tokens, speed, first_s = max(1.0, drawn[0].mean), drawn[1].mean, drawn[2].mean
        usual = Answer("", 0.0, first_s, tokens / speed if speed else 0.0, 0.0, False, tokens, 0.0)
        return usual, evolve(usual, first_s=0.0, rest_s=0.0)

    def _draw(self, act: int, place: int, attempt: int, tools: bool) -> Answer:
        rng, profile, rates = self._streams(act, place, attempt), self._profile, self._rates
        chance, stall, tool, jitter = rng.random(), rng.random(), rng.random(), rng.random()
        calm, fault = self._run.healing, ""
        if not calm:
            for name, rate in self._faults:
                if chance < rate:
                    fault = name
                    break
                chance -= rate
        tokens = max(1.0, profile.tokens_out.draw(rng))
        speed = profile.tokens_per_s.draw(rng)
        return Answer(
            fault,
            profile.retry_after_s.draw(rng),
            0.0 if calm else profile.first_token_s.draw(rng),
            tokens / speed if speed > 0.0 and not calm else 0.0,
            profile.stall_s.draw(rng) if stall < rates.stalls and not calm else 0.0,
            tools and tool < rates.tool_calls and not calm,
            tokens,
            jitter,
        )

    def _text(self, act: int, place: int, tokens: float, request: ModelRequest) -> str:
        if request.purpose == "compact":
            return plain_summary(request.messages)
        if request.purpose == "title":
            return plain_title(request.messages)
        return filled(f"{FIRST}{act}.{place}", int(tokens) * TOKEN_CHARS)


class Toolbox:
    """The tools of a simulated host: one, which takes its time and may fail."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._streams = Streams("tools", run.seed)

    def work(self, call: ToolContext) -> str:
        """Do some work."""
        run, tools = self._run, self._run.workload.tools
        run.figures.tool_called()
        if run.telling:
            run.note("tool", "works", turn=call.turn_id, call=call.call_id)
        act, _, place = call.call_id[1:].partition(".")
        rng = self._streams(int(act), int(place)) if place.isdigit() and act.isdigit() else self._streams(0)
        fails, seconds, chars = rng.random(), tools.seconds.draw(rng), tools.chars.draw(rng)
        with run.watch.at_work(call.conversation_id, call.turn_id) if run.check else nullcontext():
            if seconds and not run.healing:
                pause(seconds)
        if fails < run.plan.rates.tool_failures and not run.healing:
            raise ValueError("the work failed")
        return filled("worked", int(chars))
