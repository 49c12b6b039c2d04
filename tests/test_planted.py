"""The tests and checks prove themselves: bugs are planted in copies of the code, and must be noticed.

Here the first twelve; `python tests/planted` plants all of them.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from planted.bugs import FOLDER, QUICK, ROOT, Bug, DoesNotApply, all_bugs, plant, planted, read_bug
from planted.runner import Ran, WrongCode, garden
from reliability.check import all_checks

PATIENCE_S = 110.0
ALL_S = 380.0  # a machine that is busy with other things takes several times as long
ENOUGH = 30

BROKEN = """
what = "A name is wrong."
guarantees = [1]
caught_by = ["tests/test_topics.py::test_empty_is_without_tmp_chat_and_topics"]

[[change]]
file = "actors/topics.py"
find = '''
        return self.tmp is None and not self.by_title
'''
replace = '''
        return self.tmp is None
'''
"""


@pytest.mark.parametrize("bug", all_bugs(), ids=lambda bug: f"{bug.number}-{bug.name}")
def test_a_planted_bug_still_applies_to_the_code(bug: Bug) -> None:
    assert planted(bug)


def test_there_are_enough_planted_bugs() -> None:
    assert len(all_bugs()) >= ENOUGH
    assert len({bug.name for bug in all_bugs()}) == len(all_bugs())


def test_a_check_that_no_planted_bug_makes_fail_is_not_a_check() -> None:
    proven = {check.partition(":")[0] for bug in all_bugs() for check in bug.checks}
    assert {check.name for check in all_checks()} - proven == set()


@pytest.mark.timeout(ALL_S + 20)
def test_the_first_planted_bugs_are_caught() -> None:
    command = [sys.executable, "tests/planted", "--quick"]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            out, _ = process.communicate(timeout=ALL_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # it takes its copies away
            out, _ = process.communicate()
            pytest.fail(f"not done after {ALL_S:.0f} s:\n{out}")
    assert process.returncode == 0, out
    assert f"{QUICK} of {QUICK} caught" in out


def test_what_does_not_apply_any_more_is_named(tmp_path: Path) -> None:
    path = tmp_path / "01-broken.toml"
    path.write_text(BROKEN.replace("not self.by_title", "not self.by_tittle"))
    with pytest.raises(DoesNotApply, match=r"planted bug 1 \(broken\).*0 times in actors/topics\.py"):
        planted(read_bug(path))
    path.write_text(BROKEN.replace("        return self.tmp is None and not self.by_title\n", "self"))
    with pytest.raises(DoesNotApply, match="times in actors/topics"):
        planted(read_bug(path))


def test_only_a_failed_test_has_caught_anything(tmp_path: Path) -> None:
    path = tmp_path / "01-broken.toml"
    path.write_text(BROKEN)
    bug = read_bug(path)
    (fails,) = bug.tests
    passes = "tests/test_topics.py::test_drop_forgets_a_conversation_wherever_it_is_pointed_at"
    unknown = "tests/test_topics.py::test_that_is_not_there"
    with garden() as made, made.copy("changed") as tree:
        assert made.run([fails], tree, PATIENCE_S) == {fails: Ran("passed")}
        plant(bug, tree)
        ran = made.run([fails, passes], tree, PATIENCE_S)
        assert ran[fails].verdict == "failed"
        assert "assert" in ran[fails].words
        assert ran[passes] == Ran("passed")
        assert made.run([unknown], tree, PATIENCE_S)[unknown].verdict == "error"
        (tree / "actors" / "topics.py").write_text("no Python\n")
        assert made.run([fails], tree, PATIENCE_S)[fails].verdict == "error"
    assert not made.folder.exists()


def test_other_code_than_the_copy_is_not_taken_for_it() -> None:
    with garden() as made, made.copy("without actors") as tree:
        shutil.rmtree(tree / "actors")
        with pytest.raises(WrongCode, match="actors"):
            made.run(["power-loss:1"], tree, PATIENCE_S)


def test_every_planted_bug_says_what_it_is() -> None:
    for path in FOLDER.glob("*.toml"):
        bug = read_bug(path)
        assert bug.what.endswith(".")
        assert bug.guarantees
        assert bug.changes
