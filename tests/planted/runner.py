"""Runs tests and checks on copies of the code, in processes of their own, and says whether they fail."""

from __future__ import annotations

import compileall
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from attrs import define, field, frozen

from planted.bugs import ROOT, Bug, plant

RAM_DISK = Path("/dev/shm")
COPIED = ("actors", "palaver", "persistence", "tests", "docs", "examples", "benchmarks")
PACKAGES = ("actors", "palaver", "persistence")
SEED = 1
RUNNING = "in _run_here"  # where reliability's runner calls the check
NOT_RUN = ("unittest.case.SkipTest", "ModuleNotFoundError", "ImportError", "SyntaxError")
UNUSED = ("cacheprovider", "randomly", "xdist", "benchmark", "hypothesispytest")  # each takes time to start
BASELINE_LIMIT_S = 600.0

# What a run of a test or check came to. Only the first is a bug that was noticed.
Verdict = Literal["failed", "passed", "timeout", "error"]

_WHERE = """
import importlib.util, sys
for name in sys.argv[2:]:
    found = importlib.util.find_spec(name)
    origin = found.origin if found else None
    assert origin and origin.startswith(sys.argv[1]), f"{name} would come from {origin}, not from the copy"
"""

_HUNT = """
from gevent import monkey; monkey.patch_all()
import sys
sys.path.insert(0, "tests")
from reliability.workloads import hunt
hunt(int(sys.argv[1]), int(sys.argv[2]))
"""


class WrongCode(Exception):
    """What would be tested is not the copy."""


@frozen
class Ran:
    """One run: its verdict, and the words that explain it."""

    verdict: Verdict
    words: str = ""


@define
class Outcome:
    """What became of a planted bug."""

    bug: Bug
    runs: dict[str, Ran]
    seconds: float

    @property
    def caught(self) -> bool:
        """Whether everything that must notice it did."""
        return all(ran.verdict == "failed" for ran in self.runs.values())

    @property
    def status(self) -> str:
        """The word for the table."""
        verdicts = [ran.verdict for ran in self.runs.values()]
        odd = next((verdict for verdict in verdicts if verdict in ("timeout", "error")), None)
        if self.caught:
            return "caught"
        return f"MISSED ({odd})" if odd else "MISSED"


@define
class Garden:
    """A copy of the code as it is, and the copies of that in which something runs; gone with its `with`."""

    folder: Path
    _children: set[subprocess.Popen[str]] = field(factory=set)
    _mutex: threading.Lock = field(factory=threading.Lock)
    _closed: bool = False
    _numbers: Iterator[int] = field(factory=itertools.count)

    @property
    def clean(self) -> Path:
        """The unchanged copy. Nothing runs in it, as it is copied meanwhile."""
        return self.folder / "clean"

    @contextlib.contextmanager
    def copy(self, name: str) -> Iterator[Path]:
        """A copy to change and to run something in."""
        tree = self.folder / name
        shutil.copytree(self.clean, tree)
        try:
            yield tree
        finally:
            shutil.rmtree(tree, ignore_errors=True)

    def run_bug(self, bug: Bug) -> Outcome:
        """Plant a bug, and run everything that must notice it.

        Raises:
            DoesNotApply: as `plant`.
        """
        began = time.monotonic()
        with self.copy(f"bug {bug.number}") as tree:
            plant(bug, tree)
            runs = self.run(bug.caught_by, tree, bug.limit_s)
        return Outcome(bug, runs, time.monotonic() - began)

    def run_clean(self, what: Sequence[str]) -> dict[str, Ran]:
        """Run all of this on the unchanged code, where it must pass."""
        with self.copy(f"unchanged {next(self._numbers)}") as tree:
            return self.run(what, tree, BASELINE_LIMIT_S)

    def run(self, what: Sequence[str], tree: Path, limit_s: float) -> dict[str, Ran]:
        """Run tests and checks on the code in `tree`: the tests in one process, each check in one."""
        self._make_sure_of(tree)
        tests = [each for each in what if "::" in each]
        ran = self._run_tests(tests, tree, limit_s) if tests else {}
        for each in what:
            if each not in tests:
                ran[each] = self._run_check(each, tree, limit_s)
        return ran

    def hunt(self, bug: Bug, seeds: int, enough: int) -> list[tuple[int, int, str]]:
        """Plant a bug, and live workloads: each seed, the guarantee that broke (0: none), words."""
        with self.copy(f"bug {bug.number}") as tree:
            plant(bug, tree)
            self._make_sure_of(tree)
            _, out, _ = self._python(["-c", _HUNT, str(seeds), str(enough)], tree, bug.limit_s)
        whole = [line for line in out.splitlines(keepends=True) if line.endswith("\n")]
        return [tuple(json.loads(line)) for line in whole]

    def _make_sure_of(self, tree: Path) -> None:
        status, _, words = self._python(["-c", _WHERE, str(tree), *PACKAGES], tree, BASELINE_LIMIT_S)
        if status != 0:
            raise WrongCode(words.strip().splitlines()[-1])

    def _run_tests(self, tests: Sequence[str], tree: Path, limit_s: float) -> dict[str, Ran]:
        command = ["-m", "pytest", "-q", "-rfE", *(f"-pno:{plugin}" for plugin in UNUSED)]
        # Without the limits of single tests: a test that is cut off has noticed nothing.
        command += ["-o", "timeout=0", *(["-x"] if len(tests) == 1 else []), *tests]
        status, out, err = self._python(command, tree, limit_s)
        return {test: _test_verdict(test, status, out + err) for test in tests}

    def _run_check(self, check: str, tree: Path, limit_s: float) -> Ran:
        name, count, *seed = check.split(":")
        part = ["--part", name, count, *(seed or [str(SEED)])]
        status, _, err = self._python(["tests/reliability", *part], tree, limit_s)
        return _check_verdict(status, err)

    def _python(self, arguments: Sequence[str], tree: Path, limit_s: float) -> tuple[int | None, str, str]:
        """Exit status (None: it took too long), output and errors of a Python that imports from `tree`."""
        temporary = tree / "tmp"
        temporary.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        own = {
            "PYTHONPATH": str(tree),
            "TMPDIR": str(temporary),
            "COLUMNS": "200",
            "PYTHONDONTWRITEBYTECODE": "",
        }
        with self._mutex:
            if self._closed:
                raise KeyboardInterrupt
            child = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=tree,
                env={**kept, **own},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._children.add(child)
        try:
            out, err = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            _kill(child)
            out, err = child.communicate()
            return None, out, err
        finally:
            _kill(child)  # what a killed test has left behind, its host processes say
            with self._mutex:
                self._children.discard(child)
        return child.returncode, out, err

    def close(self) -> None:
        """End what still runs."""
        with self._mutex:
            self._closed = True
            for child in self._children:
                _kill(child)


