"""A host's configuration: what is wrong with it is told with file, line, key, and what would be right."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from click.testing import CliRunner

from actors.builtin_tools import BUILTIN_NAMES, builtin_tools
from palaver import AgentConfig, Limits, ModelRequest, OpenAIModel, ScriptedModel
from palaver.commands import palaver
from palaver.host.config import HostConfig, load_config
from palaver.host.models import Renamed
from palaver.toml.lines import key_lines, line_of
from palaver.toml.reading import BadConfigFile

GOOD = """\
database = "agents.db"
socket = "palaver.sock"

[models.echo]
kind = "echo"

[agents.clerk]
"""

MODULE = """
from palaver import ScriptedModel

def tide(harbour: str) -> str:
    "When the next high tide is."
    return harbour

def recall(query: str) -> str:
    "Not the built-in one."
    return query

class Audit:
    def on_event(self, agent, conversation_id, event):
        pass

class Nothing:
    pass

class Broken:
    def __init__(self):
        raise OSError("no audit today")

audit = Audit()
model = ScriptedModel(["made before"])

def make(reply):
    return ScriptedModel([reply])

number = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "host_config_parts.py").write_text(MODULE)
    (tmp_path / "host_config_raises.py").write_text("raise ValueError('not today')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def load(folder: Path, text: str, **environ: str) -> HostConfig:
    path = folder / "host.toml"
    path.write_text(dedent(text))
    return load_config(path, environ)


def problems(folder: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(BadConfigFile) as caught:
        load(folder, text, **environ)
    prefix = f"{folder / 'host.toml'}:"
    lines = [str(problem) for problem in caught.value.problems]
    assert all(line.startswith(prefix) for line in lines)
    assert str(caught.value) == "; ".join(lines)
    return [line.removeprefix(prefix) for line in lines]


# -- lines ------------------------------------------------------------------------------------------

EVERYTHING = r"""
# a comment with [brackets] and key = 1
database = "a.db" # = "#"
tools = [ # "no"
  "a:b",
  'c:d', # ] not the end

  '''e
  ]''',
]
a.b."c.d" = 1
"q\u0041" = QQQ
x = [1]
\QQQ [no.table]QQQ
[models.main]
kind = "x"
headers = { A = "b", "B C" = {z = 1}, l = [1, 2] }
[models."two.three"] # what follows
when = 1979-05-27 07:32:00
s = '''
a'b''''
[[arr]]
x = 1
[arr.sub]
y = 2
[[arr]]
x = 3
 [ arr . sub ]
y = [[1, 2], [3,
4]]
[ limits ]
queued_total = 5
empty = ""
f = -1.5e3
""".replace("QQQ", '"""')


def paths(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inside:
        yield (*at, name)
        yield from paths(each, (*at, name))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_key_of_a_file_has_a_line_and_nothing_else_has(newline: str) -> None:
    text = EVERYTHING.replace("\n", newline)
    assert sorted(map(str, key_lines(text))) == sorted(map(str, paths(tomllib.loads(text))))


def test_the_line_of_a_key_is_where_it_is_written() -> None:
    lines = EVERYTHING.split("\n")
    found = key_lines(EVERYTHING)
    at = {path: lines[line - 1].strip() for path, line in found.items()}
    assert at["database",].startswith("database")
    assert at["tools", 0] == '"a:b",'
    assert at["tools", 1].startswith("'c:d'")
    assert at["a", "b", "c.d"] == 'a.b."c.d" = 1'
    assert at["qA",].startswith('"q')
    assert at["models", "main"] == "[models.main]"
    assert at["models", "main", "headers", "B C", "z"].startswith("headers = {")
    assert at["models", "two.three"].startswith('[models."two.three"]')
    assert at["models", "two.three", "when"].startswith("when")
    assert [at["arr", 0, "x"], at["arr", 1, "x"], at["arr", 0, "sub", "y"]] == ["x = 1", "x = 3", "y = 2"]
    assert at["arr", 1, "sub"] == "[ arr . sub ]"
    assert [at["arr", 1, "sub", "y", 0, 1], at["arr", 1, "sub", "y", 1, 1]] == ["y = [[1, 2], [3,", "4]]"]
    assert at["limits", "f"] == "f = -1.5e3"


def test_what_is_not_there_is_told_with_the_line_of_what_it_is_in() -> None:
    found = key_lines(GOOD)
    assert line_of(found, ("models", "echo", "replies", 3)) == 4
    assert line_of(found, ("nothing",)) == 1


# -- what is wrong ----------------------------------------------------------------------------------

WRONG = {
    "no TOML": ("database = 'a'\nsocket = \n", ["2: this is no TOML: Invalid value"]),
    "cut off": ('database = "a', ["1: this is no TOML: Unterminated string"]),
    "twice": (GOOD + "[models.echo]\n", ["8: this is no TOML: Cannot declare ('models', 'echo') twice"]),
    "empty": (
        "",
        [
            '1: models: is missing: at least one model, as in [models.echo] with kind = "echo"',
            "1: database: is missing: text",
            "1: socket: is missing: text",
            "1: agents: is missing: at least one agent, as in [agents.clerk]",
        ],
    ),
    "unknown key": ('databse = "x"\n' + GOOD, ["1: databse: there is no such key; did you mean 'database'?"]),
    "unknown, near nothing": (
        "zzz = 1\n" + GOOD,
        ["1: zzz: there is no such key; known are: database, socket, drain_s, recover, log_format, "],
    ),
    "wrong type": (GOOD.replace('"agents.db"', "5"), ["1: database: must be text, not 5"]),
    "empty path": (GOOD.replace('"agents.db"', '""'), ["1: database: must be the path of a file"]),
    "a flag is no number": ("drain_s = true\n" + GOOD, ["1: drain_s: must be a number of seconds, not true"]),
    "negative": ("drain_s = -1\n" + GOOD, ["1: drain_s: must be a number of seconds from 0 on, not -1"]),
    "choice": ('recover = "rn"\n' + GOOD, ['1: recover: must be one of run, hold, fail, not "rn"']),
    "log": ('log_format = "xml"\n' + GOOD, ['1: log_format: must be one of text, json, not "xml"']),
    "level": ("log_level = 3\n" + GOOD, ["1: log_level: must be one of debug, info, warning, error, not 3"]),
    "connections": ("connections = 0\n" + GOOD, ["1: connections: must be a whole number above 0, not 0"]),
    "no table": (
        "models = 3\n" + GOOD.replace('[models.echo]\nkind = "echo"', ""),
        ["1: models: must be a table"],
    ),
    # models
    "kind": (GOOD.replace('kind = "echo"', ""), ["4: models.echo.kind: is missing: one of openai, echo,"]),
    "unknown kind": (GOOD.replace('"echo"', '"gpt"'), ["5: models.echo.kind: must be one of openai, echo"]),
    "key of a kind": (
        GOOD.replace('"echo"', '"echo"\ndelay = 3'),
        ["6: models.echo.delay: there is no such key; did you mean 'delay_s'?"],
    ),
    "no base_url": (GOOD.replace('"echo"', '"openai"'), ["4: models.echo.base_url: is missing: text"]),
    "base_url": (
        GOOD.replace('"echo"', '"openai"\nbase_url = "host/v1"'),
        ["6: models.echo.base_url: must look like https://host/v1, not 'host/v1'"],
    ),
    "api_key": (
        GOOD.replace('"echo"', '"openai"\nbase_url = "http://h/v1"\napi_key = "s3cret"'),
        ["7: models.echo.api_key: a key is never written into the file; put it into an environment variable"],
    ),
    "variable": (
        GOOD.replace('"echo"', '"openai"\nbase_url = "http://h/v1"\napi_key_env = "NO_SUCH"'),
        ["7: models.echo.api_key_env: the environment has no variable 'NO_SUCH', or it is empty"],
    ),
    "option": (
        GOOD.replace('"echo"', '"openai"\nbase_url = "http://h/v1"\nretries = -1'),
        ["7: models.echo.retries: must be a whole number, 0 or more, not -1"],
    ),
    "secret header": (
        GOOD.replace('"echo"', '"openai"\nbase_url = "http://h/v1"\nheaders = {X-Api-Key = "x"}'),
        ["7: models.echo.headers.X-Api-Key: a secret is never written into the file"],
    ),
    "header": (
        GOOD.replace('"echo"', '"openai"\nbase_url = "http://h/v1"\nheaders = {Team = 1}'),
        ["7: models.echo.headers.Team: must be text, not 1"],
    ),
    "replies": (GOOD.replace('"echo"', '"scripted"'), ["4: models.echo.replies: must be a list of one text"]),
    "no module": (
        GOOD.replace('"echo"', '"no_such_module_xyz:Model"'),
        ["5: models.echo.kind: no_such_module_xyz cannot be imported: ModuleNotFoundError"],
    ),
    "no model": (
        GOOD.replace('"echo"', '"host_config_parts:number"'),
        ["5: models.echo.kind: is neither a model, with a method stream(request), nor makes one"],
    ),
    "options": (
        GOOD.replace('"echo"', '"host_config_parts:make"\noptions = {answer = "x"}'),
        ["5: models.echo.kind: could not be made: TypeError: make() got an unexpected keyword"],
    ),
    # agents
    "agent's key": (
        GOOD + "max_iteration = 3\n",
        ["8: agents.clerk.max_iteration: there is no such key; did you mean 'max_iterations'?"],
    ),
    "agent's value": (
        GOOD + "thinking = 1\nmax_iterations = 0\n",
        ["8: agents.clerk.thinking: must be True or False, not 1", "9: agents.clerk.max_iterations: must be"],
    ),
    "agent's name": (GOOD + 'name = "x"\n', ["8: agents.clerk.name: is the table's own name"]),
    "agent's title": (GOOD.replace("clerk", '" "'), ['7: agents." ": name is empty']),
    "agent's model": (
        GOOD + 'model = "ecco"\n',
        ["8: agents.clerk.model: there is no model 'ecco' in [models]; did you mean 'echo'?"],
    ),
    "which model": (
        GOOD + '[models.other]\nkind = "echo"\n',
        ["7: agents.clerk.model: is missing: one of echo, other"],
    ),
    "agent's tool": (
        GOOD + 'tools = [\n  "recall",\n  "remembr",\n]\n',
        ["10: agents.clerk.tools[1]: there is no tool 'remembr'; did you mean 'remember'?"],
    ),
    "scope": (GOOD + 'memory_scope = "all"\n', ['8: agents.clerk.memory_scope: must be "sender" or "agent"']),
    # limits
    "limit": (
        GOOD + "[limits]\nqueued_totl = 3\n",
        ["9: limits.queued_totl: there is no such key; did you mean 'queued_total'?"],
    ),
    "limit's value": (
        GOOD + "[limits]\n\n# none\nqueued_total = 0\nturn_s = 'x'\n",
        [
            "11: limits.queued_total: must be a whole number above 0, not 0",
            "12: limits.turn_s: must be a number of seconds above 0, not 'x'",
        ],
    ),
    # tools and hooks
    "tools": ('tools = "a:b"\n' + GOOD, ['1: tools: must be a list of texts, not "a:b"']),
    "tool's path": (
        'tools = [\n"host_config_parts:tide",\n"os.path"]\n' + GOOD,
        ["3: tools[1]: an import path looks like"],
    ),
    "tool's module": (
        'tools = ["host_config_raises:x"]\n' + GOOD,
        ["1: tools[0]: host_config_raises cannot be imported: ValueError: not today"],
    ),
    "tool's object": (
        'tools = ["host_config_parts:tides"]\n' + GOOD,
        ["1: tools[0]: host_config_parts has no tides"],
    ),
    "no tool": ('tools = ["host_config_parts:number"]\n' + GOOD, ["1: tools[0]: "]),
    "tool twice": (
        'tools = ["host_config_parts:tide", "host_config_parts:tide"]\n' + GOOD,
        ["1: tools[1]: there is another tool named 'tide'"],
    ),
    "built-in tool": (
        'tools = ["host_config_parts:recall"]\n' + GOOD,
        ["1: tools[0]: there is another tool named 'recall'"],
    ),
    "no hook": (
        'hooks = ["host_config_parts:Nothing"]\n' + GOOD,
        ["1: hooks[0]: the hook <host_config_parts.Nothing"],
    ),
    "hook raises": (
        'hooks = ["host_config_parts:Broken"]\n' + GOOD,
        ["1: hooks[0]: Broken() raised OSError: no audit today"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_its_line_and_key(name: str, folder: Path) -> None:
    text, expected = WRONG[name]
    found = problems(folder, text)
    assert len(found) == len(expected), found
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning)


def test_a_dotted_key_and_a_quoted_one_are_found_too(folder: Path) -> None:
    text = """\
    database = "a.db"
    socket = "a.sock"
    models.echo.kind = "echo"

    agents."the clerk".max_iterations = "many"
    "lim\\u0069ts".queued_total = -4
    """
    assert problems(folder, text) == [
        "5: agents.\"the clerk\".max_iterations: must be a whole number above 0, not 'many'",
        "6: limits.queued_total: must be a whole number above 0, not -4",
    ]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadConfigFile, match=r"none\.toml:1: cannot be read: No such file"):
        load_config(tmp_path / "none.toml", {})
    (tmp_path / "latin.toml").write_bytes(b'database = "\xe9"')
    with pytest.raises(BadConfigFile, match="it is not UTF-8"):
        load_config(tmp_path / "latin.toml", {})


def test_a_secret_is_in_no_message_and_no_repr(folder: Path) -> None:
    model = '[models.m]\nkind = "openai"\nbase_url = "http://h/v1"\napi_key_env = "KEY"\n'
    config = load(folder, GOOD.replace("[agents", model + "[agents") + 'model = "m"\n', KEY="s3cret")
    assert "s3cret" not in repr(config)
    (found,) = problems(folder, GOOD.replace("[agents", model + "[agents") + 'model = "m"\n', KEY="s3 cret")
    assert found.startswith("10: models.m.api_key_env: api_key must be printable ASCII")
    assert "s3 cret" not in found


# -- what is right ----------------------------------------------------------------------------------


def test_a_small_file_has_the_defaults_and_paths_beside_it(folder: Path) -> None:
    config = load(folder, GOOD)
    assert (config.database, config.socket) == (str(folder / "agents.db"), str(folder / "palaver.sock"))
    assert config.agents == (AgentConfig("clerk", model="echo"),)
    assert config.limits == Limits()
    assert (config.drain_s, config.recover, config.log_format) == (30.0, "run", "text")
    assert config.bounds.line_bytes > 6 * Limits().content_chars


def test_everything_can_be_said(folder: Path) -> None:
    config = load(
        folder,
        """\
        database = ":memory:"
        socket = "/run/palaver/x.sock"
        drain_s = 2.5
        recover = "hold"
        log_format = "json"
        log_level = "warning"
        connections = 7
        line_bytes = 1000
        tools = ["host_config_parts:tide"]
        hooks = ["host_config_parts:Audit", "host_config_parts:audit"]

        [limits]
        queued_total = 12
        turn_s = 60

        [models.gpt]
        kind = "openai"
        base_url = "https://host/v1"
        model = "gpt-large"
        api_key_env = "KEY"
        headers = { Team = "crabs" }
        headers_env = { X-Token = "TOKEN" }
        retries = 0
        extra = { temperature = 0 }

        [models.made]
        kind = "host_config_parts:make"
        options = { reply = "made now" }

        [models.ready]
        kind = "host_config_parts:model"

        [models.script]
        kind = "scripted"
        replies = ["one", "two"]

        [models.slow]
        kind = "echo"
        delay_s = 0.5

        [agents.a]
        model = "gpt"
        system_prompt = "You are a crab."
        tools = ["tide", "recall"]
        compact_threshold = "never"

        [agents.b]
        model = "script"
        compact_threshold = 10
        memory_scope = "agent"
        """,
        KEY="k",
        TOKEN="t",
    )
    assert (config.database, config.socket, config.drain_s) == (":memory:", "/run/palaver/x.sock", 2.5)
    assert (config.recover, config.log_format, config.log_level) == ("hold", "json", "warning")
    assert (config.bounds.connections, config.bounds.line_bytes) == (7, 1000)
    assert config.limits == Limits(queued_total=12, turn_s=60)
    assert [tool.name for tool in config.tools] == ["tide"]
    assert len(config.hooks) == 2
    assert config.agents == (
        AgentConfig("a", "gpt", "You are a crab.", tools=("tide", "recall"), compact_threshold=None),
        AgentConfig("b", "script", compact_threshold=10, memory_scope="agent"),
    )
    assert isinstance(config.models["gpt"], Renamed)
    assert isinstance(config.models["ready"], ScriptedModel)
    request = ModelRequest("script", [{"role": "user", "content": "hello"}])
    says = {name: [_said(config, name, request) for _ in range(3)] for name in ("script", "slow")}
    assert says == {"script": ["one", "two", "one"], "slow": ["hello"] * 3}
    assert _said(config, "made", request) == "made now"


def _said(config: HostConfig, name: str, request: ModelRequest) -> str:
    return "".join(chunk.text for chunk in config.models[name].stream(request))


def test_a_model_is_asked_by_the_name_that_its_endpoint_knows() -> None:
    inner = ScriptedModel()
    [*Renamed(inner, "large").stream(ModelRequest("mine", [{"role": "user", "content": "x"}]))]
    assert [request.model for request in inner.requests] == ["large"]


def test_an_openai_model_without_another_name_is_itself(folder: Path) -> None:
    config = load(folder, GOOD.replace('"echo"', '"openai"\nbase_url = "http://h/v1"'))
    assert isinstance(config.models["echo"], OpenAIModel)


def test_the_built_in_tools_have_the_names_that_a_config_may_give() -> None:
    assert tuple(tool.name for tool in builtin_tools(None)) == BUILTIN_NAMES  # type: ignore[arg-type]


# -- the command ------------------------------------------------------------------------------------


def test_check_says_that_a_file_is_good_and_starts_nothing(folder: Path) -> None:
    (folder / "host.toml").write_text(GOOD)
    done = CliRunner().invoke(palaver, ["host", str(folder / "host.toml"), "--check"])
    assert (done.exit_code, done.output.splitlines()[0]) == (0, f"ok: {folder / 'host.toml'}")
    assert not (folder / "agents.db").exists()


@pytest.mark.parametrize("options", [["--check"], []])
def test_everything_that_is_wrong_is_printed_in_a_line_each(folder: Path, options: list[str]) -> None:
    (folder / "host.toml").write_text("drain_s = -1\n" + GOOD + "max_iterations = 0\n")
    done = CliRunner().invoke(palaver, ["host", str(folder / "host.toml"), *options])
    assert done.exit_code == 1
    assert [line.rpartition("host.toml:")[2][:2] for line in done.output.splitlines()] == ["1:", "9:"]
    assert done.output.startswith("Error: ")
