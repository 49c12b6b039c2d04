"""An endpoint that answers as slowly as the provider of a simulated workload: the same answers, to the same
messages, after the same seconds, and as many at once.

`python -m benchmarks.slow_provider WORKLOAD.toml SEED` says its port on standard output, and ends when its
standard input does, or after ten minutes.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402  # gevent patches first
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

from palaver import ModelRequest  # noqa: E402
from palaver.simulation import Workload  # noqa: E402
from palaver.simulation.provider import Provider  # noqa: E402
from palaver.simulation.run import Run  # noqa: E402

LONGEST_S = 600.0
CONNECTIONS = 4_096


class Endpoint:
    """A WSGI application that speaks the chat completions API, streamed."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._provider = Provider(Run(workload, seed, None, None, None, check=False))

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterator[bytes]:
        body = json.loads(environ["wsgi.input"].read())
        seconds, text = self._drawn(ModelRequest(model=body["model"], messages=body["messages"]))
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return self._say(seconds, text)

    def _drawn(self, request: ModelRequest) -> tuple[float, str]:
        """How long the simulated provider would take, and what it would answer."""
        provider = self._provider
        act, place = provider._place(request)  # noqa: SLF001 - what it draws is what has to be the same
        answer = provider._draw(act, place, 0, False)  # noqa: SLF001
        text = provider._text(act, place, answer.tokens, request)  # noqa: SLF001
        return answer.first_s + answer.rest_s, text

    def _say(self, seconds: float, text: str) -> Iterator[bytes]:
        slots = self._provider.slots
        slots.enter()
        try:
            gevent.sleep(seconds)
        finally:
            slots.leave()
        said = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
        event = {"object": "chat.completion.chunk", "choices": [said]}
        yield f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()


def main() -> None:
    file, seed = sys.argv[1], int(sys.argv[2])
    endpoint = Endpoint(Workload.from_toml(file), seed)
    server = WSGIServer(("127.0.0.1", 0), endpoint, backlog=CONNECTIONS, log=None)
    server.start()
    print(server.server_port, flush=True)
    with gevent.Timeout(LONGEST_S, False):
        FileObject(sys.stdin).read()
    server.stop(timeout=0)


if __name__ == "__main__":
    main()
