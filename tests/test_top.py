"""`palaver top`: what it draws, and that a terminal is as before when it has gone."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import gevent
import pytest
from click.testing import CliRunner, Result
from gevent.socket import wait_read
from support import CRAB, ROOT, topic
from terminal import Child, children_without_monitor

from actors.counts import Durations, TurnTimes
from palaver import Runtime, ScriptedModel
from palaver.commands import palaver
from palaver.commands.figures import amount, rate, span
from palaver.commands.top_table import BESIDE, NAME, VALUE, frame, heads, short
from palaver.host.server import Server
from palaver.host.service import Service
from palaver.stats import Stats

__all__ = ["children_without_monitor"]

PATIENCE_S = 60.0


@pytest.fixture(name="stats", scope="module")
def some_stats() -> Stats:
    with Runtime.open(":memory:", ScriptedModel()) as rt:
        found = rt.stats()
    return attrs.evolve(
        found,
        uptime_s=100.0,
        conversations={"opening": 1, "idle": 1_198, "running": 6, "closing": 0, "parked": 0},
        running=6,
        queued=12,
        oldest_waiting_s=3.21,
        turns_ended={"done": 1_000, "failed": 20, "cancelled": 3, "closed": 4},
        turn_seconds=times(*[0.2] * 98, 0.7, 4.0),
        commits=500,
        rss_bytes=127_189_000,
        wal_bytes=12_700_000,
        restarts=2,
        dead_letters=1,
        closing_down=False,
    )


def times(*seconds: float) -> Durations:
    counted = TurnTimes()
    for each in seconds:
        counted.add(each)
    return counted.now()


def later(stats: Stats, seconds: float = 2.0) -> Stats:
    return attrs.evolve(
        stats,
        uptime_s=stats.uptime_s + seconds,
        turns_ended={**stats.turns_ended, "done": 1_090, "failed": 30},
        commits=524,
    )


def figures(lines: list[str]) -> dict[str, str]:
    """The rows of a frame of one column: name to value."""
    rows = (line.rsplit("  ", 1) for line in lines[1:] if "  " in line)
    return {name.strip(): value.strip() for name, value in rows}


# -- drawing -------------------------------------------------------------------------------------------


def test_a_frame_has_the_counts_and_what_came_between_per_second(stats: Stats) -> None:
    shown = figures(frame(stats, later(stats), "title", BESIDE - 1, 100))
    assert (shown["conversations"], shown["idle"], shown["running"]) == ("1,205", "1,198", "6")
    assert (shown["turns waiting"], shown["the oldest for"]) == ("12", "3.2 s")
    assert (shown["turns/s"], shown["commits/s"]) == ("50.0", "12.0")
    assert (shown["restarts"], shown["dead letters"]) == ("2", "1")
    assert (shown["memory"], shown["WAL"]) == ("121.3 MiB", "12.1 MiB")


def test_durations_are_of_the_turns_that_came_between(stats: Stats) -> None:
    first = figures(frame(None, stats, "title", 60, 100))
    assert (first["p50 at most"], first["p99 at most"]) == ("0.25 s", "1 s")
    after = attrs.evolve(later(stats), turn_seconds=times(*[0.2] * 98, 0.7, 4.0, 45.0, 5_000.0))
    between = figures(frame(stats, after, "title", 60, 100))
    assert (between["p50 at most"], between["p99 at most"]) == ("1 min 0 s", "more")
    quiet = figures(frame(after, after, "title", 60, 100))
    assert quiet["p50 at most"] == "-"


def test_the_first_frame_says_that_its_rates_are_since_the_start(stats: Stats) -> None:
    shown = figures(frame(None, stats, "title", BESIDE - 1, 100))
    assert shown["turns/s since start"] == "10.3"
    assert "turns/s" not in shown


def test_a_host_that_was_started_again_shows_no_negative_rates(stats: Stats) -> None:
    young = attrs.evolve(stats, uptime_s=1.0, turns_ended=dict.fromkeys(stats.turns_ended, 1))
    shown = figures(frame(stats, young, "title", 60, 100))
    assert (shown["turns/s"], shown["turns ended"]) == ("4", "4")


@pytest.mark.parametrize("columns", [10, 40, BESIDE - 1, BESIDE, 80, 200])
@pytest.mark.parametrize("lines", [1, 5, 24])
def test_a_frame_fits_its_screen(stats: Stats, columns: int, lines: int) -> None:
    drawn = frame(stats, later(stats), "a title that is wider than the narrowest screen", columns, lines)
    assert 1 <= len(drawn) <= lines
    assert max(map(len, drawn)) <= columns


def test_an_ordinary_terminal_shows_everything(stats: Stats) -> None:
    whole = frame(stats, later(stats), "title", 80, 24)
    narrow = frame(stats, later(stats), "title", 60, 100)
    assert all(name in "\n".join(whole) for name in figures(narrow))


def test_trouble_is_above_all_figures(stats: Stats) -> None:
    broken = attrs.evolve(stats, database_failed="disk I/O error", actors_alive={"registry": False})
    drawn = frame(None, broken, "title", 80, 24)
    assert drawn[1:3] == [
        "!! the database has failed, nothing is stored any more: disk I/O error",
        "!! the registry actor is not there",
    ]
    down = attrs.evolve(broken, database_failed=None, closing_down=True)
    assert frame(None, down, "title", 80, 24)[1] == "!! the host is shutting down"


def test_the_columns_of_lines_are_under_their_heads(stats: Stats) -> None:
    huge = attrs.evolve(stats, commits=10**8, rss_bytes=10**13, oldest_waiting_s=9e7, queued=100_000)
    for each in (stats, later(stats), huge):
        line = short(None, each)
        assert len(line) == len(heads())
        ends = [
            place
            for place, (a, b) in enumerate(zip(heads(), heads()[1:] + " ", strict=True))
            if a != " " == b
        ]
        assert all(line[end] != " " for end in ends)


def test_figures_are_as_people_read_them() -> None:
    assert [amount(n) for n in (0, 512, 1_024, 12_700_000, 10**13)] == [
        "0 bytes",
        "512 bytes",
        "1.0 KiB",
        "12.1 MiB",
        "9.1 TiB",
    ]
    assert [span(s) for s in (0.0, 0.25, 3.21, 9.96, 59.6, 3_599, 7_800, 86_400 * 9 + 14_500)] == [
        "0 s",
        "0.25 s",
        "3.2 s",
        "10 s",
        "1 min 0 s",
        "59 min 59 s",
        "2 h 10 min",
        "9 d 4 h",
    ]
    assert [rate(r) for r in (0.0, 0.0312, 4.8, 48.21, 1_204.4)] == ["0", "0.031", "4.8", "48.2", "1,204"]


# -- a real host -----------------------------------------------------------------------------------------


class Host:
    """A runtime behind a socket, in this process."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "host.sock"
        self.rt = Runtime.open(folder / "a.db", ScriptedModel(keep_requests=0))
        self.rt.add_agent(CRAB)
        self._server: Server | None = None
        self.listen()

    def listen(self) -> None:
        self._server = Server(str(self.socket))
        self._server.start(Service(self.rt, "one"))

    def go_away(self) -> None:
        assert self._server is not None
        self._server.stop(grace_s=0)
        self._server = None

    def end(self) -> None:
        if self._server is not None:
            self.go_away()
        self.rt.shutdown(drain=0)


