"""`Runtime.transfer_to`: moving everything live from one runtime to another."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import Any

import attrs

from actors.messages import Adopt, BeginTransfer, CheckAdoption, DescribeRouting, Detach, EndTransfer
from actors.services import Services
from actors.transfer import MovedConversation
from persistence import sessions


def transfer(source: Services, target: Services) -> int:
    """Move live conversations, their topic routers, queued turns and the id counter.

    Each conversation finishes its running turn first; queued turns run in the target, and their tickets
    stay good. A stored session is copied to the target's file, with its memory, before it leaves the
    source's, so a crash in between leaves it in both and never in neither.

    Returns:
        How many conversations moved.

    Raises:
        AgentNotRegistered, InvalidInput: the target cannot take them; nothing has moved.
        StorageError: a session could not be copied.
    """
    live = list(source.directory.conversations.values())
    agents = tuple(dict.fromkeys(state.agent for state in live))
    _ask(target, CheckAdoption(agents, tuple(state.id for state in live)))
    refs: dict[int, Any] = _ask(source, BeginTransfer())
    timeout = source.limits.ask_timeout_s
    waiting = [ref.ask(Detach(), timeout=timeout) for ref in refs.values()]
    detached: list[MovedConversation] = [reply.get() for reply in waiting]
    moved = tuple(_move_stored(source, target, one) for one in detached)
    routers, next_id = _ask(source, DescribeRouting())
    _ask(target, Adopt(moved, routers, next_id))
    _ask(source, EndTransfer(moved=True))
    return len(moved)


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


def _ask(services: Services, message: object) -> Any:
    assert services.registry is not None
    return services.registry.ask(message, timeout=services.limits.ask_timeout_s)


def _skip_used_ids(services: Services) -> None:
    """Rows that came with ids of their own: give no id that one of them has."""
    turn_id, steer_id = services.store.call(sessions.highest_ids)
    services.turn_ids = count(max(next(services.turn_ids), turn_id + 1))
    services.steer_ids = count(max(next(services.steer_ids), steer_id + 1))
