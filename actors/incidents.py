"""Incidents: each is one event for subscribers and hooks, one line in the log, and one count."""

from __future__ import annotations

import logging
from collections import Counter

import attrs
import gevent

from actors.directory import Directory
from actors.events import (
    ActorParked,
    ActorRestarted,
    DeadLettered,
    Expired,
    Incident,
    Overflowed,
    Passivated,
)
from actors.hooks import Hooks
from actors.logs import log
from actors.state import ConversationState

logger = logging.getLogger("palaver.incidents")

_WORDS: dict[type[Incident], tuple[int, str]] = {
    ActorRestarted: (logging.WARNING, "an actor was restarted"),
    ActorParked: (logging.ERROR, "an actor kept dying and is parked"),
    Passivated: (logging.INFO, "an idle conversation left memory"),
    Expired: (logging.INFO, "an idle tmp chat expired"),
    Overflowed: (logging.WARNING, "a bound was reached"),
    DeadLettered: (logging.ERROR, "a message was given up"),
}


def log_incident(incident: Incident, state: ConversationState | None = None) -> None:
    """Write an incident's line."""
    level, words = _WORDS[type(incident)]
    fields = attrs.asdict(incident)
    log(logger, level, words, state, turn=fields.pop("turn_id", None), **fields)


class Incidents:
    """What happened in one runtime besides turns. Whatever reports here may be an actor's handler."""

    def __init__(self, directory: Directory, hooks: Hooks) -> None:
        self.counts: Counter[str] = Counter()  # by the name of the event's class
        self.overflowed: Counter[str] = Counter()  # by the bound that was reached, a field of `Limits`
        self._directory = directory
        self._hooks = hooks

    def report(self, incident: Incident, state: ConversationState | None = None) -> None:
        """Tell of an incident.

        Args:
            state: the conversation that it happened to. Subscribers get any other incident with an info
                whose id is 0.
        """
        self.counts[type(incident).__name__] += 1
        if isinstance(incident, Overflowed):
            self.overflowed[incident.limit] += 1
        log_incident(incident, state)
        about = state if state is not None else ConversationState(0, "", "", None, 0.0)
        if self._directory.streams:
            self._directory.publish(about, incident)
        if self._hooks.on_event_hooks:  # a user's code must not block who reports
            gevent.spawn(self._hooks.on_event, about.agent, about.id, incident)
