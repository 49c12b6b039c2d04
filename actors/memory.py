"""The memory actor: archive names, one after the other, and the notes of each scope."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

from attrs import define, field

from actors.greenlet import GreenletActor, GreenletFuture
from actors.lasting import IncarnationDied
from actors.messages import ArchivesCounted, Forget, ListMemory, NameArchive, Recall, Remember
from actors.services import Services
from actors.storage import notify
from persistence import memories
from persistence.records import Kind

Series = tuple[str, str, str]  # agent, scope, slug


@define(eq=False)
class Counter:
    """The numbers of one slug's archives: the highest given out, or None while the database is asked."""

    highest: int | None = None
    waiting: deque[GreenletFuture[str]] = field(factory=deque)


class MemoryActor(GreenletActor):
    """Gives archive names: the highest number stored or given out for a slug in its scope, plus one.

    Every name goes through this mailbox, so two compactions can never get the same one. A name whose
    archive could not be stored is not given again. The next incarnation reads the numbers from the database,
    and from `Services.archives_given`, as archives of given names may still be on their way there.
    """

    def __init__(self, services: Services) -> None:
        super().__init__()
        self._services = services
        self._counters: dict[Series, Counter] = {}

    def on_death(self, reason: BaseException | None) -> None:
        died = IncarnationDied(f"the memory actor ended before it had given a name: {reason!r}")
        for counter in self._counters.values():
            for reply in counter.waiting:
                reply.fail(died)

    def on_receive(self, message: Any) -> Any:
        store = self._services.store
        match message:
            case NameArchive():
                return self._name_archive((message.agent, message.scope, message.slug))
            case ArchivesCounted():
                return self._counted(message)
            case Remember():
                return store.begin(
                    partial(
                        memories.remember,
                        agent=message.agent,
                        scope=message.scope,
                        name=message.name,
                        content=message.content,
                        aliases=message.aliases,
                        at=self._services.clock.wall(),
                    )
                )
            case Forget():
                return store.begin(
                    partial(memories.forget, agent=message.agent, scope=message.scope, name=message.name)
                )
            case Recall():
                return store.begin(
                    partial(
                        memories.recall,
                        agent=message.agent,
                        scope=message.scope,
                        query=message.query,
                        limit=message.limit,
                        kind=_kind(message.kind),
                    )
                )
            case ListMemory():
                return store.begin(
                    partial(
                        memories.entries,
                        agent=message.agent,
                        scope=message.scope,
                        kind=_kind(message.kind),
                    )
                )
            case _:
                raise TypeError(f"memory does not understand {message!r}")

    def _name_archive(self, series: Series) -> GreenletFuture[str]:
        counter = self._counters.get(series)
        if counter is None:
            counter = self._counters[series] = Counter()
            self._count(series)
        reply: GreenletFuture[str] = GreenletFuture()
        counter.waiting.append(reply)
        self._give(series, counter)
        return reply

    def _count(self, series: Series) -> None:
        agent, scope, slug = series
        ref = self.actor_ref
        self._services.store.submit(
            partial(memories.highest_archive, agent=agent, scope=scope, slug=slug),
            lambda highest, error: notify(ref, ArchivesCounted(agent, scope, slug, highest or 0, error)),
        )

    def _counted(self, message: ArchivesCounted) -> None:
        series = (message.agent, message.scope, message.slug)
        counter = self._counters[series]
        if message.error is not None:
            del self._counters[series]
            for reply in counter.waiting:
                reply.fail(message.error)
            return
        counter.highest = max(message.highest, self._services.archives_given.get(series, 0))
        self._give(series, counter)

    def _give(self, series: Series, counter: Counter) -> None:
        if counter.highest is None:
            return
        while counter.waiting:
            counter.highest += 1
            self._services.archives_given[series] = counter.highest
            counter.waiting.popleft().set(f"{series[2]}-{counter.highest}")


def _kind(kind: str | None) -> Kind | None:
    return kind  # type: ignore[return-value]  # the face has checked it
