"""One HTTP exchange with an endpoint: every wait bounded, the response closed whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy

import gevent
import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidURL, SSLError
from urllib3.exceptions import HTTPError, ReadTimeoutError

from actors.models.completion import Failed, error_text, is_crowded, may_retry
from actors.models.endpoint import Endpoint
from actors.models.retry import retry_after
from actors.models.sse import SseParser
from persistence.sources import Clock

MAX_ANSWER_BYTES = 256 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024

_READ_BYTES = 64 * 1024
_BYTES_IN_ONE_GO = 256 * 1024
_END_OF_BODY_S = 0.05
_DONE = "[DONE]"
_NETWORK_ERRORS = (requests.RequestException, HTTPError, HTTPException, OSError)


class Broken(Failed):
    """A response could not be read to its end."""


class Connection:
    """Sends requests to an endpoint and reads the responses, in the greenlet that asks.

    A deadline is a time of `clock.monotonic()`. No alarm is set while a caller works on what it was given.
    """

    def __init__(self, endpoint: Endpoint, clock: Clock) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._session = _session(endpoint.max_concurrent)

    def close(self) -> None:
        """Close the connections that wait for a request; one that serves a request follows at its end."""
        adapter = self._session.get_adapter(self._endpoint.url)
        assert isinstance(adapter, HTTPAdapter)
        # Closing a session only forgets its pools: their sockets would wait for the garbage collector.
        for manager in (adapter.poolmanager, *adapter.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 - a container of urllib3's own, no mapping to iterate
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.close()
        self._session.close()

    @contextmanager
    def response(self, body: bytes, deadline: float) -> Iterator[requests.Response]:
        """The response to `body`, from its headers on; closed at the end in any case.

        Raises:
            Failed: no connection, nothing in time, or an HTTP error.
        """
        endpoint = self._endpoint
        try:
            with self._in_time(deadline):
                response = self._session.post(
                    endpoint.url,
                    data=body,
                    headers={
                        "Content-Type": "application/json",
                        "Accept": "text/event-stream",
                        **endpoint.headers,
                    },
                    auth=endpoint.authorize,
                    stream=True,
                    timeout=(endpoint.connect_timeout_s, endpoint.idle_timeout_s),
                )
        except (*_NETWORK_ERRORS, ValueError) as error:
            raise self._unreachable(error) from error
        try:
            if not 200 <= response.status_code < 300:
                raise self._refused(response, deadline)
            yield response
        finally:
            with suppress(Exception):  # closing a broken connection may fail; then it is closed
                response.close()

    def objects(self, response: requests.Response, deadline: float) -> Iterator[str]:
        """The JSON objects of a response: those of an event stream until it is done, or a whole JSON body.

        Raises:
            Broken: the connection broke, was idle too long, or time is up; or the body is too long.
            ModelError: one event is too long.
        """
        parser = SseParser()
        whole: list[bytes] | None = None
        started = False
        for piece in self._pieces(response, deadline):
            if not started and piece.strip():
                started = True
                # The content type would tell too, but is often wrong; no event stream begins like this.
                whole = [] if piece.lstrip()[:1] in (b"{", b"[") else None
            if whole is not None:
                whole.append(piece)
                continue
            for data in parser.feed(piece):
                if data.strip() == _DONE:
                    _read_to_end(response)
                    return
                yield data
        rest = parser.finish() if whole is None else [b"".join(whole).decode("utf-8", "replace")]
        yield from (data for data in rest if data.strip() != _DONE)

    def _pieces(self, response: requests.Response, deadline: float) -> Iterator[bytes]:
        """The body, each piece as soon as it is there."""
        size = in_one_go = 0
        while True:
            try:
                with self._in_time(deadline):
                    piece = response.raw.read1(_READ_BYTES, decode_content=True)
            except ReadTimeoutError as error:
                raise Broken(self._idle(), again=True) from error
            except (*_NETWORK_ERRORS, ValueError) as error:
                raise Broken(
                    f"the connection broke within the answer: {_plainly(error)}", again=True
                ) from error
            if not piece:
                return
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise Broken(f"the answer has over {MAX_ANSWER_BYTES:,} bytes; nothing can use that")
            in_one_go += len(piece)
            if in_one_go > _BYTES_IN_ONE_GO:
                # A read that need not wait does not let other greenlets run, and no alarm go off.
                in_one_go = 0
                gevent.sleep(0)
            yield piece

    @contextmanager
    def _in_time(self, deadline: float) -> Iterator[None]:
        """Let what blocks in here block until `deadline` at most."""
        left_s = deadline - self._clock.monotonic()
        time_is_up = _TimeIsUp()
        what = f"no whole answer within {self._endpoint.total_timeout_s:g} s (total_timeout_s)"
        if left_s <= 0:
            raise Broken(what, later=True)
        timer = gevent.Timeout.start_new(left_s, time_is_up)
        try:
            yield
        except _TimeIsUp as raised:
            if raised is not time_is_up:
                raise
            raise Broken(what, later=True) from None
        finally:
            timer.close()

    def _idle(self) -> str:
        return f"the endpoint said nothing for {self._endpoint.idle_timeout_s:g} s (idle_timeout_s)"

    def _unreachable(self, error: Exception) -> Failed:
        endpoint = self._endpoint
        if isinstance(error, requests.ReadTimeout):
            return Failed(self._idle(), again=True)
        if isinstance(error, requests.ConnectTimeout):
            return Failed(
                f"no connection to {endpoint.base_url} within {endpoint.connect_timeout_s:g} s"
                " (connect_timeout_s)",
                again=True,
            )
        again = isinstance(error, _NETWORK_ERRORS) and not isinstance(error, SSLError | InvalidURL)
        return Failed(f"{endpoint.base_url} cannot be reached: {_plainly(error)}", again=again)

    def _refused(self, response: requests.Response, deadline: float) -> Failed:
        body = b""
        with suppress(Broken):  # the status says enough where the body cannot be read
            for piece in self._pieces(response, deadline):
                body += piece
                if len(body) > MAX_ERROR_BYTES:
                    break
        status = response.status_code
        return Failed(
            error_text(status, response.reason or "", body[:MAX_ERROR_BYTES]),
            again=may_retry(status),
            retry_after_s=retry_after(response.headers.get("Retry-After"), self._clock.wall()),
            crowded=is_crowded(status),
        )


class _TimeIsUp(BaseException):
    """Our own alarm. A BaseException, so that nothing on the way takes it for a network error."""


class _Session(requests.Session):
    """Follows no redirects and reads nothing of them: an endpoint that has moved is an error."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


def _session(connections: int) -> requests.Session:
    session = _Session()
    adapter = HTTPAdapter(pool_maxsize=connections)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    # A cookie would tie all conversations to what the endpoint told one of them.
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return session


def _read_to_end(response: requests.Response) -> None:
    # A body that is read to its end leaves its connection to the next request. That is worth no long wait.
    with suppress(Exception), gevent.Timeout(_END_OF_BODY_S, False):
        for _ in range(4):
            if not response.raw.read1(_READ_BYTES):
                return


def _plainly(error: BaseException) -> str:
    """What lies at the bottom of a chain of network errors: the one that says what it was."""
    while isinstance(inner := error.__cause__ or error.__context__, _NETWORK_ERRORS):
        error = inner
    return f"{type(error).__name__}: {error}"[:200]
