"""What callers of the runtime can be told: by who must act, all under `PalaverError`."""

from __future__ import annotations

from persistence.errors import PalaverError

# -- what the caller asked for does not exist, or not any more -------------------------------------


class AgentNotRegistered(PalaverError):
    """No agent of this name is registered."""


class AgentExists(PalaverError):
    """An agent of this name is registered already; `upsert_agent` replaces it."""


class ConversationNotFound(PalaverError):
    """No live conversation has this id."""


class ConversationClosed(PalaverError):
    """The conversation is closing, or was closed before it took the message."""


class NoActiveTurn(PalaverError):
    """There is no running turn to steer."""


# -- the request is not acceptable -----------------------------------------------------------------


class InvalidInput(PalaverError, ValueError):
    """A value that cannot be used: empty, too long, not text that can be stored or sent."""


class InvalidTitle(InvalidInput):
    """A topic's title that is empty, too long, or has control characters."""


class InvalidConfig(InvalidInput):
    """An agent, tool or limit that makes no sense; the message names the field."""


class DescriptionRequired(PalaverError):
    """The topic is new: opening it needs a description."""


class KeyReused(PalaverError):
    """This idempotency key was used for another message."""


# -- not now ---------------------------------------------------------------------------------------


class ConversationParked(PalaverError):
    """The conversation kept dying and takes no messages for now; what its topic has accepted waits."""


class ConversationBusy(PalaverError):
    """A turn is running or queued, and the call said `on_busy="reject"`."""


class MailboxFull(PalaverError):
    """A bound is reached; nothing of this request was stored.

    Attributes:
        limit: the field of `Limits`; "" where it is no runtime's.
        most: its value.
    """

    def __init__(self, message: str, limit: str = "", most: int = 0) -> None:
        super().__init__(message)
        self.limit = limit
        self.most = most


class ResultTimeout(PalaverError, TimeoutError):
    """The wait is over, the turn is not: it goes on and its result is kept."""


class AskTimeout(PalaverError, TimeoutError):
    """An actor did not answer in time."""


class RuntimeClosed(PalaverError):
    """The runtime is shut down, or shutting down, and takes no new work."""


class RestartsSpent(PalaverError):
    """A supervised actor died more often than its budget allows: what its supervisor ends of when it may not
    park it. The cause is what the actor died of last."""


class RuntimeFailed(RuntimeClosed):
    """An actor that the runtime cannot do without kept dying. Nothing new is taken any more: end the process,
    or shut this runtime down and open another. What was accepted is in the file. The cause is chained."""


class WrongThread(PalaverError, RuntimeError):
    """Called from a thread or process that does not own the runtime."""


# -- the endpoint, or the user's own code ----------------------------------------------------------


class ModelError(PalaverError):
    """The model's endpoint failed; the message says how.

    Args:
        retryable: whether the same message may get an answer when it is sent again: the endpoint was too
            slow, overloaded or unreachable. It becomes `TurnResult.retryable`.
        retry_after_s: seconds that the endpoint wants to be left alone; further calls of this model wait.
    """

    def __init__(
        self, message: str = "", *, retryable: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class CompactionFailed(PalaverError):
    """The summary could not be made or stored; history is unchanged."""


class HandlerFailed(PalaverError):
    """A handler raised something that must not cross to another actor; the cause is chained."""


class NotPatched(PalaverError, RuntimeError):
    """Blocking sockets would stop every conversation: gevent has not patched this process."""
