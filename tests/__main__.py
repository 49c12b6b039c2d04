"""`python tests`: all tests, in four pytest processes side by side, for two cores.

Some wait while others compute, so there are more of them than cores, each with about as much to do. The last
one is shown as it goes, the others at the end. With arguments it is `python -m pytest` with these.

The files of the tests lie in memory where there is a RAM disk, and `TMPDIR` does not say otherwise: thousands
of small databases would have two cores wait for one disk. What a disk may do to a file is what the
checks of the guarantees play through, and no test leaves it to chance.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
RAM_DISK = Path("/dev/shm")
ROOM_BYTES = 2 * 1024**3  # the tests leave some 500 MB
GUARANTEES = "test_reliability.py"


def guarantee(check: str) -> str:
    """One of these checks, which then runs elsewhere."""
    return f"{GUARANTEES}::test_guarantee[{check}]"


BESIDE = {
    "the checks of the guarantees": (GUARANTEES,),
    "the tests of simulation, and the checks that simulate": (
        guarantee("seeds"),  # these two take half as long as all others together
        guarantee("state-machine"),
        "test_arrivals.py",
        "test_pytest_plugin.py",
        "test_queueing.py",
        "test_reports.py",
        "test_seeds.py",
        "test_simulate.py",
        "test_simulate_command.py",
        "test_state_machine.py",
        "test_virtual_loop.py",
        "test_virtual_runtime.py",
        "test_workload.py",
        "test_workload_docs.py",
        "test_world.py",
    ),
    "the tests that start many processes": (
        "test_bad_input.py",
        "test_chat.py",
        "test_cli.py",
        "test_copies_commands.py",
        "test_crash.py",
        "test_database_faults.py",
        "test_examples.py",
        "test_host_process.py",
        "test_layering.py",
        "test_planted.py",
        "test_planted_gaps.py",
        "test_power_loss.py",
        "test_reliability_runner.py",
        "test_top.py",
        guarantee("kills"),
        guarantee("signals"),
    ),
}


def pytest(*arguments: str) -> list[str]:
    """The command for one process."""
    return [sys.executable, "-m", "pytest", *arguments]


def commands() -> list[list[str]]:
    """The command of each process; that of everything else is the last."""
    common = ("-p", "no:cacheprovider", "--durations=10")  # several processes would write one cache
    elsewhere = [f"--deselect=tests/{name}" for names in BESIDE.values() for name in names if "::" in name]
    made = []
    for names in BESIDE.values():
        here = [*(str(HERE / name) for name in names), *(elsewhere if GUARANTEES in names else ())]
        made.append(pytest(*common, *here))
    files = {name.partition("::")[0]: None for names in BESIDE.values() for name in names}
    return [*made, pytest(*common, str(HERE), *(f"--ignore={HERE / name}" for name in files))]


@contextmanager
def quick_files() -> Iterator[dict[str, str]]:
    """The environment of the tests, whose temporary files are in memory if there is room; gone at the end."""
    environment = dict(os.environ)
    # They start some hundred processes, and each would compile everything anew.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    room = os.access(RAM_DISK, os.W_OK) and shutil.disk_usage(RAM_DISK).free >= ROOM_BYTES
    if "TMPDIR" in environment or not room:
        yield environment
        return
    with tempfile.TemporaryDirectory(prefix="palaver-", dir=RAM_DISK, ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # some tests look from another user's side
        yield {**environment, "TMPDIR": folder}


def main() -> int:
    """Run all tests; the exit status is pytest's, of whichever process failed."""
    if sys.argv[1:]:
        return subprocess.call(pytest(*sys.argv[1:]))
    *beside, everything_else = commands()
    with ExitStack() as stack:
        environment = stack.enter_context(quick_files())
        running = []
        for command in beside:
            output = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            running.append((process, output))
        try:
            status = subprocess.call(everything_else, env=environment)
            for process, _ in running:
                status = process.wait() or status
        except BaseException:
            for process, _ in running:
                process.terminate()
            raise
        for what, (_, output) in zip(BESIDE, running, strict=True):
            output.seek(0)
            print(f"\n{what}, which ran beside:", flush=True)
            print(output.read().decode(errors="replace"), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