@contextlib.contextmanager
def garden() -> Iterator[Garden]:
    """A garden with a copy of this tree, in memory where there is a RAM disk."""
    where = RAM_DISK if os.access(RAM_DISK, os.W_OK) else None
    with tempfile.TemporaryDirectory(
        prefix="palaver-planted-", dir=where, ignore_cleanup_errors=True
    ) as name:
        made = Garden(Path(name))
        copy_code(made.clean)
        try:
            yield made
        finally:
            made.close()


def copy_code(to: Path) -> None:
    """Copy what the tests need: the packages, themselves, and the files at the root."""
    to.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            # What pytest has compiled of the tests stays good: it holds the time and size of its source.
            left_out = () if name == "tests" else ("__pycache__",)
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns(*left_out))
    for path in ROOT.iterdir():
        if path.is_file() and path.suffix in (".cfg", ".toml", ".md", ".ini"):
            shutil.copy2(path, to / path.name)
    for name in (*PACKAGES, "tests"):  # once for all copies
        compileall.compile_dir(to / name, quiet=2, rx=re.compile("/test_"))


def run_all(
    bugs: Sequence[Bug], jobs: int, tell: Callable[[Outcome], None]
) -> tuple[list[Outcome], dict[str, Ran]]:
    """Run the unchanged code and every bug, so many at a time; `tell` hears of each as it is done.

    Returns:
        What became of the bugs, in order; and of what the unchanged code must pass, whatever did not.
    """
    needed = list(dict.fromkeys(each for bug in bugs for each in bug.caught_by))
    tests = [each for each in needed if "::" in each]
    parts = [tests, *([each] for each in needed if "::" not in each)] if tests else [[n] for n in needed]
    with garden() as made, ThreadPoolExecutor(jobs) as pool:
        try:
            clean = [pool.submit(made.run_clean, part) for part in parts]
            sown = [pool.submit(_told, made.run_bug, bug, tell) for bug in bugs]
            baseline = {what: ran for part in clean for what, ran in part.result().items()}
            outcomes = [each.result() for each in sown]
        except BaseException:
            made.close()
            pool.shutdown(cancel_futures=True)
            raise
    return outcomes, {what: ran for what, ran in baseline.items() if ran.verdict != "passed"}


def _told(run: Callable[[Bug], Outcome], bug: Bug, tell: Callable[[Outcome], None]) -> Outcome:
    outcome = run(bug)
    tell(outcome)
    return outcome


def _test_verdict(test: str, status: int | None, out: str) -> Ran:
    """What a run of pytest says of one test. Only an assertion or exception in the test itself counts."""
    if status is None:
        return Ran("timeout", "it took too long")
    for line in out.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("FAILED", "ERROR") and re.match(re.escape(test) + r"([ \[]|$)", rest):
            return Ran("failed" if word == "FAILED" else "error", rest.partition(" - ")[2])
    if status == 0 or (status == 1 and re.search(r"^(FAILED|ERROR) ", out, re.M)):
        skipped = re.search(r"(\d+) skipped", out)
        return Ran("error", "it was skipped") if skipped else Ran("passed")
    return Ran("error", f"pytest ended with status {status}: {_last_line(out)}")


def _check_verdict(status: int | None, err: str) -> Ran:
    """What a run of a check says: whatever it raises once it runs is a violation, but that it cannot run."""
    if status is None:
        return Ran("timeout", "it took too long")
    if status == 0:
        return Ran("passed")
    words = _raised(err)
    if status == 1 and RUNNING in err and not words.startswith(NOT_RUN):
        return Ran("failed", words)
    return Ran("error", f"it ended with status {status}: {words}")


def _raised(err: str) -> str:
    """The exception that a process ended with: what follows on its last traceback."""
    lines = err.rpartition("Traceback (most recent call last):")[2].splitlines()
    return next((line for line in lines if line and not line.startswith((" ", "^"))), _last_line(err))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _kill(child: subprocess.Popen[str]) -> None:
    """Kill a process and what it has started, all of which is in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
