"""One call of a model: its place among all calls of the runtime, its time, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from actors.errors import ModelError
from actors.greenlet import GreenletFuture
from actors.models.base import Model, ModelRequest
from actors.permit import CLEAN_UP_S, Permit
from actors.round import Emit, Reader, Round
from actors.services import Services

Answered = tuple[Round | None, BaseException | None]


class ModelCall(Permit):
    """A call that is about to be made: `run`, or `run_apart`, makes it, once.

    Args:
        model: the name that the agent calls it by.
        agent, sender: whose conversation it is for.
        on_stuck: called, in a greenlet of its own, when the model refuses to end after its time is over, and
            is left behind.
    """

    __slots__ = ("_reader",)

    def __init__(
        self,
        services: Services,
        model: str,
        agent: str,
        sender: str,
        on_stuck: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(services.model_calls, services.round_time, (model, agent, sender), on_stuck)
        self._reader: Reader | None = None

    def run(self, model: Model, request: ModelRequest, emit: Emit | None) -> Round:
        """Wait for a place, ask the model and read its whole answer, in the calling greenlet.

        Raises:
            ModelError: too slow, or as `run_round` raises it.
            BaseException: whatever the model raised.
        """
        self._reader = Reader(emit)
        self.begin()
        try:
            answer = self._reader.read(model, request)
        except BaseException as error:
            if self.late:
                raise self.too_late() from error
            if isinstance(error, ModelError) and error.retry_after_s is not None:
                self._limiter.pause(self._line[0], error.retry_after_s)
            raise
        finally:
            self.end()
        if self.late:
            raise self.too_late()
        return answer

    def run_apart(self, model: Model, request: ModelRequest) -> Answered:
        """As `run`, in a greenlet of its own that ends with the calling one's wait: so what the model raises
        is told from what the caller is sent, and one that refuses to end keeps nobody waiting.

        Returns:
            The answer, or else the error.
        """
        outcome: GreenletFuture[Answered] = GreenletFuture()
        self._on_stuck = lambda: outcome.set((None, self.too_late()))

        def ask() -> None:
            answered: Answered
            try:
                answered = self.run(model, request, None), None
            except BaseException as error:
                answered = None, error
            if not self.left_behind:
                outcome.set(answered)

        asking = gevent.spawn(ask)
        try:
            answered: Answered = outcome.get()
        except BaseException:
            asking.kill(block=False)
            gevent.spawn_later(CLEAN_UP_S, self.leave_behind)
            raise
        return answered

    def leave_behind(self) -> bool:
        if not super().leave_behind():
            return False
        if self._reader is not None:
            self._reader.abandon()
        return True

    def too_late(self) -> ModelError:
        """What a turn is told whose model was too slow."""
        return ModelError(
            f"the model gave no whole answer within {self._limit}; nothing of it is kept, and the message "
            "can be sent again",
            retryable=True,
        )
