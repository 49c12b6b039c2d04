"""The `world` fixture of the pytest plugin: a run for each seed, and how to see a failure again."""

from __future__ import annotations

import configparser

import pytest
from support import ROOT, run_script

pytest_plugins = ("pytester",)

CONFTEST = """
from gevent import monkey
monkey.patch_all()
"""
TESTS = """
import gevent, pytest
from gevent.event import Event

def test_default(world, tmp_path):
    world.sleep(3600)
    assert (world.now, world.order) == (3600, "shuffled")

@pytest.mark.palaver_seeds(3)
@pytest.mark.parametrize("word", ["x"])
def test_marked(world, word):
    assert world.seed != 1

@pytest.mark.palaver_seeds(range(5, 7))
def test_stuck(world):
    Event().wait()

@pytest.mark.palaver_seeds(1)
def test_lost_error(world):
    world.spawn(int, "seven")
    world.sleep(1)

@pytest.mark.palaver_seeds(1)
def test_skips(world):
    pytest.skip("not now")

def test_without(request):
    assert not isinstance(gevent.get_hub().loop.now(), str)
"""


def run_pytest(pytester: pytest.Pytester, *arguments: str) -> str:
    """What pytest prints about the tests above, with the plugin of this checkout, installed or not."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_worlds=TESTS)
    plugins = ("no:palaver", "palaver.simulation.pytest_plugin", "no:cacheprovider", "no:timeout")
    options = [word for plugin in plugins for word in ("-p", plugin)]
    ran = pytester.runpytest_inprocess("-rA", "--strict-markers", *options, *arguments)
    return "\n".join(ran.outlines + ran.errlines)


def outcomes(printed: str, name: str) -> list[str]:
    """How the runs of a test ended, in the summary's words."""
    return [line for line in printed.splitlines() if f"::{name}" in line and line[0] in "PFE"]


def test_tests_run_once_for_each_seed_and_failures_say_how_to_see_them_again(
    pytester: pytest.Pytester,
) -> None:
    printed = run_pytest(pytester)
    assert outcomes(printed, "test_default") == [
        f"PASSED test_worlds.py::test_default[seed{seed}]" for seed in range(10)
    ]
    assert [line.split(" - ")[0] for line in outcomes(printed, "test_marked")] == [
        "PASSED test_worlds.py::test_marked[seed0-x]",
        "PASSED test_worlds.py::test_marked[seed2-x]",
        "FAILED test_worlds.py::test_marked[seed1-x]",
    ]
    again = "pytest 'test_worlds.py::test_marked[seed1-x]' --palaver-seeds 1"
    assert f"seed 1; see it again: {again}" in printed
    assert "in the world of seed 1, order shuffled, at 0.000000 virtual seconds" in printed
    # What goes wrong in the world fails the test, and not its teardown.
    stuck = outcomes(printed, "test_stuck")
    assert [line.split()[1] for line in stuck] == [f"test_worlds.py::test_stuck[seed{n}]" for n in (5, 6)]
    assert printed.count("palaver.simulation.errors.SimulationStuck: at virtual time 0.000000 s") == 2
    (lost,) = outcomes(printed, "test_lost_error")
    assert lost.startswith("FAILED")
    assert "ValueError: invalid literal for int() with base 10: 'seven'" in printed
    assert "4 failed, 13 passed, 1 skipped" in printed


def test_the_option_says_which_seeds_whatever_is_marked(pytester: pytest.Pytester) -> None:
    printed = run_pytest(pytester, "-k", "marked or without", "--palaver-seeds", "1..2")
    assert len(outcomes(printed, "test_marked")) == 2
    assert "1 failed, 2 passed" in printed


@pytest.mark.parametrize("words", ["2..1", "some"])
def test_an_option_that_makes_no_sense_is_refused_at_once(pytester: pytest.Pytester, words: str) -> None:
    assert "--palaver-seeds takes A..B" in run_pytest(pytester, "--palaver-seeds", words)


def test_the_plugin_imports_nothing_of_gevent_and_is_declared() -> None:
    ran = run_script(
        "import sys, palaver.simulation.pytest_plugin\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('gevent', 'pykka', 'actors')])"
    )
    assert ran.stdout.strip() == "[]", ran.stderr
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    declared = config["options.entry_points"]["pytest11"].strip()
    assert declared == "palaver = palaver.simulation.pytest_plugin"
