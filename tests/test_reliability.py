"""The guarantees, shown small: `python tests/reliability` shows them long."""

from __future__ import annotations

from pathlib import Path

import pytest
from reliability.check import Check, all_checks

SEED = 1
PATIENCE_S = 1_000  # a machine that is busy with other things takes several times as long


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.parametrize("check", [pytest.param(check, id=check.name) for check in all_checks()])
def test_guarantee(check: Check, tmp_path: Path) -> None:
    assert check.run(check.quick, SEED, tmp_path) >= check.quick
