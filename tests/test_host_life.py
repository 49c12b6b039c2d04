"""A host from its start to its end, in this process: who is told, who is waited for, and what ends it."""

from __future__ import annotations

import contextlib
import os
import socket as names
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from host_support import short_folder
from support import PATIENCE_S, PuppetModel, Runtimes, opened_runtimes, until

from palaver import (
    AgentConfig,
    DatabaseFailed,
    DatabaseInUse,
    HostClient,
    HostInUse,
    InvalidConfig,
    InvalidInput,
    Place,
    Runtime,
    RuntimeClosed,
    ScriptedModel,
)
from palaver.host.config import HostConfig
from palaver.host.host import Host
from palaver.host.notify import Notifier
from palaver.host.sockets import listen_at
from persistence.worker import DatabaseWorker

__all__ = ["opened_runtimes", "short_folder"]

BOATS = Place("clerk", "alice", "boats", "what floats")


class Manager:
    """A service manager's end of the notifications."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify.sock")
        self._sock = socket.socket(names.AF_UNIX, names.SOCK_DGRAM)
        self._sock.bind(self.path)

    def hear(self) -> dict[str, str]:
        """The next datagram's variables."""
        lines = self._sock.recv(4_096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)


Start = Callable[..., Host]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts hosts in greenlets of their own; `host.ended` is the greenlet."""
    started: list[Host] = []

    def begin(
        model: Any = None, *, serving: bool = True, hooks: tuple[object, ...] = (), **options: Any
    ) -> Host:
        config = HostConfig(
            file="host.toml",
            database=str(folder / "agents.db"),
            socket=str(folder / "host.sock"),
            models={"m": model or ScriptedModel()},
            agents=(AgentConfig("clerk", "m", auto_title=False),),
            hooks=hooks,
        )
        host = Host(config, **options)
        host.ended = gevent.spawn(_run, host)  # type: ignore[attr-defined]
        started.append(host)
        if serving:
            gevent.wait([host.serving, host.ended], count=1)  # type: ignore[attr-defined]
        return host

    with gevent.Timeout(PATIENCE_S):
        yield begin
        for host in started:
            host.stop()
            host.stop()
            host.ended.join()  # type: ignore[attr-defined]


def _run(host: Host) -> Exception | None:
    try:
        host.run()
    except Exception as error:
        return error
    return None


def ending_of(host: Any) -> Exception | None:
    """What `run` raised, when it has ended."""
    return host.ended.get()  # type: ignore[no-any-return]


def client_of(host: Host) -> HostClient:
    return HostClient(host.config.socket)


# -- the service manager ----------------------------------------------------------------------------


def test_the_service_manager_hears_of_readiness_of_the_watchdog_and_of_the_stop(
    folder: Path, start: Start
) -> None:
    manager = Manager(folder)
    environ = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "2000", "WATCHDOG_PID": str(os.getpid())}
    host = start(notifier=Notifier(environ), wait_s=5.0, drain_s=7.0)
    assert manager.hear()["EXTEND_TIMEOUT_USEC"] == "20000000"
    assert manager.hear() == {"READY": "1", "STATUS": "serving", "MAINPID": str(os.getpid())}
    assert client_of(host).health()["ready"].ok
    assert [manager.hear(), manager.hear()] == [{"WATCHDOG": "1"}] * 2
    host.stop()
    while "STOPPING" not in (heard := manager.hear()):
        assert heard == {"WATCHDOG": "1"}
    assert heard == {"STOPPING": "1", "STATUS": "draining", "EXTEND_TIMEOUT_USEC": "22000000"}
    assert ending_of(host) is None


def test_a_watchdog_is_not_told_that_all_is_well_when_it_is_not(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = Manager(folder)
    notifier = Notifier({"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "1000"})
    healthy = iter([True, False])
    with gevent.Timeout(PATIENCE_S):
        notifier.ready(lambda: next(healthy, False))
        assert "READY" in manager.hear()
        assert "WATCHDOG" in manager.hear()
        until(lambda: "the watchdog is not told" in caplog.text)
    notifier.close()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": "/no/such/socket", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "@palaver-nobody-there", "WATCHDOG_USEC": "soon"},
    ],
)
def test_without_a_manager_that_listens_nothing_is_the_worse(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    notifier.starting(1.0)
    notifier.ready(lambda: 1 / 0 > 0)
    notifier.stopping(1.0)
    notifier.close()


def test_a_manager_in_the_abstract_namespace_is_found(folder: Path) -> None:
    with socket.socket(names.AF_UNIX, names.SOCK_DGRAM) as sock, gevent.Timeout(PATIENCE_S):
        sock.bind("\0palaver-test-" + folder.name)
        Notifier({"NOTIFY_SOCKET": f"@palaver-test-{folder.name}"}).ready(lambda: True)
        assert sock.recv(100).startswith(b"READY=1\n")


# -- starting ---------------------------------------------------------------------------------------


def test_a_host_whose_file_is_in_use_ends_with_that_error_and_leaves_no_socket(
    folder: Path, runtimes: Runtimes, start: Start
) -> None:
    runtimes.open(path=folder / "agents.db")
    host = start()
    assert isinstance(ending_of(host), DatabaseInUse)
    assert not os.path.exists(host.config.socket)


def test_a_host_that_waits_takes_over_as_soon_as_the_file_is_free(
    folder: Path, runtimes: Runtimes, start: Start
) -> None:
    first = runtimes.open(path=folder / "agents.db")
    host = start(serving=False, wait_s=PATIENCE_S)
    gevent.sleep(0)
    assert not host.serving.is_set()
    first.shutdown()
    host.serving.wait()
    assert client_of(host).send(BOATS, "hello").text == "hello"


def test_a_host_that_is_told_to_stop_while_it_waits_stops(
    folder: Path, runtimes: Runtimes, start: Start
) -> None:
    first = runtimes.open(path=folder / "agents.db")
    host = start(serving=False, wait_s=1_000.0)
    gevent.sleep(0)
    host.stop()
    assert ending_of(host) is None
    assert not host.serving.is_set()
    assert first.stats().database_failed is None


def test_a_host_whose_socket_is_anothers_closes_its_file_and_says_so(
    folder: Path, runtimes: Runtimes, start: Start
) -> None:
    taken = listen_at(str(folder / "host.sock"))
    assert isinstance(ending_of(start()), HostInUse)
    taken.close()
    runtimes.open(path=folder / "agents.db")  # nobody holds the file


def test_a_hook_that_refuses_an_agent_ends_the_start(start: Start) -> None:
    class Refusing:
        def on_build_agent(self, config: AgentConfig) -> None:
            raise InvalidConfig(f"no {config.name} here")

    error = ending_of(start(hooks=(Refusing(),)))
    assert isinstance(error, InvalidConfig)
    assert str(error) == "no clerk here"


# -- stopping ---------------------------------------------------------------------------------------


def test_the_last_answers_leave_before_the_host_does(start: Start) -> None:
    puppet = PuppetModel()
    host = start(puppet)
    sending = gevent.spawn(client_of(host).send, BOATS, "hello")
    asked = puppet.asked()
    host.stop()
    idle = client_of(host)
    with pytest.raises(RuntimeClosed):
        idle.send(BOATS, "too late")
    assert not host.ended.ready()  # type: ignore[attr-defined]
    asked.answer("goodbye")
    assert sending.get().text == "goodbye"
    assert ending_of(host) is None
    assert not os.path.exists(host.config.socket)


def test_a_drain_that_is_over_cancels(start: Start) -> None:
    puppet = PuppetModel()
    host = start(puppet, drain_s=0.01)
    sending = gevent.spawn(client_of(host).send, BOATS, "hello")
    puppet.asked()
    host.stop()
    assert sending.get().stop_reason == "cancelled"
    assert ending_of(host) is None


def test_a_second_stop_ends_the_drain(start: Start) -> None:
    puppet = PuppetModel()
    host = start(puppet, drain_s=1_000.0)
    sending = gevent.spawn(client_of(host).send, BOATS, "hello")
    puppet.asked()
    host.stop()
    until(lambda: not client_of(host).health()["ready"].ok)
    assert not sending.ready()
    host.stop()
    assert sending.get().stop_reason == "cancelled"
    assert ending_of(host) is None


def test_a_database_that_fails_ends_the_host_with_its_error(folder: Path, start: Start) -> None:
    host = start()
    client = client_of(host)
    client.send(BOATS, "hello")
    os.unlink(folder / "agents.db-wal")
    with contextlib.suppress(DatabaseFailed):  # noticed behind this commit, or before the turn's end
        client.send(BOATS, "is anybody there?")
    assert isinstance(ending_of(host), DatabaseFailed)
    assert not os.path.exists(host.config.socket)


def test_models_that_can_be_closed_are_closed(start: Start) -> None:
    class Closing(ScriptedModel):
        closed = False

        def close(self) -> None:
            self.closed = True

    model = Closing()
    host = start(model)
    host.stop()
    assert ending_of(host) is None
    assert model.closed


# -- what a runtime does for it ---------------------------------------------------------------------


def test_opening_waits_for_a_file_that_is_in_use(folder: Path, runtimes: Runtimes) -> None:
    path = folder / "a.db"
    first = runtimes.open(path=path)
    waiting = gevent.spawn(Runtime.open, path, ScriptedModel(), wait_s=PATIENCE_S)
    gevent.sleep(0)
    assert not waiting.ready()
    first.shutdown()
    second = waiting.get()
    assert second.conversations() == []
    second.shutdown()


def test_a_wait_that_is_over_raises_what_the_last_attempt_did(folder: Path, runtimes: Runtimes) -> None:
    path = folder / "a.db"
    runtimes.open(path=path)
    with pytest.raises(DatabaseInUse, match=f"this process \\({os.getpid()}\\)"):
        Runtime.open(path, ScriptedModel(), wait_s=0.05)


@pytest.mark.parametrize("wait_s", [-1, "1", None, True, float("nan")])
def test_a_wait_that_is_no_time_is_refused(wait_s: Any) -> None:
    with pytest.raises(InvalidInput, match="wait_s must be a number of seconds"):
        Runtime.open(":memory:", ScriptedModel(), wait_s=wait_s)


def test_a_worker_of_ones_own_cannot_wait() -> None:
    with pytest.raises(InvalidInput, match="started once"):
        Runtime.open(":memory:", ScriptedModel(), wait_s=1, worker=DatabaseWorker(":memory:"))


def test_a_second_shutdown_without_a_drain_ends_the_first_ones(runtimes: Runtimes) -> None:
    puppet = PuppetModel()
    rt = runtimes.open(puppet)
    turn = rt.submit(rt.get_or_create("crab", "alice"), "hello")
    puppet.asked()
    first = gevent.spawn(rt.shutdown, 1_000.0)
    until(lambda: rt.stats().closing_down)
    with gevent.Timeout(0.01, False):
        rt.shutdown(5.0)  # waits, and changes nothing
    assert not turn.done
    rt.shutdown(0)
    assert turn.result().stop_reason == "cancelled"
    first.get()
