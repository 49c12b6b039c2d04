"""The OpenAI-compatible chat completions API, streamed over requests.

Whatever the endpoint does ends, in a bounded time, as an answer or as a `ModelError`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import gevent
from gevent import monkey

from actors.errors import ModelError, NotPatched
from actors.limiter import Limiter
from actors.models.base import Chunk, ModelRequest
from actors.models.completion import Answer, Failed, request_body
from actors.models.connection import Broken, Connection
from actors.models.encoded import write_ahead
from actors.models.endpoint import Endpoint
from actors.models.retry import Rng, back_off
from persistence.sources import Clock, Sources


class OpenAIModel:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        base_url: what comes before `/chat/completions`, as in `https://host/v1`; no query, no password.
        api_key: sent as a bearer token. It is never shown: not by `repr`, not in errors.
        max_concurrent: requests under way at once; further ones wait, and senders take turns.
        connect_timeout_s: seconds for a connection to be made.
        idle_timeout_s: seconds that the endpoint may say nothing, before and within an answer.
        total_timeout_s: seconds for an answer in all, with waiting, retries and back-off.
        retries: attempts after the first, when a connection cannot be made or breaks, and on HTTP 408,
            409, 425, 429 and 5xx; never once text, reasoning or a tool call was passed on. Back-off is
            exponential with full jitter, from 0.5 s up to 8 s, on top of what `Retry-After` asks for.
        headers: sent with each request. Values of those that are named like keys, tokens or
            authorization are kept out of errors.
        extra: fields for the body of each request, in place of Palaver's own if they are the same
            (`{"temperature": 0}`). `ModelRequest.thinking` is sent as `"reasoning_effort": "medium"`.
        rng, clock, sleep: where jitter and time come from; the real ones by default.

    `stream` runs in the calling greenlet; any number of greenlets of one thread may call it.
    Messages whose JSON is kept from earlier requests (`ModelRequest.encoded`) are not encoded again.
    Proxies and certificates come from the environment, as in requests; credentials and cookies do not,
    and no redirect is followed.

    Raises:
        InvalidConfig: naming the argument.
        NotPatched: gevent has not patched this process, so one answer would stop every conversation.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        max_concurrent: int = 64,
        connect_timeout_s: float = 10,
        idle_timeout_s: float = 60,
        total_timeout_s: float = 600,
        retries: int = 3,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
        rng: Rng | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], object] = gevent.sleep,
    ) -> None:
        self._endpoint = Endpoint(
            base_url,
            api_key,
            max_concurrent,
            connect_timeout_s,
            idle_timeout_s,
            total_timeout_s,
            retries,
            headers,
            extra,
        )
        _check_patched()
        sources = Sources()
        self._rng: Rng = rng or sources.rng
        self._clock = clock or sources.clock
        self._sleep = sleep
        self._connection = Connection(self._endpoint, self._clock)
        self._slots = Limiter(max_concurrent, self._clock)
        self._closed = False

    def __repr__(self) -> str:
        return f"OpenAIModel({self._endpoint.base_url!r}, max_concurrent={self._endpoint.max_concurrent})"

    def close(self) -> None:
        """Close idle connections; requests under way go on, further ones are refused."""
        self._closed = True
        self._connection.close()

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        """The answer as it arrives; its last chunk has the finish reason, and the usage if it is known.

        Closing the iterator, or killing the greenlet, closes the connection and frees its slot.

        Raises:
            ModelError: refused, cut, too slow, or not understood; the message says which.
        """
        deadline = self._clock.monotonic() + self._endpoint.total_timeout_s
        for _ in write_ahead(request):
            gevent.sleep(0)
        body = request_body(request, self._endpoint.extra)
        attempt = 0
        while True:
            passed_on = False
            try:
                with closing(self._attempt(request, body, deadline)) as chunks:
                    for chunk in chunks:
                        passed_on = True
                        yield chunk
            except Failed as failed:
                failure = failed
            else:
                return
            # Out of the `except` block: what is raised here must not carry the failure's unmasked text.
            if passed_on or not failure.again or attempt == self._endpoint.retries:
                raise self._error(failure, attempt) from failure.__cause__
            wait_s = back_off(attempt, failure.retry_after_s, self._rng)
            if wait_s >= deadline - self._clock.monotonic():
                why = f"; the next attempt would have to wait {wait_s:.1f} s, beyond total_timeout_s"
                raise self._error(failure, attempt, why) from failure.__cause__
            attempt += 1
            if failure.crowded and failure.retry_after_s is not None and request.pause is not None:
                request.pause(failure.retry_after_s)
                wait_s -= failure.retry_after_s
            self._sleep(wait_s)

    def _attempt(self, request: ModelRequest, body: bytes, deadline: float) -> Generator[Chunk, None, None]:
        answer = Answer()
        with self._slot(request, deadline), self._connection.response(body, deadline) as response:
            try:
                for data in self._connection.objects(response, deadline):
                    chunk = answer.take(data)
                    if chunk is not None:
                        yield chunk
            except Broken:
                # What breaks after the finish reason takes nothing away from the answer.
                if answer.finish_reason is None:
                    raise
            kind = response.headers.get("Content-Type") or "no content type"
        if answer.finish_reason is None:
            raise Failed(f"the answer ({kind}) ended without a finish reason: it was cut off", again=True)
        yield Chunk(finish_reason=answer.finish_reason, usage=answer.usage)

    @contextmanager
    def _slot(self, request: ModelRequest, deadline: float) -> Iterator[None]:
        if self._closed:
            raise Failed("this OpenAIModel was closed; make a new one")
        line = ("", request.agent, request.sender)
        if not self._slots.enter(line, timeout=max(0.0, deadline - self._clock.monotonic())):
            raise Failed(
                f"all {self._endpoint.max_concurrent} requests that may be under way (max_concurrent) were "
                f"busy for {self._endpoint.total_timeout_s:g} s (total_timeout_s)",
                later=True,
            )
        try:
            yield
        finally:
            self._slots.leave()

    def _error(self, failure: Failed, attempt: int, why: str = "") -> ModelError:
        text = self._endpoint.without_secrets(str(failure))
        if attempt:
            text += f" (attempt {attempt + 1} of {self._endpoint.retries + 1})"
        retry_after_s = None
        if failure.crowded and failure.retry_after_s is not None:
            # Others are held back for no longer than a call of this model would wait itself.
            retry_after_s = min(failure.retry_after_s, self._endpoint.total_timeout_s)
        return ModelError(text + why, retryable=failure.later, retry_after_s=retry_after_s)


def _check_patched() -> None:
    if monkey.is_module_patched("socket") and monkey.is_module_patched("ssl"):
        return
    raise NotPatched(
        "gevent has not patched this process, so one answer of the endpoint would stop every conversation; "
        "put `from gevent import monkey; monkey.patch_all()` before all other imports, or let gunicorn's "
        "gevent worker do it"
    )
