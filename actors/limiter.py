"""How many calls of one kind may be under way in a runtime, and whose is next when more want to be."""

from __future__ import annotations

from collections import OrderedDict

import gevent
import pykka
from attrs import define, field

from actors.greenlet import GreenletFuture
from actors.timelimits import LEAST_S
from persistence.sources import Clock

LONGEST_PAUSE_S = 300.0  # what an endpoint asks for is believed for so long; then a call may try again

Line = tuple[str, str, str]
"""Who waits: the name of a model ("" where there is none), an agent and a sender."""

_Waiters = OrderedDict[GreenletFuture[None], None]
_Lines = OrderedDict[Line, _Waiters]


@define
class _Pause:
    until: float
    lines: _Lines = field(factory=OrderedDict)


class Limiter:
    """Lets at most `most` calls be under way. Further ones wait in lines, one for each sender, and the lines
    take turns: whoever has a thousand calls waiting delays another by one call.

    Calls of a model whose endpoint asked to be left alone wait until then, and keep nobody else waiting.
    All greenlets of one thread may use it; what it does depends on the order of calls alone.

    Attributes:
        running: calls under way.
        waiting: calls that wait.
        paused_s: seconds of all pauses of models so far, the present ones in full.
    """

    __slots__ = ("_clock", "_pauses", "_ready", "most", "paused_s", "running", "waiting")

    def __init__(self, most: int, clock: Clock) -> None:
        self.most = most
        self.running = 0
        self.waiting = 0
        self.paused_s = 0.0
        self._clock = clock
        self._ready: _Lines = OrderedDict()  # not empty only while `running` is `most`
        self._pauses: dict[str, _Pause] = {}

    def enter(self, line: Line, *, first: bool = False, timeout: float | None = None) -> bool:
        """Count a call as under way, once it may be; blocks the calling greenlet until then.

        A greenlet that is killed here waits no more, and has nothing to leave.

        Args:
            first: before what waits in this line already: a call that was under way before.
            timeout: seconds to wait; None is for ever.

        Returns:
            True, and then `leave` must follow; False when the time is over.
        """
        if self.running < self.most and (not self._pauses or line[0] not in self._pauses):
            self.running += 1
            return True
        return self._wait(line, first, timeout)

    def leave(self) -> None:
        """A call is over: whoever is next takes its place."""
        if self._ready:
            self._let_next_in()
        else:
            self.running -= 1

    def pause(self, model: str, seconds: float) -> None:
        """Let no further call of a model begin for so many seconds; longer pauses swallow shorter ones."""
        now = self._clock.monotonic()
        until = now + min(seconds, LONGEST_PAUSE_S)
        pause = self._pauses.get(model)
        if pause is not None:
            if until > pause.until:
                self.paused_s += until - pause.until
                pause.until = until
        elif until > now:
            self.paused_s += until - now
            self._pauses[model] = pause = _Pause(until)
            for line in [line for line in self._ready if line[0] == model]:
                pause.lines[line] = self._ready.pop(line)
            self._look_again(model, until - now)

    # -- waiting -----------------------------------------------------------------------------------

    def _wait(self, line: Line, first: bool, timeout: float | None) -> bool:
        lines = self._lines_of(line[0])
        waiters = lines.get(line)
        if waiters is None:
            waiters = lines[line] = OrderedDict()
        waiter: GreenletFuture[None] = GreenletFuture()
        waiters[waiter] = None
        if first:
            waiters.move_to_end(waiter, last=False)
        self.waiting += 1
        try:
            waiter.get(timeout=timeout)
        except BaseException as error:
            self._wait_no_more(line, waiter)
            if isinstance(error, pykka.Timeout):
                return False
            raise
        return True

    def _lines_of(self, model: str) -> _Lines:
        pause = self._pauses.get(model)
        return self._ready if pause is None else pause.lines

    def _wait_no_more(self, line: Line, waiter: GreenletFuture[None]) -> None:
        lines = self._lines_of(line[0])
        waiters = lines.get(line)
        if waiters is None or waiter not in waiters:
            self.leave()  # it was let in, and has not heard of it
            return
        del waiters[waiter]
        self.waiting -= 1
        if not waiters:
            del lines[line]

    def _let_next_in(self) -> None:
        line, waiters = self._ready.popitem(last=False)
        waiter, _ = waiters.popitem(last=False)
        if waiters:
            self._ready[line] = waiters  # behind all others
        self.waiting -= 1
        waiter.set()

    # -- pauses ------------------------------------------------------------------------------------

    def _look_again(self, model: str, after_s: float) -> None:
        timer = gevent.get_hub().loop.timer(after_s)
        timer.start(self._look, model, timer)

    def _look(self, model: str, timer: object) -> None:
        """In the hub, when a pause may be over."""
        left_s = self._pauses[model].until - self._clock.monotonic()
        if left_s > 0.0:
            self._look_again(model, max(left_s, LEAST_S))
            return
        self._ready.update(self._pauses.pop(model).lines)
        while self._ready and self.running < self.most:
            self.running += 1
            self._let_next_in()