@contextmanager
def hosted(folder: Path) -> Iterator[Host]:
    with gevent.Timeout(PATIENCE_S):
        host = Host(folder)
        try:
            yield host
        finally:
            host.end()


ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


class Terminal(Child):
    """A terminal whose size and settings the test sees to."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.resize(80, 24)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    @property
    def echoes(self) -> bool:
        """Whether it shows what is typed, and hands it on in lines: as a shell wants it."""
        flags = termios.tcgetattr(self._ours)[3]
        return bool(flags & termios.ECHO and flags & termios.ICANON)

    def left(self) -> tuple[int, str, bool]:
        """Its exit status, what it has printed since, and whether the terminal is as before."""
        self.expect(LEAVE)
        self._process.wait()
        echoes = self.echoes
        status, rest = self.finish()
        return status, rest, echoes


def test_a_terminal_shows_a_host_that_goes_and_comes_back_and_q_leaves(tmp_path: Path) -> None:
    with hosted(tmp_path) as host:
        cid = topic(host.rt)
        top = Terminal("top", host.socket, "--interval", "0.1")
        top.expect(ENTER)
        assert not top.echoes  # keys do not appear among the figures
        top.expect("turns/s since start")
        host.rt.send(cid, "hello")
        top.expect(f"{'turns ended':<{NAME}}{1:>{VALUE}}")
        top.resize(BESIDE - 10, 12)
        top.expect(f"{'  running':<{NAME}}{0:>{VALUE}}\x1b[K\r\n")  # nothing beside it
        host.go_away()
        top.expect("looking again every 0.1 s")
        host.rt.send(cid, "hello")
        top.resize(80, 24)
        host.listen()
        top.expect(f"{'turns ended':<{NAME}}{2:>{VALUE}}")
        top.type("xq")
        status, rest, echoes = top.left()
        assert status == 0
        assert "conversations" in rest  # the last figures stay in sight
        assert echoes


@pytest.mark.parametrize(("how", "status"), [("ctrl-c", 0), ("sigterm", 143)])
def test_a_signal_gives_the_terminal_back(how: str, status: int, tmp_path: Path) -> None:
    with hosted(tmp_path) as host:
        top = Terminal("top", host.socket)
        top.expect("conversations")
        if how == "ctrl-c":
            top.type("\x03")
        else:
            top.signal(signal.SIGTERM)
        found, rest, echoes = top.left()
        assert found == status
        assert "Traceback" not in rest
        assert "interrupted" not in rest
        assert echoes


def test_in_a_pipe_each_look_is_a_line_and_a_host_that_goes_is_said_once(tmp_path: Path) -> None:
    with hosted(tmp_path) as host:
        command = [sys.executable, "-m", "palaver", "top", str(host.socket), "--interval", "0.1"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as top:
            assert top.stdout is not None
            assert top.stderr is not None
            assert read_line(top.stdout) == heads()
            assert len(read_line(top.stdout)) == len(heads())
            host.go_away()
            gone = read_line(top.stderr)
            host.listen()
            while len(read_line(top.stdout)) != len(heads()):
                pass
            top.send_signal(signal.SIGINT)
            rest = top.stderr.read()
            assert top.wait() == 0
        assert "looking again every 0.1 s" in gone
        assert "\x1b" not in gone
        assert rest == b""


def read_line(pipe: Any) -> str:
    line = b""
    while not line.endswith(b"\n"):
        wait_read(pipe.fileno())
        piece = os.read(pipe.fileno(), 1)
        assert piece, f"it ended after {line!r}"
        line += piece
    return line.decode().rstrip("\n")


def run(*args: object) -> Result:
    return CliRunner().invoke(palaver, ["top", *map(str, args)])


def test_once_prints_one_table(tmp_path: Path) -> None:
    with hosted(tmp_path) as host:
        host.rt.send(topic(host.rt), "hello")
        result = run(host.socket, "--once")
    assert result.exit_code == 0
    assert result.output.count("conversations") == 1
    assert f"pid {os.getpid()}" in result.output
    assert str(tmp_path / "a.db") in result.output
    assert "\x1b" not in result.output


def test_json_has_the_stats_and_the_rates(tmp_path: Path) -> None:
    with hosted(tmp_path) as host:
        host.rt.send(topic(host.rt), "hello")
        result = run(host.socket, "--once", "--json")
        (line,) = result.output.splitlines()
        facts = json.loads(line)
        assert facts["turns_ended"] == host.rt.stats().turns_ended
        assert {*facts} == {field.name for field in attrs.fields(Stats)} | {"per_second"}
        assert facts["per_second"]["turns_ended"] > 0


def test_where_no_host_ever_was_top_says_so_and_fails(tmp_path: Path) -> None:
    result = run(tmp_path / "none.sock")
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert "no host listens on" in result.output
