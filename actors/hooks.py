"""The places where a user's own code joins in. What it raises is logged, and changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gevent import GreenletExit

from actors.config import AgentConfig
from actors.errors import InvalidConfig
from actors.events import Event
from actors.logs import log
from persistence.records import HistoryEntry

logger = logging.getLogger("palaver.hooks")

NAMES = ("on_build_agent", "before_run", "on_event", "preprocess")


class Hooks:
    """Several hook objects as one. Each may have any of the four methods:

    `on_build_agent(config)` returns the config to register, or None to keep it;
    `before_run(agent, conversation_id, history)` returns entries to inject for this run only;
    `on_event(agent, conversation_id, event)` sees every event, in the turn's greenlet;
    `preprocess(agent, content)` returns the text to run with, or None to keep it.

    `before_turn` says whether there is anything to do before a turn.

    They run in the order in which they were given. All but `on_build_agent`, whose error reaches the
    caller of `add_agent`, may raise without harm: the turn goes on without them.
    """

    __slots__ = ("_before_run", "_on_build_agent", "_preprocess", "before_turn", "on_event_hooks")

    def __init__(self, hooks: Iterable[object] = ()) -> None:
        hooks = tuple(hooks)
        for hook in hooks:
            if not any(callable(getattr(hook, name, None)) for name in NAMES):
                raise InvalidConfig(f"the hook {hook!r} has none of the methods {', '.join(NAMES)}")
        self._on_build_agent = _methods(hooks, "on_build_agent")
        self._before_run = _methods(hooks, "before_run")
        self._preprocess = _methods(hooks, "preprocess")
        self.before_turn = bool(self._before_run or self._preprocess)
        self.on_event_hooks = _methods(hooks, "on_event")

    def build_agent(self, config: AgentConfig) -> AgentConfig:
        """The config as the hooks want it."""
        for hook in self._on_build_agent:
            changed = hook(config)
            if changed is not None:
                config = changed
        if not isinstance(config, AgentConfig):
            raise InvalidConfig(f"on_build_agent must return an AgentConfig or None, not {config!r}")
        return config

    def inject(self, agent: str, conversation_id: int, history: Sequence[HistoryEntry]) -> list[HistoryEntry]:
        """What the hooks add to the context of one run."""
        injected: list[HistoryEntry] = []
        for hook in self._before_run:
            try:
                entries = [*(hook(agent, conversation_id, tuple(history)) or ())]
            except GreenletExit:
                raise
            except BaseException as error:  # a hook's own Timeout or SystemExit is no end of the host
                _say(agent, conversation_id, "before_run", error)
                continue
            wrong = [entry for entry in entries if not isinstance(entry, HistoryEntry)]
            if wrong:
                words = "before_run gave what is no HistoryEntry"
                log(
                    logger,
                    logging.ERROR,
                    words,
                    agent=agent,
                    conversation=conversation_id,
                    got=repr(wrong[0]),
                )
                continue
            injected += entries
        return injected

    def preprocess(self, agent: str, content: str) -> str:
        """The text that the turn runs with."""
        for hook in self._preprocess:
            try:
                changed = hook(agent, content)
            except GreenletExit:
                raise
            except BaseException as error:  # a hook's own Timeout or SystemExit is no end of the host
                _say(agent, None, "preprocess", error)
                continue
            if isinstance(changed, str):
                content = changed
        return content

    def on_event(self, agent: str, conversation_id: int, event: Event) -> None:
        """Show an event to the hooks."""
        for hook in self.on_event_hooks:
            try:
                hook(agent, conversation_id, event)
            except GreenletExit:
                raise
            except BaseException as error:  # a hook's own Timeout or SystemExit is no end of the host
                _say(agent, conversation_id, "on_event", error)


def _say(agent: str, conversation_id: int | None, hook: str, error: BaseException) -> None:
    words = "a hook failed"
    log(logger, logging.ERROR, words, agent=agent, conversation=conversation_id, hook=hook, error=error)


def _methods(hooks: Iterable[object], name: str) -> tuple[Callable[..., Any], ...]:
    found = (getattr(hook, name, None) for hook in hooks)
    return tuple(method for method in found if callable(method))
