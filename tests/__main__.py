"""`python tests`: all tests, in two pytest processes side by side, for two cores.

The first runs the checks of the guarantees, which start many processes of their own; the second everything
else, and is shown as it goes. With arguments it is `python -m pytest` with these.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
GUARANTEES = (
    "test_crash.py",
    "test_planted.py",
    "test_planted_gaps.py",
    "test_power_loss.py",
    "test_reliability.py",
    "test_state_machine.py",
)


def pytest(*arguments: str) -> list[str]:
    """The command for one process."""
    return [sys.executable, "-m", "pytest", *arguments]


def main() -> int:
    """Run all tests; the exit status is pytest's, of whichever process failed."""
    if sys.argv[1:]:
        return subprocess.call(pytest(*sys.argv[1:]))
    guarantees = [str(HERE / name) for name in GUARANTEES if (HERE / name).exists()]
    others = [f"--ignore={path}" for path in guarantees]
    common = ("-p", "no:cacheprovider", "--durations=10")  # two processes would write one cache
    with tempfile.TemporaryFile() as output:
        beside = subprocess.Popen(pytest(*common, *guarantees), stdout=output, stderr=subprocess.STDOUT)
        try:
            status = subprocess.call(pytest(*common, str(HERE), *others))
            beside.wait()
        except BaseException:
            beside.terminate()
            raise
        output.seek(0)
        print("\nthe checks of the guarantees, which ran beside:", flush=True)
        print(output.read().decode(errors="replace"), flush=True)
    return status or beside.returncode


if __name__ == "__main__":
    sys.exit(main())
