"""Tools: a function's schema, what a model may write, and that nothing which goes wrong gets out."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import functools
import json
import logging
import typing
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict, TypeVar, Union

import attrs
import gevent
import pytest
from attrs import frozen
from gevent.event import Event
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import InvalidConfig
from actors.tool_json import BadArguments, BadResult
from actors.tools import Tool, ToolContext, ToolOutcome, ToolRegistry, dispatch

CONTEXT = ToolContext("crab", "alice", 7, 3, "call_1")
Item = TypeVar("Item", bound=int)
Celsius = typing.NewType("Celsius", float)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@frozen
class Point:
    x: int
    y: int = 0
    _label: str = attrs.field(default="", kw_only=True)
    length: float = attrs.field(init=False, default=0.0)


@dataclasses.dataclass
class Line:
    start: Point
    ends: list[Point] = dataclasses.field(default_factory=list)


class Address(TypedDict):
    street: str
    number: NotRequired[int]


class Loose(TypedDict, total=False):
    note: str


@dataclasses.dataclass
class Tree:
    children: list[Tree]


def schema_of(annotation: object) -> dict[str, Any]:
    """The schema of an argument with this annotation."""

    def function(value): ...

    function.__annotations__ = {"value": annotation}
    return Tool(function).parameters["properties"]["value"]


def call(function: Any, arguments: object = "", **options: Any) -> str:
    """What a tool returns for these arguments."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return Tool(function, **{"name": "it", **options}).call(text, CONTEXT)


def echo(annotation: object) -> Any:
    """A tool's function that keeps what it was given in `got`."""

    def function(value):
        function.got = value

    function.__annotations__ = {"value": annotation}
    return function


def loaded(annotation: object, value: object) -> object:
    """What a function with this annotation is given for a JSON value."""
    function = echo(annotation)
    call(function, {"value": value})
    return function.got


# -- schemas ----------------------------------------------------------------------------------------------

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}, "label": {"type": "string"}},
    "additionalProperties": False,
    "required": ["x"],
}
NULL = {"type": "null"}


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (None, NULL),
        (Any, {}),
        (object, {}),
        (list, {"type": "array", "items": {}}),
        (list[str], {"type": "array", "items": {"type": "string"}}),
        (typing.List[int], {"type": "array", "items": {"type": "integer"}}),  # noqa: UP006 - users write it
        (collections.abc.Sequence[bool], {"type": "array", "items": {"type": "boolean"}}),
        (set[str], {"type": "array", "items": {"type": "string"}}),
        (tuple, {"type": "array", "items": {}}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (
            tuple[int, int],
            {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "integer"}],
                "items": {"type": "integer"},
                "minItems": 2,
                "maxItems": 2,
            },
        ),
        (
            tuple[str, int],
            {
                "type": "array",
                "prefixItems": [{"type": "string"}, {"type": "integer"}],
                "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                "minItems": 2,
                "maxItems": 2,
            },
        ),
        (dict, {"type": "object"}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (dict[str, Any], {"type": "object", "additionalProperties": True}),
        (collections.abc.Mapping[str, str], {"type": "object", "additionalProperties": {"type": "string"}}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal[1, 2], {"type": "integer", "enum": [1, 2]}),
        (Literal[True], {"type": "boolean", "enum": [True]}),
        (Literal["a", 1, None], {"enum": ["a", 1, None]}),
        (Colour, {"type": "string", "enum": ["red", "blue"]}),
        (Level, {"type": "integer", "enum": [1, 2]}),
        (Optional[int], {"anyOf": [{"type": "integer"}, NULL]}),  # noqa: UP045 - users write it
        (int | None, {"anyOf": [{"type": "integer"}, NULL]}),
        (Union[str, list[str]], {"anyOf": [{"type": "string"}, schema_of(list[str])]}),  # noqa: UP007
        (Annotated[int, "How many."], {"type": "integer", "description": "How many."}),
        (Annotated[int, 7], {"type": "integer"}),
        (Celsius, {"type": "number"}),
        (Item, {"type": "integer"}),
        (Point, POINT),
        (list[Point], {"type": "array", "items": POINT}),
        (
            Line,
            {
                "type": "object",
                "properties": {"start": POINT, "ends": {"type": "array", "items": POINT}},
                "additionalProperties": False,
                "required": ["start"],
            },
        ),
        (
            Address,
            {
                "type": "object",
                "properties": {"street": {"type": "string"}, "number": {"type": "integer"}},
                "additionalProperties": False,
                "required": ["street"],
            },
        ),
        (
            Loose,
            {"type": "object", "properties": {"note": {"type": "string"}}, "additionalProperties": False},
        ),
    ],
    ids=repr,
)
def test_a_type_has_the_schema(annotation, schema):
    assert schema_of(annotation) == schema


