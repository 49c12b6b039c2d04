"""The pytest fixture `world`: a test that has it runs on virtual time, once for each of its seeds.

Nothing of gevent is imported before a test asks for a world, and nothing is patched: that is for the user's
own conftest.py, before it imports anything else.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from palaver.simulation.worlds import World

SEEDS = range(10)
_OPTION = "--palaver-seeds"
_SEED = "palaver_seed"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option, before which marks give way."""
    parser.getgroup("palaver").addoption(
        _OPTION,
        metavar="A..B",
        help="seeds for tests with the world fixture, the last one included; or one seed",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The mark, and a look at the option before any test runs."""
    config.addinivalue_line(
        "markers",
        "palaver_seeds(seeds): how many seeds a test with the world fixture runs on, or which: a number or "
        f"a range; without it, {len(SEEDS)}",
    )
    _asked_for(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each seed."""
    if _SEED in metafunc.fixturenames:
        seeds = _asked_for(metafunc.config)
        if seeds is None:
            seeds = _marked(metafunc)
        metafunc.parametrize(_SEED, seeds, ids=[f"seed{seed}" for seed in seeds], indirect=True)


@pytest.fixture
def palaver_seed(request: pytest.FixtureRequest) -> int:
    """The seed of a test with the world fixture."""
    seed: int = request.param
    return seed


@pytest.fixture
def world(palaver_seed: int) -> Iterator[World]:
    """A `palaver.simulation.World` of the test's seed. Fixtures that come after it run in it too."""
    from palaver.simulation.worlds import world as made

    with made(palaver_seed) as one:
        yield one


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """What goes wrong in the world fails the test, not its teardown."""
    one = _world_of(pyfuncitem)
    if one is None:
        return (yield)
    with one.telling():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure says on which seed, and how to see it again."""
    report = yield
    seed = getattr(getattr(item, "callspec", None), "params", {}).get(_SEED)
    if report.failed and seed is not None:
        again = f"pytest {shlex.quote(item.nodeid)} {_OPTION} {seed}"
        report.sections.append(("palaver", f"seed {seed}; see it again: {again}"))
    return report


def _world_of(item: pytest.Function) -> Any:
    return item.funcargs.get("world") if _SEED in item.fixturenames else None


def _asked_for(config: pytest.Config) -> range | None:
    words = config.getoption(_OPTION)
    if words is None:
        return None
    found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", words)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if first > last:
        raise pytest.UsageError(f"{_OPTION} takes A..B with A not above B, or one seed, not {words!r}")
    return range(first, last + 1)


def _marked(metafunc: pytest.Metafunc) -> range:
    mark = metafunc.definition.get_closest_marker("palaver_seeds")
    if mark is None:
        return SEEDS
    seeds = mark.args[0] if len(mark.args) == 1 and not mark.kwargs else None
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0:
        return range(seeds)
    if isinstance(seeds, range) and seeds:
        return seeds
    raise pytest.UsageError(
        f"{metafunc.definition.nodeid}: palaver_seeds takes a number of seeds above 0, or a range of them"
    )
