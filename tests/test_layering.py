"""The floor plan: imports run one way, the clock is handed in, pykka's insides stay in one file."""

from __future__ import annotations

import ast
import configparser
import functools
from collections.abc import Iterator
from pathlib import Path

import pykka
import pytest
from support import ROOT, run_script

from actors.conversation import ConversationActor
from actors.greenlet import GreenletActor
from actors.memory import MemoryActor
from actors.registry import RegistryActor
from actors.supervisor import Supervisor

PACKAGES = ("persistence", "actors", "palaver")  # each may import those before it, and itself
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
OF_THE_HOST = {"time", "random", "uuid", "secrets"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.fixture(scope="module", autouse=True)
def trees_that_are_let_go() -> Iterator[None]:
    """The collector of later tests is not to walk them."""
    yield
    tree_of.cache_clear()


def running_code(path: Path) -> Iterator[ast.AST]:
    """The nodes of a module, without what only a type checker reads."""
    waiting: list[ast.AST] = [tree_of(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def imported(nodes: Iterator[ast.AST]) -> Iterator[tuple[str, str]]:
    """`(module, name)` of each import; the name is "" where the module itself is imported."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports between the packages are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 50
    assert ROOT / "actors" / "conversation.py" in MODULES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way_also_for_the_type_checker(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    above = PACKAGES[PACKAGES.index(package) + 1 :]
    everything = imported(iter(ast.walk(tree_of(path))))
    assert [module for module, _ in everything if module.split(".")[0] in above] == []


@pytest.mark.parametrize("path", [p for p in MODULES if "persistence" not in p.parts], ids=name_of)
def test_time_randomness_and_ids_are_handed_in(path: Path) -> None:
    nodes = [*running_code(path)]
    found = [
        (module, name)
        for module, name in imported(iter(nodes))
        if module.split(".")[0] in OF_THE_HOST or (module, name) == ("os", "urandom")
    ]
    keys = {id(key) for node in nodes if isinstance(node, ast.Dict) for key in node.keys}
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in ("urandom", "utcnow", "getrandom"):
            found.append((ast.unparse(node.value), node.attr))
        if isinstance(node, ast.Attribute) and node.attr in ("now", "today"):
            found += [("datetime", node.attr)] * ("date" in ast.unparse(node.value))
        if isinstance(node, ast.Constant) and node.value in OF_THE_HOST and id(node) not in keys:
            found.append(("by its name", str(node.value)))
    assert found == []


@pytest.mark.parametrize("path", [p for p in MODULES if "persistence" in p.parts], ids=name_of)
def test_only_one_file_of_persistence_reads_the_clock_and_makes_ids(path: Path) -> None:
    found = [module for module, _ in imported(running_code(path)) if module in OF_THE_HOST]
    assert found == [] or path.name == "sources.py"


_IMPORT_ALL = """
import importlib, pkgutil, sys
import gevent.monkey
import actors, palaver, persistence
names = [m.name for package in (persistence, actors, palaver)
         for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
names = [name for name in names if name not in sys.argv[1:]]
for name in names:
    importlib.import_module(name)
[getattr(palaver, name) for name in palaver.__all__]
print(len(names), gevent.monkey.saved)
"""


def test_trap_13_no_module_of_the_library_patches_when_it_is_imported() -> None:
    ran = run_script(_IMPORT_ALL, "palaver.__main__", "palaver.cli")
    count, _, patched = ran.stdout.strip().partition(" ")
    assert int(count) > 50, ran.stderr
    assert patched == "{}"


def test_persistence_works_without_the_other_packages() -> None:
    imports = [p.stem for p in MODULES if p.parent == ROOT / "persistence" and p.stem != "__init__"]
    ran = run_script(
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module('persistence.' + name)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('actors', 'palaver', 'pykka', 'requests')])",
        *imports,
    )
    assert ran.stdout.strip() == "[]", ran.stderr


# -- pykka's private names -------------------------------------------------------------------------


def private(cls: type) -> set[str]:
    """Names of pykka's own that begin with one underscore, instance attributes included."""
    module = ast.parse(Path(str(__import__("sys").modules[cls.__module__].__file__)).read_text())
    assigned = {
        node.attr
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    names = {*assigned, *vars(cls)}
    return {name for name in names if name.startswith("_") and not name.startswith(("__", "_abc_"))}


PYKKAS = set[str]().union(*map(private, (pykka.Actor, pykka.ActorRef, pykka.Future, pykka.ThreadingActor)))


def test_the_private_names_of_pykka_are_known() -> None:
    assert {"_actor_loop", "_create_actor_inbox", "_start_actor_loop", "_get_hook"} <= PYKKAS


@pytest.mark.parametrize("path", [p for p in MODULES if p != ROOT / "actors" / "greenlet.py"], ids=name_of)
def test_only_greenlet_py_touches_pykkas_private_names(path: Path) -> None:
    nodes = list(ast.walk(tree_of(path)))
    found = [
        (module, name)
        for module, name in imported(iter(nodes))
        if module.split(".")[0] == "pykka" and any(p.startswith("_") for p in (*module.split("."), name))
    ]
    for node in nodes:
        # `self._stop` is a name of our own class here: the test below makes sure that it hides none.
        if isinstance(node, ast.Attribute) and node.attr in PYKKAS and ast.unparse(node.value) != "self":
            found.append((ast.unparse(node.value), node.attr))
    assert found == []


@pytest.mark.parametrize("actor", [ConversationActor, RegistryActor, MemoryActor, Supervisor])
def test_no_actor_of_ours_overrides_a_private_name_of_pykka(actor: type) -> None:
    classes = [cls for cls in actor.__mro__ if issubclass(cls, GreenletActor) and cls is not GreenletActor]
    for cls in classes:
        path = Path(str(__import__("sys").modules[cls.__module__].__file__))
        stored = {
            node.attr
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            if ast.unparse(node.value) == "self"
        }
        assert ({*stored, *vars(cls)} & PYKKAS) == set()


# -- the distribution ------------------------------------------------------------------------------


def test_the_packages_in_setup_cfg_are_the_packages_on_disk() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in MODULES if path.name == "__init__.py"
    }
    assert sorted(listed) == sorted(on_disk)
    folders = {path.parent for path in MODULES}
    assert all((folder / "__init__.py").exists() for folder in folders)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_ships_its_types(package: str) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert (ROOT / package / "py.typed").exists()
    assert "py.typed" in config["options.package_data"][package]
