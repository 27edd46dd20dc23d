"""Of what kind the values in a row are: others' rows are read, and what a table needs has to be there."""

from __future__ import annotations

from types import NoneType
from typing import Any

_NUMBER = (int, float)
_TEXT = (str, NoneType)
_LARGEST = 2**53  # in an array, and exact as a float
_CELL = {
    "split": str,
    "attack": _TEXT,
    "gradient": _TEXT,
    "eps": _TEXT,
    "n": int,
    "correct": int,
    "source?": _TEXT,
    "seconds?": _NUMBER,
    "outcomes?": _TEXT,
    "found?": [(int, int)],
}
# A mapping's keys with "?" may be absent; a list has one kind of values; [(int, int)]: pairs.
ROW: dict[str, Any] = {
    "identity": str,
    "command": str,
    "config": {
        "backbone": {"name": str},
        "dataset": {"label": str},
        "rule": {"name": str, "scale?": str},
        "seed": int,
        "task?": {},
        "attack?": {"eps?": [str], "norm?": str},
        "audit?": {},
    },
    "lineage": [{"config?": {"seed?": int}, "command?": str, "file?": str, "sha256?": str}],
    "n_classes": int,
    "measurements": [_CELL],
    "datasets?": {"test?": {"n?": int, "digest": str, "attacked?": str}},
    "alignment?": [
        {
            "layer": str,
            "angle": (*_NUMBER, NoneType),
            "sign_agreement": (*_NUMBER, NoneType),
            "rms_ratio": (*_NUMBER, NoneType),
            "update_cosine?": (*_NUMBER, NoneType),
        }
    ],
    "audit?": {
        "verdict": str,
        "because": [str],
        "not_run": {},
        "cells": [_CELL],
        "checks": [
            {
                "id": str,
                "title": str,
                "text": str,
                "figure": (*_NUMBER, NoneType),
                "unit": _TEXT,
                "threshold": str,
                "n": (int, NoneType),
                "status": str,
            }
        ],
    },
}


def misfit(value: Any, kind: Any = None, key: str = "") -> str | None:
    """What in a row (or its part ``key``) is not of its kind, as ``key: expected ...``; None if nothing is.

    An optional key (one with "?" in :data:`ROW`) may hold null instead.
    """
    kind = ROW if kind is None else kind
    if isinstance(kind, dict):
        held = value if isinstance(value, dict) else {}
        for name, inner in kind.items():
            plain = name.removesuffix("?")
            if name != plain and held.get(plain) is None:
                continue
            if problem := misfit(held.get(plain), inner, f"{key}.{plain}".lstrip(".")):
                return problem
        return None if isinstance(value, dict) else _expected(key, "dict", value)
    if isinstance(kind, list):
        if not isinstance(value, list):
            return _expected(key, "list", value)
        if kind == [(int, int)]:
            return next((_expected(key, "pairs of int", each) for each in value if not _is_pair(each)), None)
        return next((problem for each in value if (problem := misfit(each, kind[0], key))), None)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) in kinds and not (isinstance(value, int | float) and not abs(value) <= _LARGEST):
        return None
    return _expected(key, " or ".join("null" if each is NoneType else each.__name__ for each in kinds), value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(misfit(each, int) is None for each in value)


def _expected(key: str, kind: str, value: Any) -> str:
    found = repr(value)
    return f"{key}: expected {kind}, found {found if len(found) < 60 else found[:60] + '…'}"
