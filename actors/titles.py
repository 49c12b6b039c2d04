"""Titles: asked for off the reply path, after the first exchange; failure is silent but logged."""

from __future__ import annotations

import logging
from typing import Any

import pykka
from gevent import GreenletExit

from actors.logs import log
from actors.messages import TitleProposed
from actors.model_call import ModelCall
from actors.models.base import ModelRequest
from actors.services import Services
from actors.state import ConversationState
from actors.storage import notify
from actors.text import describe_error
from persistence.records import HistoryEntry, Role

logger = logging.getLogger("palaver.titles")

SNIPPET_CHARS = 200
TITLE_CHARS = 120

_QUOTES = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb "
_INSTRUCTION = "Give this conversation a title of 3 to 6 words. Answer with the title alone."


def wanted(services: Services, state: ConversationState) -> bool:
    """Whether the conversation should be given a title now."""
    if state.title:
        return False
    agent = services.agents.find(state.agent)
    if agent is None or not agent.config.auto_title or not agent.config.model:
        return False
    entries = state.history.entries
    return _first(entries, "user") is not None and _first(entries, "assistant") is not None


def propose(services: Services, state: ConversationState, ref: pykka.ActorRef[Any]) -> None:
    """Ask the agent's model for a title and tell the conversation; "" on any failure.

    Runs in a greenlet of its own.
    """
    title = ""
    try:
        title = _ask(services, state)
    except GreenletExit:
        raise
    except BaseException as error:  # a title is worth no error, whatever the model raised
        log(logger, logging.INFO, "no title", state, reason=describe_error(error))
    finally:
        notify(ref, TitleProposed(title))


def _ask(services: Services, state: ConversationState) -> str:
    agent = services.agents.get(state.agent)
    entries = state.history.entries
    user, assistant = _first(entries, "user") or "", _first(entries, "assistant") or ""
    call = ModelCall(services, agent.config.model, state.agent, state.sender)
    request = ModelRequest(
        model=agent.config.model,
        messages=[
            {"role": "user", "content": user[:SNIPPET_CHARS]},
            {"role": "assistant", "content": assistant[:SNIPPET_CHARS]},
            {"role": "user", "content": _INSTRUCTION},
        ],
        purpose="title",
        agent=state.agent,
        sender=state.sender,
        conversation_id=state.id,
        pause=call.pause,
    )
    answer = call.run(agent.model, request, None)
    return " ".join(answer.text.split()).strip(_QUOTES).strip()[:TITLE_CHARS]


def _first(entries: list[HistoryEntry], role: Role) -> str | None:
    return next((entry.content for entry in entries if entry.role == role), None)
