"""`Runtime.transfer_to`: moving everything live from one runtime to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

import attrs

from actors.messages import (
    Adopt,
    BeginTransfer,
    CheckAdoption,
    DescribeRouting,
    Detach,
    EndTransfer,
    ListPassive,
    PlaceGone,
    TimersPut,
    Wake,
)
from actors.services import Services
from actors.topics import TopicRouter
from actors.transfer import MovedConversation
from persistence import sessions, timers

WOKEN_AT_ONCE = 100


def transfer(source: Services, target: Services) -> int:
    """Move live conversations, their topic routers, queued turns and the id counter.

    Each conversation finishes its running turn first; queued turns run in the target, and their tickets
    stay good. A stored session is copied to the target's file, with its memory, before it leaves the
    source's, so a crash in between leaves it in both and never in neither.

    Returns:
        How many conversations moved.

    Raises:
        AgentNotRegistered, InvalidInput: the target cannot take them; nothing has moved.
        StorageError: a session could not be copied. What had moved before lives in the target, the rest goes
            on in the source.
    """
    _wake_all(source)
    live = list(source.directory.conversations.values())
    agents = tuple(dict.fromkeys(state.agent for state in live))
    _ask(target, CheckAdoption(agents, tuple(state.id for state in live)))
    refs: dict[int, Any] = _ask(source, BeginTransfer())
    timeout = source.limits.ask_timeout_s
    waiting = [ref.ask(Detach(), timeout=timeout) for ref in refs.values()]
    left: list[MovedConversation] = [reply.get() for reply in waiting]
    moved: list[MovedConversation] = []
    try:
        while left:
            moved.append(_move_stored(source, target, left[0]))
            del left[0]
    finally:
        ids = tuple(one.state.id for one in moved)
        routers, next_id = _ask(source, DescribeRouting())
        _ask(target, Adopt(tuple(moved), _routes_of(routers, ids), next_id))
        _move_timers(source, target, moved)
        _ask(source, EndTransfer(ids))
        _ask(source, Adopt(tuple(_stay(source, one) for one in left), {}, next_id))
    return len(moved)


def _routes_of(
    routers: Mapping[tuple[str, str], TopicRouter], ids: Sequence[int]
) -> dict[tuple[str, str], TopicRouter]:
    """The routers with nothing but the routes to these conversations."""
    kept = frozenset(ids)
    for router in routers.values():
        for conversation_id in (router.tmp, *router.by_title.values()):
            if conversation_id is not None and conversation_id not in kept:
                router.drop(conversation_id)
    return {pair: router for pair, router in routers.items() if not router.empty}


def _move_timers(source: Services, target: Services, moved: Sequence[MovedConversation]) -> None:
    """Let the timers of conversations that have moved fire where those are now."""
    for state in (one.state for one in moved):
        place = state.id if state.handle is None else state.handle
        source.timers.tell(PlaceGone(place))
        if state.handle is None:
            for timer in source.timers.chats.pop(state.id, {}).values():
                target.timers.adopt(timer)
            pending = [each for each in target.timers.pending_of_chats() if each.place == state.id]
        else:
            pending = target.store.call(partial(timers.pending, handle=state.handle))
        target.timers.tell(TimersPut(tuple(pending)))


def _stay(source: Services, one: MovedConversation) -> MovedConversation:
    """A conversation that could not move, for the source to take back."""
    handle = one.state.handle
    if handle is None:
        return one
    return attrs.evolve(one, session=source.store.call(partial(sessions.load_session, handle=handle)))


def _move_stored(source: Services, target: Services, moved: MovedConversation) -> MovedConversation:
    """Copy a conversation's session, with its memory, to the target's file; then drop it here."""
    handle = moved.state.handle
    if handle is None:
        for ticket in moved.tickets:
            ticket.turn_id = next(target.turn_ids)
        return moved
    bundle = source.store.call(partial(sessions.export_session, handle=handle))
    imported = target.store.call(partial(sessions.import_session, bundle=bundle))
    _skip_used_ids(target)
    for ticket in moved.tickets:
        ticket.turn_id = imported.turn_ids.get(ticket.turn_id, ticket.turn_id)
    session = target.store.call(partial(sessions.load_session, handle=handle))
    source.store.call(partial(sessions.delete_session, handle=handle))
    return attrs.evolve(moved, session=session)


def _wake_all(services: Services) -> None:
    """Only what lives can move: bring back what has left memory."""
    while services.directory.passive:
        passive: list[int] = _ask(services, ListPassive(WOKEN_AT_ONCE)).get()
        if not passive:
            return
        for reply in [_ask(services, Wake(conversation_id)) for conversation_id in passive]:
            reply.get()
        # That they are passive no longer is stored behind this:
        services.store.call(lambda _db: None)


def _ask(services: Services, message: object) -> Any:
    assert services.registry is not None
    return services.registry.ask(message, timeout=services.limits.ask_timeout_s)


def _skip_used_ids(services: Services) -> None:
    """Rows that came with ids of their own: give no id that one of them has."""
    highest = max(services.store.call(sessions.highest_ids))
    services.turn_ids = count(max(next(services.turn_ids), highest + 1))
