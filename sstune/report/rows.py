"""Read rows from run directories or ``rows.jsonl``, check them, and write ``rows.jsonl``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

from sstune.identity import SCHEMA_VERSION
from sstune.packing import unpack, unpack_values
from sstune.quantities import parse_eps
from sstune.report.shape import misfit
from sstune.row import Measurement, Row, metric_of, value_of
from sstune.schema import Norm, RequestError
from sstune.storage import StorageError, explained, write_text

_ANCESTORS = ({"command", "config"}, {"file", "sha256"})
_NEEDED = ("split", "attack", "gradient", "eps", "n")
# tolerance of equal values: rounding of a float32 mean of float32 values
TOLERANCE = 1e-4


def read_rows(paths: Iterable[str | Path]) -> list[Row]:
    """All rows under ``paths``, each run once, in an order independent of ``paths``.

    A path is a run directory, a directory searched recursively for ``result.json``, a ``result.json`` itself,
    or a ``rows.jsonl`` with one row a line.

    Raises:
        RequestError: a file is not a row of this schema version, a run has two results, or a path has none.
        StorageError: a file or directory cannot be read.
    """
    places = [Path(path).expanduser() for path in paths]
    rows: list[Row] = []
    for place in places:
        found = [row for source in _sources(place) for row in _read(source)]
        if not found:
            raise RequestError(f"{place}: no result.json found (of a finished report, give its rows.jsonl)")
        rows += found
    return unique(rows)


def write_rows(rows: Iterable[Row], path: str | Path) -> None:
    """Write ``rows.jsonl``: one row per line, keys sorted, in the order of :func:`unique`."""
    write_text(Path(path), "".join(f"{_canonical(row)}\n" for row in unique(rows)))


def unique(rows: Iterable[Row]) -> list[Row]:
    """The rows without duplicates, sorted by backbone, dataset, rule, command, seed and identity.

    Raises:
        RequestError: two rows of one identity have different results.
    """
    kept: dict[str, Row] = {}
    for row in sorted(rows, key=_canonical):
        other = kept.setdefault(row["identity"], row)
        if _counts(other) != _counts(row):
            raise RequestError(
                f"run {row['identity'][:12]} appears twice with different counts; keep one of them"
            )
    return sorted(kept.values(), key=_order)


def norm_of(row: Row) -> Norm:
    """The norm in which a row attacked."""
    return Norm(row["config"].get("attack", {}).get("norm", Norm.Linf))


def eps_value(row: Row, eps: str) -> float:
    """An eps of the row as a number, in its norm.

    Raises:
        ValueError: the eps or the norm is invalid.
    """
    return parse_eps(eps, norm_of(row))


def _sources(path: Path) -> list[Path]:
    with explained("reading", path):
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise RequestError(
                f"{path}: does not exist (a run directory, a directory of runs, or a rows.jsonl)"
            )
        own = path / "result.json"
        return [own] if own.is_file() else sorted(_below(path))


def _below(directory: Path) -> Iterator[Path]:
    """Every path named ``result.json`` below a directory.

    Raises:
        StorageError: a directory cannot be read.
    """

    def fail(error: OSError) -> NoReturn:
        raise StorageError(error.errno, f"{error.filename}: cannot be read ({error.strerror})") from error

    for place, directories, files in os.walk(directory, onerror=fail):
        if "result.json" in (*directories, *files):
            yield Path(place, "result.json")


def _read(source: Path) -> Iterator[Row]:
    with explained("reading", source):
        if source.exists() and not source.is_file():
            raise RequestError(f"{source}: expected a file")
        try:
            text = source.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(f"{source}: cannot be read ({error})") from None
    many = source.suffix == ".jsonl"
    if many and not text.strip():
        raise RequestError(f"{source}: holds no row")
    for number, line in enumerate(text.split("\n") if many else [text], start=1):
        if many and not line.strip():
            continue
        where = f"{source}:{number}" if many else str(source)
        try:
            row = json.loads(line, parse_constant=lambda name: None)  # NaN is not JSON
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where}: expected one JSON row ({error})") from None
        problem = _problem(row)
        if problem:
            raise RequestError(f"{where}: {problem}")
        yield row


def _problem(found: Any) -> str | None:
    """Why ``found`` is not a valid row, or None."""
    if not isinstance(found, dict) or "schema_version" not in found:
        return "not a result row of sstune (no schema_version)"
    if found["schema_version"] != SCHEMA_VERSION:
        return f"schema_version is {found['schema_version']!r}, expected {SCHEMA_VERSION}"
    measured = found.get("measurements")
    for entry in measured if isinstance(measured, list) else []:
        if problem := _figure_problem(entry):
            return f"measurements: {problem}"
    if problem := misfit(found):
        return problem
    return _contradiction(cast(Row, found))


def _contradiction(row: Row) -> str | None:
    """The first contradiction in a row of valid types, or None."""
    if not row["n_classes"] > 0:
        return f"n_classes: expected > 0, found {row['n_classes']}"
    for ancestor in row["lineage"]:
        if not any(needed <= ancestor.keys() for needed in _ANCESTORS):
            return "lineage: expected a run's command and config or a file's name and sha256"
    for entry in row["measurements"]:
        try:
            _check(row, entry)
        except ValueError as error:
            return f"measurements: {error}"
    return None


def _figure_problem(entry: Any) -> str | None:
    """Why a measurement has no valid count or value, checked before the types of its other keys."""
    if not (isinstance(entry, dict) and set(_NEEDED) <= entry.keys() and {"correct", "value"} & entry.keys()):
        return f"expected each to hold {', '.join(_NEEDED)}, and correct or value"
    n, correct, value = entry["n"], entry.get("correct"), entry.get("value")
    if correct is not None or value is None:
        counted = type(n) is type(correct) is int and 0 <= correct <= n > 0
        return None if counted else f"{correct!r:.60} correct of {n!r:.60} are not valid counts"
    if not (type(n) is int and n > 0):
        return f"n: expected a number of samples, found {n!r:.60}"
    if not (type(value) in (int, float) and 0 <= value <= 1):
        return f"value: expected a number from 0 to 1, found {value!r:.60}"
    return None


def _check(row: Row, measurement: Measurement) -> None:
    """Check that the keys of a measurement are consistent.

    Raises:
        ValueError: they are not.
    """
    attack, eps, n = measurement["attack"] or "clean", measurement["eps"], measurement["n"]
    if (measurement["attack"] is None) != (eps is None):
        raise ValueError("an attack needs an eps, and a clean measurement has none")
    if eps is not None:
        eps_value(row, eps)
    outcomes, values = measurement.get("outcomes"), measurement.get("values")
    if outcomes and unpack(outcomes, n).sum() != measurement.get("correct"):
        raise ValueError(f"the outcomes of {attack} do not have {measurement.get('correct')} correct")
    value = value_of(measurement)
    if values and not math.isclose(unpack_values(values, n).mean(), value, abs_tol=TOLERANCE):
        raise ValueError(f"the mean of the values of {attack} is not {value}")
    low, high = measurement.get("interval") or (0.0, 1.0)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"the interval of {attack} is not in [0, 1]: {low} to {high}")


def _canonical(row: Row) -> str:
    return json.dumps(row, sort_keys=True, ensure_ascii=False)


def _counts(row: Row) -> list[str]:
    return sorted(
        json.dumps([*(measured.get(key) for key in _NEEDED), *result_of(measured)])
        for measured in row["measurements"]
    )


def result_of(measurement: Measurement) -> tuple[str, float]:
    """The metric of a measurement, and the number of correct samples or else the value."""
    correct = measurement.get("correct")
    return metric_of(measurement), value_of(measurement) if correct is None else correct


def _order(row: Row) -> tuple[str, str, str, str, int, str]:
    config = row["config"]
    labels = config["backbone"]["name"], config["dataset"]["label"], config["rule"]["name"]
    return *labels, row["command"], config["seed"], row["identity"]
