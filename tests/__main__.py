"""`python tests`: all tests, in three pytest processes side by side, for two cores.

The first runs the checks of the guarantees, which start many processes of their own and wait for them; the
second the tests of simulation; the third everything else, and is shown as it goes. With arguments it is
`python -m pytest` with these.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
BESIDE = {
    "the checks of the guarantees": (
        "test_crash.py",
        "test_planted.py",
        "test_planted_gaps.py",
        "test_power_loss.py",
        "test_reliability.py",
        "test_state_machine.py",
    ),
    "the tests of simulation": (
        "test_arrivals.py",
        "test_pytest_plugin.py",
        "test_queueing.py",
        "test_reports.py",
        "test_seeds.py",
        "test_simulate.py",
        "test_simulate_command.py",
        "test_virtual_loop.py",
        "test_virtual_runtime.py",
        "test_workload.py",
        "test_workload_docs.py",
        "test_world.py",
    ),
}


def pytest(*arguments: str) -> list[str]:
    """The command for one process."""
    return [sys.executable, "-m", "pytest", *arguments]


def main() -> int:
    """Run all tests; the exit status is pytest's, of whichever process failed."""
    if sys.argv[1:]:
        return subprocess.call(pytest(*sys.argv[1:]))
    common = ("-p", "no:cacheprovider", "--durations=10")  # several processes would write one cache
    others = [f"--ignore={HERE / name}" for names in BESIDE.values() for name in names]
    with ExitStack() as stack:
        running = []
        for names in BESIDE.values():
            output = stack.enter_context(tempfile.TemporaryFile())
            command = pytest(*common, *(str(HERE / name) for name in names))
            running.append((subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT), output))
        try:
            status = subprocess.call(pytest(*common, str(HERE), *others))
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
