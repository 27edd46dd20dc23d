"""Check a row that was read against the types of :mod:`sstune.row`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import NoneType
from typing import Annotated, Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

from sstune.row import Row

_LARGEST = 2**53  # exact as a float


def misfit(value: Any, kind: Any = Row, key: str = "") -> str | None:
    """The first type error in a row or in its part ``key``, as ``key: expected ...``; None if there is none.

    Keys that are not required may be null; unknown keys are ignored.
    """
    if kind in (str, int, float, bool):
        return None if _is_scalar(value, [kind]) else _expected(key, _names([kind]), value)
    if is_typeddict(kind):
        return _misfit_of_keys(value, kind, key)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (list, dict):
        return _misfit_of_entries(value, origin, arguments[-1], key)
    if origin is Annotated:
        length, (inner,) = kind.__metadata__[0], get_args(kind.__origin__)
        named = f"list of {length} {_names([inner])}"
        return None if _is_list_of(value, inner, length) else _expected(key, named, value)
    if kind is Any or (value is None and NoneType in arguments):
        return None
    if is_typeddict(arguments[0]):
        return misfit(value, arguments[0], key)
    return None if _is_scalar(value, arguments) else _expected(key, _names(arguments), value)


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


def _misfit_of_entries(value: Any, container: type[list] | type[dict], kind: Any, key: str) -> str | None:
    """The first type error in a list, or in the values of a dictionary."""
    if not isinstance(value, container):
        return _expected(key, container.__name__, value)
    entries = value.values() if isinstance(value, dict) else value
    return next((problem for each in entries if (problem := misfit(each, kind, key))), None)


def _is_list_of(value: Any, kind: Any, length: int) -> bool:
    return (
        isinstance(value, list) and len(value) == length and all(_is_scalar(each, [kind]) for each in value)
    )


def _is_scalar(value: Any, kinds: Sequence[Any]) -> bool:
    """Whether ``value`` is of one of ``kinds``; a whole number passes for a float, a bool only for a bool."""
    if type(value) not in kinds and not (type(value) is int and float in kinds):
        return False
    return not isinstance(value, int | float) or abs(value) <= _LARGEST


def _names(kinds: Sequence[Any]) -> str:
    names = {NoneType: "null", float: "int or float"}
    return " or ".join(names.get(kind, kind.__name__) for kind in kinds)


def _expected(key: str, kind: str, value: Any) -> str:
    found = repr(value)
    return f"{key}: expected {kind}, found {found if len(found) < 60 else found[:60] + '…'}"
