"""`python tests/planted`: plant each bug in a copy of the code, and see that its tests and checks fail."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planted.table import main

if __name__ == "__main__":
    main()