@pytest.mark.skipif(not hasattr(typing, "TypeAliasType"), reason="type statements came with Python 3.12")
def test_a_type_alias_has_the_schema_of_its_type():
    assert schema_of(typing.TypeAliasType("Names", list[str])) == schema_of(list[str])


@pytest.mark.parametrize(
    "annotation",
    [datetime.datetime, bytes, complex, dict[int, str], Tree, Literal[b"x"], typing.Callable[[], int], type],
    ids=repr,
)
def test_a_type_without_a_json_form_is_refused_with_its_place(annotation):
    with pytest.raises(InvalidConfig, match=r"tool 'function': argument 'value'.*"):
        schema_of(annotation)


def weather(city: str, days: int = 3, *, unit: Literal["C", "F"] = "C", call: ToolContext) -> str:
    """Tell the weather
    of a city.

    More that the model does not need.

    Args:
        city (str): Its name,
            as people write it.
        days: How many days ahead: up to 7.
        unit (Literal["C", "F"], optional):
            Of the temperature.

    Returns:
        days: not an argument.
    """
    return f"{city} {days} {unit} for {call.sender}"


def test_a_tool_has_the_openai_schema_of_its_signature_and_docstring():
    tool = Tool(weather)
    assert tool.schema == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tell the weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Its name, as people write it."},
                    "days": {"type": "integer", "description": "How many days ahead: up to 7."},
                    "unit": {"type": "string", "enum": ["C", "F"], "description": "Of the temperature."},
                },
                "additionalProperties": False,
                "required": ["city"],
            },
        },
    }
    assert tool.schema is tool.schema
    assert json.loads(json.dumps(tool.schema)) == tool.schema
    assert (tool.name, tool.description, repr(tool)) == (
        "weather",
        "Tell the weather of a city.",
        "Tool('weather')",
    )


def no_docs(value): ...


def only_arguments(value):
    """Args:
    value: what to say
    """


def no_arguments_section(value):
    """Say it.

    value: this is not a section
    """


def arguments_at_the_end(value, *, other=1, **rest):
    """Say it.

    Arguments:
        value:
        other: the last line
        **rest: anything
        not an entry at all
    """


@pytest.mark.parametrize(
    ("function", "description", "docs"),
    [
        (no_docs, "", [None]),
        (only_arguments, "", [None]),
        (no_arguments_section, "Say it.", [None]),
        (arguments_at_the_end, "Say it.", [None, "the last line"]),
    ],
)
def test_docstrings_of_every_shape_are_read(function, description, docs):
    tool = Tool(function)
    assert tool.description == description
    assert [schema.get("description") for schema in tool.parameters["properties"].values()] == docs


def test_a_given_description_and_name_come_first():
    tool = Tool(weather, name="look-up_2", description="Other \ud800 words")
    assert tool.schema["function"]["name"] == "look-up_2"
    assert tool.schema["function"]["description"] == "Other \ufffd words"


