"""Whether a value from a configuration file fits a Python annotation, and how to say what would.

Only what YAML can hold is judged: numbers, strings, booleans, null, lists and mappings. A mapping with `_target_`
stands for an object to be built and fits everything, also what is annotated with a class of this package, which no
number and no text fits. An annotation that is another class is not judged.
"""

import collections.abc
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

SCALARS = (bool, int, float, str, type(None))
SEQUENCES = (
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
PATHS = ("Path", "PathLike", "PurePath")


def fits(value: Any, annotation: Any) -> bool:
    """Whether `value` (plain containers and scalars) may be passed where `annotation` is declared."""
    if annotation in (Any, object) or isinstance(annotation, str | typing.TypeVar) or _stands_for_object(value):
        return True
    origin = get_origin(annotation) or annotation
    arguments = get_args(annotation)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return _fits_union(value, arguments)
    if origin is typing.Annotated:
        return fits(value, arguments[0])
    if origin in SEQUENCES:
        return _fits_sequence(value, origin, arguments)
    if origin in MAPPINGS:
        return isinstance(value, dict) and (not arguments or all(fits(item, arguments[1]) for item in value.values()))
    return _fits_class(value, origin)


def describe(annotation: Any) -> str:
    """The values an annotation allows, in words."""
    origin = get_origin(annotation) or annotation
    arguments = get_args(annotation)
    if origin is Literal:
        return ", ".join(str(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words for argument in arguments for words in describe(argument).split(", ")))
    if origin in SEQUENCES:
        of = next((f" of {describe(argument)}" for argument in arguments if argument is not Ellipsis), "")
        return f"a list{of}"
    if origin in MAPPINGS:
        return "a mapping"
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        None: "null",
    }
    return words.get(origin) or str(getattr(origin, "__name__", origin))


def _fits_union(value: Any, arguments: tuple[Any, ...]) -> bool:
    judged = [argument for argument in arguments if _is_judged(argument)]
    if len(judged) < len(arguments) and not isinstance(value, SCALARS):
        return True
    return any(fits(value, argument) for argument in judged) or not any(
        argument is not type(None) for argument in judged
    )


def _fits_sequence(value: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if not arguments:
        return True
    if origin is tuple and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    return all(fits(item, arguments[0]) for item in value)


def _fits_class(value: Any, origin: Any) -> bool:
    if origin is None or origin is type(None):
        return value is None
    if origin is bool:
        return isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is str or _is_path(origin):
        return isinstance(value, str | Path)
    if isinstance(origin, type) and origin.__module__.startswith("nas_llm."):  # built of a node, never written out
        return not isinstance(value, SCALARS)
    return value is not None or not isinstance(origin, type)


def _is_judged(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    return origin in (Literal, Union, types.UnionType, *SCALARS, *SEQUENCES, *MAPPINGS) or _is_path(origin)


def _is_path(origin: Any) -> bool:
    return isinstance(origin, type) and origin.__name__ in PATHS


def _stands_for_object(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value
