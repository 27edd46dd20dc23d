"""Whether a row that was read is of the types of :mod:`sstune.row`: rows of others are read as well."""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from sstune.row import Row

_LARGEST = 2**53  # fits an array, and is exact as a float


def misfit(value: Any, kind: Any = Row, key: str = "") -> str | None:
    """What in a row, or in its part ``key``, is not of its type, as ``key: expected ...``; None if nothing.

    Keys that are not required may also be null, and keys that the type does not have may hold anything.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        return _misfit_of_keys(value, kind, key)
    if origin is Annotated:
        length, (inner,) = kind.__metadata__[0], get_args(kind.__origin__)
        if _is_list_of(value, inner, length):
            return None
        return _expected(key, f"list of {length} {_names([inner])}", value)
    if origin is list:
        if not isinstance(value, list):
            return _expected(key, "list", value)
        return next((problem for each in value if (problem := misfit(each, arguments[0], key))), None)
    if kind is dict or origin is dict:
        if not isinstance(value, dict):
            return _expected(key, "dict", value)
        inner = arguments[1] if arguments else Any
        return next((problem for each in value.values() if (problem := misfit(each, inner, key))), None)
    if kind is Any:
        return None
    choices = arguments if origin in (Union, UnionType) else (kind,)
    others = [choice for choice in choices if choice is not NoneType]
    if len(choices) > len(others) and value is None:
        return None
    if is_typeddict(others[0]):
        return misfit(value, others[0], key)
    return None if _is_scalar(value, others) else _expected(key, _names(choices), value)


@cache
def _keys(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Type of each key of a TypedDict, and whether the key is required."""
    keys = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        # a class with postponed annotations does not see its own NotRequired
        marked = get_origin(hint) is NotRequired
        keys[name] = get_args(hint)[0] if marked else hint, not marked and name in kind.__required_keys__
    return keys


def _misfit_of_keys(value: Any, kind: Any, key: str) -> str | None:
    held = value if isinstance(value, dict) else {}
    for name, (inner, required) in _keys(kind).items():
        if not required and held.get(name) is None:
            continue
        if problem := misfit(held.get(name), inner, f"{key}.{name}".lstrip(".")):
            return problem
    return None if isinstance(value, dict) else _expected(key, "dict", value)


def _is_list_of(value: Any, kind: Any, length: int) -> bool:
    return (
        isinstance(value, list) and len(value) == length and all(_is_scalar(each, [kind]) for each in value)
    )


def _is_scalar(value: Any, kinds: list[Any]) -> bool:
    """Whether ``value`` is of one of ``kinds``; a whole number passes for a float, a bool only for a bool."""
    if type(value) not in kinds and not (type(value) is int and float in kinds):
        return False
    return not isinstance(value, int | float) or abs(value) <= _LARGEST


def _names(kinds: Any) -> str:
    names = {NoneType: "null", float: "int or float"}
    return " or ".join(names.get(kind, kind.__name__) for kind in kinds)


def _expected(key: str, kind: str, value: Any) -> str:
    found = repr(value)
    return f"{key}: expected {kind}, found {found if len(found) < 60 else found[:60] + '…'}"
