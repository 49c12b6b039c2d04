"""Summaries: asking a model for one, and letting it stand for the history."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import gevent
import pykka

from actors.agents import Agent
from actors.errors import CompactionFailed
from actors.journal import Journal
from actors.lasting import ask_until_answered
from actors.logs import log
from actors.messages import CompactionDone, HistoryCompacted, NameArchive
from actors.model_call import ModelCall
from actors.models.base import Message, ModelRequest
from actors.services import Services
from actors.state import CompactOutcome, ConversationState
from actors.storage import notify
from actors.text import cut_text, describe_error, slug
from persistence.errors import PalaverError

logger = logging.getLogger("palaver.compaction")

FAILURES_BEFORE_PAUSE = 3

_INSTRUCTION = (
    "Write a summary of the conversation above that can stand in for it from now on. "
    "Keep who you are and what you are here for, what the user wants, what was decided, facts, names, "
    "numbers and results that may be needed, and what is still open. Leave out small talk. "
    "Answer with the summary alone."
)


def summarize(services: Services, state: ConversationState, agent: Agent, messages: Sequence[Message]) -> str:
    """A summary of `messages` (wire form, without the system prompt), by the agent's own model.

    The agent's prompt is part of the request, so that its identity survives; tool results are cut to
    `compact_tool_max_len` characters for this request only. Blocks the calling greenlet; the model runs in
    one of its own, which ends with the wait.

    Raises:
        CompactionFailed: the model failed, or answered nothing.
    """
    most = agent.config.compact_tool_max_len
    call = ModelCall(services, agent.config.model, state.agent, state.sender)
    request = ModelRequest(
        model=agent.config.model,
        messages=[
            *agent.system,
            *(_shortened(message, most) for message in messages),
            {"role": "user", "content": _INSTRUCTION},
        ],
        purpose="compact",
        agent=state.agent,
        sender=state.sender,
        conversation_id=state.id,
        pause=call.pause,
    )
    answer, error = call.run_apart(agent.model, request)
    if answer is None:  # for whatever the model raised, its own Timeout or SystemExit among them
        assert error is not None
        raise CompactionFailed(f"the model could not summarize: {describe_error(error)}") from error
    if not answer.text.strip():
        raise CompactionFailed("the model answered the request for a summary with nothing")
    return answer.text


def compact(
    services: Services,
    state: ConversationState,
    journal: Journal | None,
    agent: Agent,
    messages: Sequence[Message],
) -> tuple[str, str | None]:
    """Summarize `messages` and store the summary as an archive; the caller then replaces the history.

    For a tmp chat (no journal) nothing is stored. Blocks the calling greenlet.

    Returns:
        The summary, and the archive's name or None.

    Raises:
        CompactionFailed, StorageError: nothing has changed.
    """
    summary = summarize(services, state, agent, messages)
    if journal is None:
        return summary, None
    scope = agent.config.scope(state.sender)
    assert services.memory is not None
    try:
        archive: str = ask_until_answered(
            services.memory,
            NameArchive(state.agent, scope, slug(state.topic or "")),
            timeout=services.limits.ask_timeout_s,
            waits=False,
        )
    except PalaverError:
        raise
    except Exception as error:
        raise CompactionFailed(f"no archive name could be had: {describe_error(error)}") from error
    journal.compact(archive, summary, scope=scope)
    log(logger, logging.INFO, "compacted", state, archive=archive)
    return summary, archive


def _shortened(message: Message, most: int) -> Message:
    if message["role"] != "tool" or len(message["content"]) <= most:
        return message
    return {**message, "content": cut_text(message["content"], most)}


def run_requested(
    services: Services, state: ConversationState, journal: Journal | None, ref: pykka.ActorRef[Any]
) -> CompactionDone:
    try:
        agent = services.agents.get(state.agent)
        summary, archive = compact(services, state, journal, agent, [*state.history.seen_by("", state.agent)])
    except Exception as error:
        return CompactionDone(error)
    notify(ref, HistoryCompacted(summary, archive))
    return CompactionDone(outcome=CompactOutcome(archive, summary))


def report_requested(ref: pykka.ActorRef[Any], greenlet: gevent.Greenlet) -> None:
    """Tell the conversation how its compaction went, killed ones included (their value says so)."""
    done = greenlet.value
    if not isinstance(done, CompactionDone):
        done = CompactionDone(CompactionFailed("the compaction was cancelled; nothing has changed"))
    notify(ref, done)
