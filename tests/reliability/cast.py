"""The model and the tools of a simulated world: slow, wrong and quarrelsome, as its seed says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import gevent
from gevent.event import Event as Signal

from palaver import Chunk, ModelError, ModelRequest, PalaverError, Runtime, ToolCallDelta

if TYPE_CHECKING:
    from reliability.world import World

AGENTS = ("ann", "bob")
SCOPES: dict[str, Literal["sender", "agent"]] = {"ann": "sender", "bob": "agent"}
FIRST = "a"  # what every answer begins with


def wait(seconds: float) -> None:
    """Let virtual time pass."""
    if seconds:
        Signal().wait(seconds)
    else:
        gevent.sleep(0)


class WorldModel:
    """A model that takes its time, calls tools, breaks off, says nothing, and fails; and tells the world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rates = world.rates
        self._rng = random.Random(f"model {world.number} {world.ledger.life}")

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        """An answer."""
        self._world.watch.check_pairing(request)
        if request.purpose != "turn":
            self._wait()
            self._fail()
            words = f"{request.purpose} {self._world.number_of()}"
            yield Chunk(text=words if self._rng.random() < 0.9 else "", finish_reason="stop")
            return
        world, watch = self._world, self._world.watch
        if watch.begins(request):
            world.note("model", f"begins {request.turn_id} in {request.conversation_id}")
        with watch.at_work(request.conversation_id, request.turn_id):
            yield from self._answer(request)

    def _answer(self, request: ModelRequest) -> Iterator[Chunk]:
        rng, rates, healing = self._rng, self._rates, self._world.healing
        self._wait()
        if not healing and rng.random() < rates.answer_empty:
            yield Chunk(finish_reason="stop")
            return
        if rng.random() < 0.1:
            yield Chunk(reasoning="hm")
        words = f"{FIRST}{request.turn_id}.{self._world.number_of()}"
        yield Chunk(text=words[:2])
        self._wait()
        self._fail()
        if not healing and rng.random() < rates.answer_cut:
            return
        if not healing and request.tools and rng.random() < rates.calls_tools:
            yield Chunk(tool_calls=self._calls(), finish_reason="tool_calls")
        else:
            yield Chunk(text=words[2:], finish_reason="stop")

    def _calls(self) -> list[ToolCallDelta]:
        rng = self._rng
        calls = []
        for index in range(rng.choice((1, 1, 2))):
            name, arguments = "work", "{}"
            chance = rng.random()
            if chance < self._rates.self_harm:
                name = "harm"
            elif chance < 0.3:
                name = "relay"
            elif chance < 0.35:
                name, arguments = "remember", '{"name": "of the model", "content": "something"}'
            elif chance < 0.4:
                name, arguments = rng.choice((("nothing", "{}"), ("work", "{broken")))
            calls.append(ToolCallDelta(index, rng.choice((f"k{index}", None)), name, arguments))
        return calls

    def _wait(self) -> None:
        delays = (0.0, 0.5) if self._world.healing else self._rates.delays
        wait(self._rng.choice(delays))

    def _fail(self) -> None:
        if not self._world.healing and self._rng.random() < self._rates.model_fails:
            raise self._rng.choice((ModelError("overloaded"), ValueError("bad"), gevent.Timeout()))


class Tools:
    """What the models of a world may call."""

    rt: Runtime

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = random.Random(f"tools {world.number} {world.ledger.life}")

    def work(self, call: Any) -> str:
        """Take some time."""
        rates, watch = self._world.rates, self._world.watch
        with watch.at_work(call.conversation_id, call.turn_id):
            wait(self._rng.choice(rates.delays))
            if self._rng.random() < rates.tool_fails:
                raise self._rng.choice((ValueError("it broke"), gevent.Timeout(), SystemExit(3)))
        return "worked"

    def relay(self, call: Any) -> str:
        """Send a message to one's own conversation, which is accepted and waits for this turn."""
        world, cid = self._world, call.conversation_id
        message = world.message(f"t{call.turn_id}", call.agent, call.sender)
        world.ledger.sent(message, world.watch.handle_of(cid))
        try:
            ticket = self.rt.submit(cid, message.content)
        except PalaverError as error:
            world.ledger.refused(message, error)
            return type(error).__name__
        world.ledger.accepted(message, ticket)
        return "relayed"

    def harm(self, call: Any) -> str:
        """End one's own turn, or conversation, from within."""
        how = self._rng.choice(("cancel", "close"))
        self._world.note("tool", f"{how} {call.conversation_id} from within")
        if how == "cancel":
            self.rt.cancel(call.conversation_id)
        else:
            self.rt.close(call.conversation_id, mode="now")
        return "still here"
