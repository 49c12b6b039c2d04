"""A process that is a host: what one life does, and how it ends when something is wrong or nobody listens."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import gevent
import gevent.event
import gevent.util
from gevent import GreenletExit

from crash.calls import enter, submit
from crash.life import PATIENCE_S, Life, Voice
from crash.mind import POISON, message
from crash.senders import TOPICS, Keys, Sender
from crash.storms import make_archives, send_storm

READABLE = 1


def live(order: dict[str, Any], pipe: int, parent: int) -> NoReturn:
    """Be a host, in a child that was just forked, and end the process."""
    voice = Voice(pipe, order["life"])
    status = 70
    try:
        gevent.reinit()
        faulthandler.dump_traceback_later(PATIENCE_S + 5, exit=True)  # if even the hub does not run any more
        hub = gevent.get_hub()
        hub.handle_error = _crash_with(voice)
        orphaned = hub.loop.io(parent, READABLE)
        orphaned.start(os._exit, 71)
        stuck = hub.loop.timer(PATIENCE_S)
        stuck.start(_give_up, voice)
        logging.getLogger("palaver").addHandler(_Saying(voice))
        _MODES[order["mode"]](Life(order, voice))
        status = 0
    except BaseException:  # whatever it is, the driver must hear of it
        with contextlib.suppress(BaseException):
            voice.say(e="crash", words=traceback.format_exc()[-3_000:])
    finally:
        os._exit(status)


# -- modes ----------------------------------------------------------------------------------------


def _mix(life: Life) -> None:
    """Many senders at once, each doing a bit of everything."""
    life.open()
    keys = Keys(life)
    senders = [gevent.spawn(Sender(life, number, keys).run) for number in range(life.order["senders"])]
    gevent.joinall(senders, raise_error=True)
    _end(life)


def _storm(life: Life) -> None:
    """The same keys again and again, many at the same time."""
    life.open()
    send_storm(life)
    _end(life)


def _archives(life: Life) -> None:
    """Many conversations of one slug that compact at once."""
    life.open()
    make_archives(life)
    _end(life)


def _drain(life: Life) -> None:
    """Nothing new: what was left undone is done, and the file closed."""
    life.open()
    life.settle()
    life.shut_down(PATIENCE_S)


def _hold(life: Life) -> None:
    """Open the file and keep it."""
    if life.call("open", life.open, lambda _true: {}):
        _end(life)


def _poison(life: Life) -> None:
    """Many messages, one of which takes the process down whenever its turn runs."""
    life.open()
    place = enter(life, "solo", "ann", TOPICS[0])  # one topic: what runs beside it when it dies, dies too
    assert place is not None
    for number in range(12):
        op = life.next_op()
        submit(life, place, op, message(op, tools=POISON if number == 2 else number % 3), busy="enqueue")
    _end(life)


def _end(life: Life) -> None:
    if life.order.get("shutdown") is not None:
        life.shut_down(life.order["shutdown"])
        return
    life.voice.say(e="idle")
    gevent.event.Event().wait()


_MODES: dict[str, Callable[[Life], None]] = {
    "mix": _mix,
    "storm": _storm,
    "archives": _archives,
    "drain": _drain,
    "hold": _hold,
    "poison": _poison,
}


# -- what must not happen -------------------------------------------------------------------------


class _Saying(logging.Handler):
    """Errors of Palaver's own log, for whoever looks at a failure."""

    def __init__(self, voice: Voice) -> None:
        super().__init__(logging.ERROR)
        self._voice = voice

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage()
        if record.exc_info:
            words += "\n" + "".join(traceback.format_exception(*record.exc_info))[-2_000:]
        self._voice.say(e="log", words=words[:3_000])


def _give_up(voice: Voice) -> NoReturn:
    voice.say(e="crash", words="stuck:\n" + "\n".join(gevent.util.format_run_info())[-3_000:])
    os._exit(72)


def _crash_with(voice: Voice) -> Callable[..., None]:
    def handle_error(_context: object, kind: Any, value: Any, trace: Any) -> None:
        if kind is None or issubclass(kind, GreenletExit):
            return
        words = "".join(traceback.format_exception(kind, value, trace))
        voice.say(e="crash", words=words[-3_000:])
        os._exit(70)

    return handle_error
