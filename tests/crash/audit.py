"""Does the file hold what was acknowledged, once, whole and in order?"""

from __future__ import annotations

from crash import audit_ends, audit_rows, audit_talk
from crash.evidence import Evidence

CHECKS = (*audit_rows.CHECKS, *audit_talk.CHECKS, *audit_ends.CHECKS)
MOST_SHOWN = 8


def audit(evidence: Evidence, most: int = MOST_SHOWN) -> None:
    """Book the picture in the ledger.

    Raises:
        AssertionError: something is wrong with it; `most` such things are listed.
    """
    problems = [*evidence.ledger.problems]
    for check in CHECKS:
        problems += check(evidence)
    assert not problems, "\n".join(problems[:most])
    evidence.ledger.book_picture(evidence.picture)