def test_a_function_with_any_arguments_takes_any():
    def anything(first: int, **rest): ...

    tool = Tool(anything)
    assert tool.parameters["additionalProperties"] is True
    assert list(tool.parameters["properties"]) == ["first"]
    assert call(lambda **rest: rest, {"a": 1, "b": [None]}) == '{"a": 1, "b": [null]}'


def test_an_argument_whose_default_is_none_may_be_null():
    def function(value: int = None): ...  # noqa: RUF013 - users write it

    assert Tool(function).parameters["properties"]["value"] == {"anyOf": [{"type": "integer"}, NULL]}
    assert Tool(lambda value=None: 1, "it").parameters["properties"]["value"] == {}


def test_annotations_that_cannot_be_resolved_take_anything_and_the_others_count():
    def function(a: Missing, b: int, c: list[Nowhere]): ...  # noqa: F821 - that is the point

    assert Tool(function).parameters["properties"] == {"a": {}, "b": {"type": "integer"}, "c": {}}


def test_fields_that_cannot_be_resolved_take_anything():
    @frozen
    class Local:
        a: Missing  # noqa: F821 - that is the point

    assert schema_of(Local)["properties"] == {"a": {}}


class Toolbox:
    """A class of tools."""

    def method(self, value: int, call: ToolContext) -> str:
        """A method."""
        return f"{value} {call.call_id}"

    @staticmethod
    def static(value: int) -> int:
        return value

    def __call__(self, value: bool) -> bool:
        return not value


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def test_methods_partials_callables_and_decorated_functions_are_tools():
    assert Tool(Toolbox().method).call('{"value": 2}', CONTEXT) == "2 call_1"
    assert Tool(Toolbox.static).parameters["properties"] == {"value": {"type": "integer"}}
    instance = Tool(Toolbox(), name="flip")
    assert instance.description == "A class of tools."
    assert instance.parameters["properties"] == {"value": {"type": "boolean"}}
    assert instance.call('{"value": true}', CONTEXT) == "false"
    partial = Tool(functools.partial(weather, unit="F"), name="f")
    assert partial.description == "Tell the weather of a city."
    assert partial.call('{"city": "Rome"}', CONTEXT) == "Rome 3 F for alice"
    wrapped = Tool(decorated(weather))
    assert wrapped.schema == Tool(weather).schema
    assert wrapped.call('{"city": "Rome"}', CONTEXT) == "Rome 3 C for alice"


def test_a_missing_annotation_takes_anything():
    assert Tool(no_docs).parameters == {
        "type": "object",
        "properties": {"value": {}},
        "additionalProperties": False,
        "required": ["value"],
    }


# -- what makes no tool -----------------------------------------------------------------------------------


async def asynchronous(): ...


def starred(*values): ...


def by_position(value, /): ...


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((lambda: 1,), "give name="),
        ((functools.partial(weather),), "give name="),
        (("weather",), "callable"),
        ((asynchronous,), "async"),
        ((starred,), r"\*values"),
        ((by_position,), "value by position"),
        ((weather, ""), "64 letters"),
        ((weather, "two words"), "'two words'"),
        ((weather, "zürich"), "zürich"),
        ((weather, "x" * 65), "64 letters"),
        ((weather, "line\n"), "64 letters"),
        ((weather, 5), "5"),
        ((weather, "a", 5), "description"),
        ((weather, "a", "b", []), "parameters must be a dict"),
        ((weather, "a", "b", {}), '"type": "object"'),
        ((weather, "a", "b", {"type": "string"}), '"type": "object"'),
        ((weather, "a", "b", {"type": "object", "properties": []}), "properties"),
        ((weather, "a", "b", {"type": "object", "required": "city"}), "required"),
        ((weather, "a", "b", {"type": "object", "x": {1, 2}}), "not a JSON schema"),
        ((weather, "a", "b", {"type": "object", "x": float("nan")}), "not a JSON schema"),
        ((min, "min"), "signature"),
    ],
)
def test_what_makes_no_tool_is_refused_by_name(arguments, named):
    with pytest.raises(InvalidConfig, match=named):
        Tool(*arguments)


def test_names_of_up_to_64_characters_are_taken():
    assert Tool(weather, name="x" * 64).name == "x" * 64


# -- arguments --------------------------------------------------------------------------------------------


def test_a_tool_gets_its_arguments_by_name_and_its_context():
    assert Tool(weather).call('{"days": 5, "city": "Zürich ☂"}', CONTEXT) == "Zürich ☂ 5 C for alice"


@pytest.mark.parametrize("text", ["", "  \n", "{}", " {} "])
def test_no_arguments_are_an_empty_object(text):
    assert call(lambda: "called", text) == "called"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ('{"city": "Rome",}', "not JSON"),
        ("{'city': 'Rome'}", "not JSON"),
        ('{"city": NaN}', "NaN is not JSON"),
        ('{"city": -Infinity}', "-Infinity is not JSON"),
        ('{"city": 1e999}', "too large"),
        ('{"city": "Rome"} {}', "not JSON"),
        ('{"city": "a\nb"}', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "must be a JSON object"),
        ('"Rome"', "must be a JSON object"),
        ("null", "must be a JSON object"),
        ("{}", "argument 'city' is missing"),
        ('{"city": 5}', "argument 'city' must be text, not 5"),
        ('{"city": null}', "argument 'city' must be text, not null"),
        ('{"city": ["Rome"]}', "argument 'city' must be text, not a list"),
        ('{"city": {"name": "Rome"}}', "argument 'city' must be text, not an object"),
        ('{"city": "Rome", "days": "5"}', "argument 'days' must be an integer, not \"5\""),
        ('{"city": "Rome", "days": 5.0}', "argument 'days' must be an integer, not 5.0"),
        ('{"city": "Rome", "days": true}', "argument 'days' must be an integer, not true"),
        ('{"city": "Rome", "unit": "K"}', 'argument \'unit\' must be one of "C", "F", not "K"'),
        ('{"city": "Rome", "town": 1}', "argument 'town' is unknown (known: 'city', 'days', 'unit')"),
        ('{"city": "Rome", "call": {}}', "'call'"),
        ('{"town": 1, "days": "x"}', "missing; argument 'town' is unknown"),
    ],
)
def test_bad_arguments_are_refused_in_words_a_model_can_act_on(text, said):
    with pytest.raises(BadArguments) as caught:
        Tool(weather).call(text, CONTEXT)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        (float, "1", "a number"),
        (float, True, "a number, not true"),
        (bool, 1, "true or false, not 1"),
        (bool, 0, "true or false, not 0"),
        (None, 0, "null"),
        (list[int], [1, "2"], "'value'[1] must be an integer"),
        (list[list[int]], [[1], [2, None]], "'value'[1][1] must be an integer, not null"),
        (tuple[int, str], [1], "2 items, not 1"),
        (tuple[int, str], ["a", 1], "'value'[0] must be an integer"),
        (dict[str, int], {"a": "b"}, "'value'.a must be an integer"),
        (Literal[1], True, "one of 1, not true"),
        (Colour, "green", 'one of "red", "blue"'),
        (int | None, "a", 'must be an integer or null, not "a"'),
        (int | list[int], ["a"], "'value'[0] must be an integer"),
        (int | str, [], "an integer or text, not a list"),
        (Point, {"y": 1}, "'value'.x is missing"),
        (Point, {"x": 1, "z": 2}, "'value'.z is unknown (known: 'x', 'y', 'label')"),
        (Line, {"start": {"x": "1"}}, "'value'.start.x must be an integer"),
        (Address, {"street": "a", "number": "b"}, "'value'.number must be an integer"),
        (str, "x" * 100, None),
        (int, "x" * 100, f'the text "{"x" * 40}..."'),
    ],
)
def test_nested_values_are_checked_at_their_place(annotation, value, said):
    if said is None:
        assert loaded(annotation, value) == value
        return
    with pytest.raises(BadArguments) as caught:
        loaded(annotation, value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "value", "got"),
    [
        (float, 3, 3),
        (Any, {"a": [1, None]}, {"a": [1, None]}),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple[int, ...], [1, 2], (1, 2)),
        (set[str], ["a", "b", "a"], {"a", "b"}),
        (list[Colour], ["red"], [Colour.RED]),
        (dict[str, Level], {"a": 2}, {"a": Level.HIGH}),
        (Colour | None, None, None),
        (Colour | None, "blue", Colour.BLUE),
        (Point, {"x": 1, "label": "a"}, Point(1, label="a")),
        (list[Line], [{"start": {"x": 1}, "ends": [{"x": 2, "y": 3}]}], [Line(Point(1), [Point(2, 3)])]),
        (Address, {"street": "a"}, {"street": "a"}),
        (Literal["a", None], None, None),
        (Celsius, 2.5, 2.5),
    ],
)
def test_a_function_gets_values_of_its_own_types(annotation, value, got):
    result = loaded(annotation, value)
    assert result == got
    assert type(result) is type(got)


def test_a_class_that_refuses_its_values_is_a_bad_argument():
    @frozen
    class Even:
        number: int = attrs.field()

        @number.validator
        def _check(self, _attribute, value):
            if value % 2:
                raise ValueError(f"{value} is odd")

    with pytest.raises(BadArguments, match="'value' is not acceptable: ValueError: 3 is odd"):
        loaded(Even, {"number": 3})


def test_text_that_cannot_be_stored_is_mended_in_arguments():
    assert call(lambda a: a, '{"a": "\\ud800x\\u0000\\ud83d\\ude00"}') == "\ufffdx\ufffd😀"
    assert call(lambda a: a, '{"a": "\udc00"}') == "\ufffd"
    assert call(lambda a: a, r'{"a": [{"\udfff": "\uDFFF"}]}') == '[{"\ufffd": "\ufffd"}]'


GIVEN = {
    "type": "object",
    "properties": {"city": {"type": ["string", "null"], "minLength": 3}, "free": True, "never": False},
    "required": ["city"],
    "$comment": "kept",
}


def test_given_parameters_are_used_as_they_are():
    seen = []
    tool = Tool(lambda **values: seen.append(values), "it", "Does it.", GIVEN)
    assert tool.schema["function"]["parameters"] == GIVEN
    tool.call('{"city": null, "free": [1], "more": 2}', CONTEXT)
    assert seen == [{"city": None, "free": [1], "more": 2}]
    for text, said in (
        ("{}", "missing"),
        ('{"city": 1}', "text or null"),
        ('{"city": "a", "never": 1}', "never"),
    ):
        with pytest.raises(BadArguments, match=said):
            tool.call(text, CONTEXT)


def test_given_parameters_refuse_unknown_arguments_that_the_function_does_not_take():
    with pytest.raises(BadArguments, match="unknown"):
        call(lambda city: city, {"city": "Rome", "town": 1}, parameters=GIVEN)
    open_ended = {**GIVEN, "additionalProperties": {"type": "integer"}}
    with pytest.raises(BadArguments, match="'town' must be an integer"):
        call(lambda **values: values, {"city": "Rome", "town": "x"}, parameters=open_ended)


def test_given_parameters_do_not_change_with_the_callers_dict():
    parameters = {"type": "object", "properties": {}}
    tool = Tool(lambda **_values: 1, "it", parameters=parameters)
    parameters["properties"]["x"] = False
    assert tool.parameters == {"type": "object", "properties": {}}


def test_given_parameters_leave_values_as_json_and_pass_the_context():
    def function(colour: Colour, call: ToolContext) -> str:
        return f"{colour!r} {call.agent}"

    parameters = {"type": "object", "properties": {"colour": {"enum": ["red"]}}}
    assert call(function, {"colour": "red"}, parameters=parameters) == "'red' crab"


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.lists(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))),
    )
)
def test_any_json_object_reaches_a_function_that_takes_anything(values):
    seen = []
    Tool(lambda **given: seen.append(given), "it").call(json.dumps(values), CONTEXT)
    assert seen == [values]


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_gives_an_outcome(text):
    outcome = dispatch(ToolRegistry([weather]), "weather", text, CONTEXT)
    assert outcome.is_error
    assert outcome.output.startswith("error: ")


# -- results ----------------------------------------------------------------------------------------------


class Name(str):
    __slots__ = ()

    def __str__(self):
        return "wrong"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("text", "text"),
        ("", ""),
        (None, ""),
        (Name("name"), "name"),
        (5, "5"),
        (True, "true"),
        (0.5, "0.5"),
        ([], "[]"),
        ((1, "é"), '[1, "é"]'),
        ({"a": {"ü": None}}, '{"a": {"ü": null}}'),
        ({1: 2}, '{"1": 2}'),
    ],
)
def test_a_result_is_text(result, text):
    output = call(lambda: result)
    assert output == text
    assert type(output) is str


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "result",
    [float("nan"), [float("inf")], b"bytes", {1, 2}, object(), {(1, 2): 3}, CIRCLE, Colour.RED, iter([1])],
    ids=lambda result: type(result).__name__,
)
def test_a_result_that_json_cannot_hold_is_an_error(result):
    with pytest.raises(BadResult, match="JSON cannot hold"):
        call(lambda: result)
    outcome = dispatch(ToolRegistry([Tool(lambda: result, "it")]), "it", "", CONTEXT)
    assert outcome.is_error
    assert outcome.output.startswith("error: the tool ran, but returned something")


def test_output_is_mended_and_cut():
    registry = ToolRegistry([Tool(lambda: "a\x00\ud800" + "b" * 100, "it")])
    assert dispatch(registry, "it", "", CONTEXT).output == "a\ufffd\ufffd" + "b" * 100
    cut = dispatch(registry, "it", "", CONTEXT, most=10)
    assert cut == ToolOutcome("a\ufffd\ufffdbbbbbbb\n[... 93 characters left out]", is_error=False)
    bad = dispatch(registry, "it", '{"x\ud800": 1}', CONTEXT, most=12)
    assert bad.is_error
    assert bad.output.startswith("error: it wa\n[...")


# -- dispatch ---------------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no")


class OwnBase(BaseException):
    pass


KINDS = [
    (ValueError("bad value"), "error: ValueError: bad value"),
    (KeyError("key"), "error: KeyError: 'key'"),
    (RuntimeError(), "error: RuntimeError"),
    (TypeError("f() got an unexpected argument"), "error: TypeError: f() got an unexpected argument"),
    (StopIteration(), "error: StopIteration"),
    (RecursionError("deep"), "error: RecursionError: deep"),
    (MemoryError(), "error: MemoryError"),
    (AssertionError("\ud800"), "error: AssertionError: \ufffd"),
    (ExceptionGroup("many", [ValueError()]), "error: ExceptionGroup: many (1 sub-exception)"),
    (Unprintable(), "error: Unprintable: (its message cannot be read)"),
    (gevent.Timeout(5), "error: Timeout: 5 seconds"),
    (SystemExit(3), "error: SystemExit: 3"),
    (KeyboardInterrupt(), "error: KeyboardInterrupt"),
    (GeneratorExit(), "error: GeneratorExit"),
    (BaseExceptionGroup("some", [OwnBase()]), "error: BaseExceptionGroup: some (1 sub-exception)"),
    (OwnBase("own"), "error: OwnBase: own"),
]


@pytest.mark.parametrize(("error", "text"), KINDS, ids=[type(error).__name__ for error, _ in KINDS])
def test_every_kind_of_exception_becomes_an_error_the_model_can_read(error, text, caplog):
    def fails():
        raise error

    with caplog.at_level(logging.INFO, "palaver.tools"):
        outcome = dispatch(ToolRegistry([fails]), "fails", "{}", CONTEXT)
    assert outcome == ToolOutcome(text, is_error=True)
    (record,) = caplog.records
    assert record.exc_info[1] is error
    assert record.levelno == logging.WARNING
    for word in ("fails", "crab", "alice", "7"):
        assert word in record.getMessage()


def test_trap_1_a_kill_passes_through_a_tool():
    started, cleaned = Event(), []

    def waits():
        started.set()
        try:
            Event().wait()
        finally:
            cleaned.append(True)

    greenlet = gevent.spawn(dispatch, ToolRegistry([waits]), "waits", "", CONTEXT)
    started.wait(5)
    greenlet.kill()
    assert cleaned == [True]
    assert isinstance(greenlet.value, gevent.GreenletExit)


def test_bad_arguments_and_unknown_tools_become_errors():
    registry = ToolRegistry([weather, Tool(lambda: 1, "one")])
    assert dispatch(registry, "nope", "{}", CONTEXT) == ToolOutcome(
        "error: there is no tool 'nope'; the tools are: 'weather', 'one'", is_error=True
    )
    assert dispatch(registry, "weather", "{}", CONTEXT) == ToolOutcome(
        "error: weather was not called: argument 'city' is missing", is_error=True
    )
    assert dispatch(ToolRegistry(), "x", "{}", CONTEXT).output.endswith("the tools are: none")


def test_a_tool_that_the_agent_may_not_call_does_not_exist_for_it():
    registry = ToolRegistry([weather, Tool(lambda: 1, "one")])
    refused = dispatch(registry, "weather", '{"city": "x"}', CONTEXT, allowed=lambda name: name == "one")
    assert refused == ToolOutcome("error: there is no tool 'weather'; the tools are: 'one'", is_error=True)
    assert dispatch(registry, "one", "", CONTEXT, allowed=lambda name: name == "one") == ToolOutcome("1")


def test_tools_that_block_run_side_by_side():
    both, met = Event(), []

    def first() -> str:
        met.append("first")
        both.wait(5)
        return "first"

    def second() -> str:
        met.append("second")
        both.set()
        return "second"

    registry = ToolRegistry([first, second])
    greenlets = [gevent.spawn(dispatch, registry, name, "", CONTEXT) for name in ("first", "second")]
    assert [greenlet.get(timeout=5).output for greenlet in greenlets] == ["first", "second"]
    assert met == ["first", "second"]


# -- the registry -----------------------------------------------------------------------------------------


def test_a_registry_keeps_tools_by_name_in_order():
    one = Tool(lambda: 1, "one")
    registry = ToolRegistry([one])
    added = registry.add(weather)
    assert registry.names == ("one", "weather")
    assert registry.get("one") is one
    assert registry.get("weather") is added
    assert registry.get("two") is None
    assert registry.schemas() == [one.schema, added.schema]
    assert registry.schemas(("weather", "one")) == [one.schema, added.schema]
    assert registry.schemas(("weather",)) == [added.schema]
    assert registry.schemas(()) == []


def test_schemas_are_made_once_and_anew_when_a_tool_comes():
    registry = ToolRegistry([weather])
    before = registry.schemas()
    assert registry.schemas() is before
    registry.add(Tool(lambda: 1, "one"))
    assert len(registry.schemas()) == 2
    assert len(before) == 1


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(InvalidConfig, match="'weather'"):
        ToolRegistry([weather, Tool(lambda: 1, "weather")])


def test_unknown_names_are_refused_with_the_known_ones():
    registry = ToolRegistry([weather, Tool(lambda: 1, "one")])
    registry.check(None)
    registry.check(("one", "weather"))
    for ask in (registry.check, registry.schemas):
        with pytest.raises(InvalidConfig, match=r"'two'.*'weather', 'one'"):
            ask(("one", "two"))


def test_what_is_no_tool_does_not_enter_a_registry():
    with pytest.raises(InvalidConfig, match="callable"):
        ToolRegistry(["weather"])
