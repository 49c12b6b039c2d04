"""JSON schemas of Python types, and how a value that fits one becomes a value of the type."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
from attrs import frozen

from actors.errors import InvalidConfig
from actors.schema_check import Schema, is_kind, problem

_SIMPLE: dict[Any, Schema] = {
    Any: {},
    object: {},
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    type(None): {"type": "null"},
}
_ARRAYS = (list, tuple, set, frozenset, abc.Sequence, abc.MutableSequence, abc.Collection, abc.Iterable)
_OBJECTS = (dict, abc.Mapping, abc.MutableMapping)


def _as_it_is(value: Any) -> Any:
    return value


@frozen
class Shape:
    """A type as a model sees it, and how its JSON becomes a value of that type.

    `load` is only given what passes `problem(value, schema)`; it may raise what a class's own
    constructor raises.
    """

    schema: Schema
    load: Callable[[Any], Any] = _as_it_is


def shape_of(annotation: Any, where: str, outer: tuple[Any, ...] = ()) -> Shape:
    """The shape of a type: JSON's own types, their containers, Literal, Enum, unions, attrs classes,
    dataclasses and TypedDicts.

    Args:
        annotation: a type, with its names resolved.
        where: the words for its place in an error.
        outer: the classes that this one is inside of.

    Raises:
        InvalidConfig: the type has no JSON form, or contains itself.
    """
    if (simple := _lookup(_SIMPLE, annotation)) is not None:
        return Shape(dict(simple))
    if type(annotation).__name__ == "TypeAliasType":  # typing has it from Python 3.12 on
        return shape_of(annotation.__value__, where, outer)
    origin, args = get_origin(annotation), get_args(annotation)
    kind = origin or annotation
    if origin is Literal:
        return Shape(_choice(args, where))
    if origin in (Union, types.UnionType):
        return union_of([shape_of(arg, where, outer) for arg in args])
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        return _annotated(shape_of(args[0], where, outer), args[1:])
    if kind in _ARRAYS:
        return _array(kind, args, where, outer)
    if kind in _OBJECTS:
        return _mapping(args, where, outer)
    if isinstance(annotation, TypeVar):
        return shape_of(annotation.__bound__ or Any, where, outer)
    if isinstance(annotation, typing.NewType):
        return shape_of(annotation.__supertype__, where, outer)
    if isinstance(annotation, type):
        return _class(annotation, where, outer)
    raise _no_form(annotation, where)


def _lookup(table: Mapping[Any, Schema], annotation: Any) -> Schema | None:
    try:
        return table.get(annotation)
    except TypeError:  # an annotation that cannot be hashed is in no table
        return None


def _no_form(annotation: Any, where: str) -> InvalidConfig:
    name = getattr(annotation, "__name__", None) or repr(annotation)
    return InvalidConfig(
        f"{where} has the type {name}, which JSON has no form for; annotate it with str, int, float, bool, "
        "list, dict or a class of such fields, or give parameters="
    )


def _choice(values: Sequence[Any], where: str) -> Schema:
    plain = [value.value if isinstance(value, enum.Enum) else value for value in values]
    kinds = [kind for kind in ("string", "boolean", "integer", "number", "null") if _all(plain, kind)]
    if not all(value is None or isinstance(value, str | int | float) for value in plain):
        raise InvalidConfig(f"{where} has a choice that JSON has no form for; give text or numbers")
    return {"type": kinds[0], "enum": plain} if kinds else {"enum": plain}


def _all(values: Sequence[Any], kind: str) -> bool:
    return all(is_kind(value, kind) for value in values)


def union_of(shapes: Sequence[Shape]) -> Shape:
    """The shape of a value that may have any of these; it is loaded by the first that it fits."""

    def load(value: Any) -> Any:
        for shape in shapes:
            if problem(value, shape.schema, "") is None:
                return shape.load(value)
        return value

    return Shape({"anyOf": [shape.schema for shape in shapes]}, load)


def _annotated(shape: Shape, notes: Sequence[Any]) -> Shape:
    words = next((note for note in notes if isinstance(note, str)), None)
    return shape if words is None else Shape({**shape.schema, "description": words}, shape.load)


def _array(kind: Any, args: Sequence[Any], where: str, outer: tuple[Any, ...]) -> Shape:
    make = kind if kind in (tuple, set, frozenset) else list
    if kind is tuple and args and args[-1] is not Ellipsis:
        places = [shape_of(arg, where, outer) for arg in args]
        return Shape(_places(places), lambda value: _load_places(places, value))
    item = shape_of(args[0] if args else Any, where, outer)
    schema = {"type": "array", "items": item.schema}
    return Shape(schema, lambda value: make(item.load(v) for v in value))


def _places(places: Sequence[Shape]) -> Schema:
    """The schema of a tuple; some endpoints refuse an array without `items`, whatever else it says."""
    schemas = [place.schema for place in places]
    distinct = [schema for number, schema in enumerate(schemas) if schema not in schemas[:number]]
    items = distinct[0] if len(distinct) == 1 else {"anyOf": distinct} if distinct else {}
    count = {"minItems": len(places), "maxItems": len(places)}
    return {"type": "array", "prefixItems": schemas, "items": items, **count}


def _load_places(places: Sequence[Shape], values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(place.load(value) for place, value in zip(places, values, strict=True))


def _mapping(args: Sequence[Any], where: str, outer: tuple[Any, ...]) -> Shape:
    if not args:
        return Shape({"type": "object"})
    if args[0] not in (str, Any):
        raise InvalidConfig(f"{where} is a dict whose keys are not str; JSON has no other keys")
    item = shape_of(args[1], where, outer)
    schema = {"type": "object", "additionalProperties": item.schema or True}
    return Shape(schema, lambda value: {key: item.load(v) for key, v in value.items()})


def _class(cls: type, where: str, outer: tuple[Any, ...]) -> Shape:
    if cls in outer:
        raise InvalidConfig(f"{where} has the type {cls.__name__}, which contains itself; give parameters=")
    if issubclass(cls, enum.Enum):
        return Shape(_choice(list(cls), where), cls)
    if typing.is_typeddict(cls):
        required: Any = getattr(cls, "__required_keys__", ())
        hints = _field_hints(cls)
        optional = [name for name, hint in hints.items() if get_origin(hint) is typing.NotRequired]
        names = {name: (name, name in required and name not in optional) for name in cls.__annotations__}
        return _record(cls, dict, names, where, outer)
    if attrs.has(cls):
        names = {f.name: (f.alias, f.default is attrs.NOTHING) for f in attrs.fields(cls) if f.init}
        return _record(cls, cls, names, where, outer)
    if dataclasses.is_dataclass(cls):
        missing = dataclasses.MISSING
        names = {
            f.name: (f.name, f.default is missing and f.default_factory is missing)
            for f in dataclasses.fields(cls)
            if f.init
        }
        return _record(cls, cls, names, where, outer)
    raise _no_form(cls, where)


def _record(
    cls: type,
    make: Callable[..., Any],
    names: Mapping[str, tuple[str, bool]],
    where: str,
    outer: tuple[Any, ...],
) -> Shape:
    """The shape of a class with fields; `names` maps each to its argument and whether it is required."""
    hints = _field_hints(cls)
    shapes = {
        argument: shape_of(hints.get(name, Any), f"{where}.{name}", (*outer, cls))
        for name, (argument, _) in names.items()
    }
    schema: Schema = {
        "type": "object",
        "properties": {argument: shape.schema for argument, shape in shapes.items()},
        "additionalProperties": False,
    }
    if required := [argument for argument, needed in names.values() if needed]:
        schema["required"] = required
    return Shape(schema, lambda value: make(**{key: shapes[key].load(v) for key, v in value.items()}))


def _field_hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except NameError:  # a name that exists only where the class was written: take anything
        return {}
