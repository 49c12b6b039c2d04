"""`python tests/reliability`: every check at its full length, side by side, and a table of what was done."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402 - patch first
from pathlib import Path  # noqa: E402

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from reliability.runner import main  # noqa: E402

if __name__ == "__main__":
    main()
