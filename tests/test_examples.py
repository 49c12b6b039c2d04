"""Every example, and the Python of every document, runs as a user would run it and shows what it says."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import gevent.pool
import pytest

import palaver
from palaver.commands import palaver as command_line
from palaver.offline import inspect_database

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PATIENCE_S = 60
AT_ONCE = 4  # each has its own time limit, and must not spend it waiting for a core
MOST_LINES = 70

ARGUMENTS = {"agent_host": ("agents.db",), "many_senders": ("200",)}
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


class Finished:
    """What a program printed, and how it ended."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.folder = folder
        try:
            self.out, self.err = process.communicate(timeout=PATIENCE_S)
        finally:
            if process.poll() is None:
                process.kill()
        self.status = process.returncode
        self.lines = self.out.splitlines()


def start(folder: Path, program: Path, *arguments: str) -> subprocess.Popen[str]:
    """A program in a process of its own, which imports this checkout and writes into `folder`."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, str(program), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check(finished: Finished) -> Finished:
    assert finished.status == 0, f"exit status {finished.status}\n{finished.out}\n{finished.err}"
    return finished


def run(folder: Path, program: Path, *arguments: str) -> Finished:
    return check(Finished(start(folder, program, *arguments), folder))


def blocks(document: Path, language: str) -> list[str]:
    found = BLOCK.findall(document.read_text("utf-8"))
    return [textwrap.dedent(code) for _indent, of, code in found if of == language]


class Programs(Mapping[str, Finished]):
    """All examples, and all documents' programs: a few run side by side, and whoever asks for one waits for
    that one."""

    def __init__(self) -> None:
        self._pool = gevent.pool.Pool(AT_ONCE)
        self._waiting: dict[str, gevent.Greenlet] = {}

    def begin(self, name: str, folder: Path, program: Path, *arguments: str) -> None:
        """Run one as soon as there is room."""
        self._waiting[name] = gevent.spawn(self._pool.apply, self._run, (folder, program, *arguments))

    def end(self) -> None:
        """Leave none running."""
        self._pool.kill()
        gevent.killall([*self._waiting.values()])

    def _run(self, folder: Path, program: Path, *arguments: str) -> Finished:
        return Finished(start(folder, program, *arguments), folder)

    def __getitem__(self, name: str) -> Finished:
        finished: Finished = self._waiting[name].get()
        return finished

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Finished]]:
    """What came of the programs."""
    programs = Programs()
    for example in EXAMPLES:
        folder = tmp_path_factory.mktemp(example.stem)
        programs.begin(example.stem, folder, example, *ARGUMENTS.get(example.stem, ()))
    for document in DOCUMENTS:
        folder = tmp_path_factory.mktemp(document.stem)
        program = folder / "program.py"
        program.write_text("\n".join(blocks(document, "python")), "utf-8")
        programs.begin(document.name, folder, program)
    try:
        yield programs
    finally:
        programs.end()


# -- the examples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_example_succeeds(ran: Mapping[str, Finished], name: str) -> None:
    assert ran[name].status == 0, ran[name].err
    assert "Traceback" not in ran[name].err or name == "tools"  # which has a tool that fails


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_patches_first_and_says_what_to_see(path: Path) -> None:
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    assert text.count("\n") < MOST_LINES
    assert "You should see" in (ast.get_docstring(tree) or "")
    assert [ast.unparse(each) for each in tree.body[1:3]] == [
        "from gevent import monkey",
        "monkey.patch_all()",
    ]


def test_gevent_server_serves_two_senders_at_once(ran: Mapping[str, Finished]) -> None:
    lines = [line.strip() for line in ran["gevent_server"].lines]
    visits = (("alice", "Ely"), ("bob", "Rye"))
    looked_up = [lines.index(f"{who} looked up: the bus to {town} leaves at 9:40") for who, town in visits]
    done = [lines.index(f"{who} done: text_response") for who, _town in visits]
    assert max(looked_up) < min(done)
    for who, town in visits:
        pieces = re.findall(f"^ *{who} text: (.*)$", ran["gevent_server"].out, re.MULTILINE)
        assert len(pieces) > 1
        assert "".join(pieces) == f"Certainly: the bus to {town} leaves at 9:40."
    assert lines[-1] == "stopped"


def test_many_senders_are_all_answered_and_share_commits(ran: Mapping[str, Finished]) -> None:
    turns, commits = ran["many_senders"].lines
    assert turns.startswith("200 senders, 1,000 turns answered in ")
    assert int(commits.split()[0].replace(",", "")) < 1_000


def test_agent_host_ends_by_itself(ran: Mapping[str, Finished]) -> None:
    assert ran["agent_host"].lines == [
        "0 turns were stored; serving",
        "answered 20 turns; 20 are stored",
    ]


def test_tools_fail_are_refused_and_are_scoped(ran: Mapping[str, Finished]) -> None:
    _, first, second, bob = re.split("^(?:alice|bob): ", ran["tools"].out, flags=re.MULTILINE)
    assert '  weather -> {"town": "Ely", "days": 2, "forecast": "rain"}\n' in first
    assert "  whoami -> alice, in conversation 1\n" in first
    assert first.index("whoami") < first.index("weather")  # asked for second, ready first: they ran at once
    assert "  open failed -> error: PermissionError: gate 7 is locked\n" in first
    assert "  weather failed -> error: weather was not called: " in first
    assert first.endswith("  agent: Take your umbrella.\n")
    assert "It is in the blue bag." in second.splitlines()[1]
    assert "  recall -> []\n" in bob
    assert bob.endswith("notes: [('umbrella', 'It is in the blue bag.')]\n")


def test_steering_applies_both_steers_and_keeps_what_was_done(ran: Mapping[str, Finished]) -> None:
    assert ran["steering"].lines == [
        "steered: In inches, please.",
        "steered: And in oak.",
        "answer: The shelf is 16.5 inches wide; I ordered it in oak.",
        "too late: conversation 1 has no running turn to steer; send the message instead",
        "urgent: The wet paint sign is up.",
        "interrupted turn: cancelled",
        "       user: Now the door.",
        "  assistant: ['measure']",
        "       tool: the door is 42 cm wide",
        "  assistant: ['wait_for_delivery']",
        "       tool: interrupted: the turn was cancelled before this call gave a result",
        "       user: Leave it! Put up a wet paint sign.",
        "  assistant: The wet paint sign is up.",
    ]


def test_topics_are_resumed_with_their_archive(ran: Mapping[str, Finished]) -> None:
    first, second = ran["topics_and_compaction"].out.split("-- the program has stopped, and starts again\n")
    shown = [
        "what the model is shown:",
        "  user: Alice grows broad beans and leeks in two beds; the beans go in first.",
        "  user: And garlic between them.",
        "  assistant: And garlic between them.",
    ]
    refused, *rest = first.splitlines()
    assert refused.startswith("refused: the topic 'Vegetable beds' is new")
    assert rest == [
        "the same conversation: True",
        "archive: vegetable-beds-1",
        *shown,
        "recalled: [('archive', 'vegetable-beds-1')]",
        "topics on water: ['Pond']",
    ]
    said = ("Broad beans in the first bed.", "Leeks in the second.", "And garlic between them.")
    assert second.splitlines() == [
        "resumed: True",
        *shown,
        "the whole transcript:",
        *(f"  {role}: {text}" for text in said for role in ("user", "assistant")),
    ]


def test_the_race_of_a_tool_is_found_within_a_few_seeds_and_is_gone_from_the_right_one(
    ran: Mapping[str, Finished],
) -> None:
    found, *story, again, right = ran["racy_tool"].lines
    counted = re.fullmatch(r"careless: a payment is lost on (\d+) of 20 seeds, first on seed (\d+):", found)
    assert counted is not None
    assert int(counted[2]) < 10
    steps = [re.sub(r"^ *\d+\.\d\d s: ", "", line) for line in story]
    assert steps == ["reads 100", "reads 100", "writes 90", "writes 90"]
    assert again == "the same again: True"
    assert right == "careful: right on 20 of 20 seeds"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)
def test_agent_host_drains_on_a_signal_and_the_next_one_resumes(
    tmp_path: Path, signum: signal.Signals
) -> None:
    example = ROOT / "examples" / "agent_host.py"
    host = start(tmp_path, example, "agents.db", "--turns", "0")
    try:
        assert host.stdout is not None
        assert host.stdout.readline() == "0 turns were stored; serving\n"
        host.send_signal(signum)
        stopped = check(Finished(host, tmp_path))
    finally:
        host.kill()
    answered, stored = map(int, re.findall(r"\d+", stopped.lines[-1]))
    assert answered == stored
    again = run(tmp_path, example, "agents.db", "--turns", "1")
    assert again.lines == [
        f"{stored} turns were stored; serving",
        f"answered 2 turns; {stored + 2} are stored",
    ]
    report = inspect_database(tmp_path / "agents.db")
    assert (report.turns, report.problems) == (stored + 2, ())


# -- the documents ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [path.name for path in DOCUMENTS])
def test_python_of_the_document_runs_as_it_stands(ran: Mapping[str, Finished], name: str) -> None:
    assert ran[name].status == 0, ran[name].err
    assert "Traceback" not in ran[name].err


def test_quick_start_is_short_and_resumes_its_topic(ran: Mapping[str, Finished]) -> None:
    (quick_start,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in quick_start.splitlines() if line.strip()]) <= 20
    first = ran["README.md"]
    second = run(first.folder, first.folder / "program.py")
    assert first.lines == ["Leave at two.", "By three in the morning.", "6 entries are stored"]
    assert second.lines == [*first.lines[:2], "12 entries are stored"]


def test_guide_names_every_error_and_event() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text("utf-8")
    bases = (palaver.PalaverError, palaver.Event)
    public = [getattr(palaver, name) for name in palaver.__all__]
    wanted = [each.__name__ for each in public if isinstance(each, type) and issubclass(each, bases)]
    assert len(wanted) > 30
    assert [name for name in wanted if not re.search(rf"\b{name}\b", guide) and name != "Event"] == []


def test_first_two_commands_of_the_readme_are_a_line_each_and_what_ci_runs() -> None:
    demo, tests = blocks(ROOT / "README.md", "sh")[:2]
    assert demo.endswith(".venv/bin/palaver demo\n")
    assert tests in (ROOT / ".ci" / "run").read_text("utf-8")
    assert demo.count("\n") == tests.count("\n") == 1


def test_the_readme_names_all_commands_and_no_other() -> None:
    table = re.findall(r"^\| `palaver (.*?)` \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    named = {row.split()[0]: re.findall(r"(?:^\w+ |`)([a-z]+)", row) for row in table}
    context = click.Context(command_line)
    commands = {name: command_line.get_command(context, name) for name in command_line.list_commands(context)}
    groups = {name: [*getattr(command, "commands", {})] for name, command in commands.items()}
    assert {name: sorted(named[name]) for name, inner in groups.items() if inner} == {
        name: sorted(inner) for name, inner in groups.items() if inner
    }
    assert sorted(named) == sorted(groups)


@pytest.mark.parametrize("document", sorted({*DOCUMENTS, *ROOT.glob("*.md")}), ids=lambda path: path.name)
def test_links_of_the_document_lead_somewhere(document: Path) -> None:
    links = LINK.findall(document.read_text("utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []
