"""Numbers in the files that stages leave: records that agree with conditions, and one number made of their values.

A file is ``results.json`` (its list ``metrics``), another JSON list or object, JSON lines, or a CSV. A value is named
by a dotted path, as ``losses.-1``. Conditions compare text or numbers; a list is one of several; ``<=0.5``, ``>=0.5``
and ``>=0.4 <=0.6`` bound a number.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
REDUCTIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "last": lambda values: values[-1],
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
    "count": len,
}
BY_KEY = ("lowest", "highest", "rank_correlation")  # as "lowest objective": of the record where that is lowest
REDUCED = ("only", *REDUCTIONS, *(f"{name} KEY" for name in BY_KEY))


def read_records(path: Path) -> list[Record]:
    """All records of a file.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: the command that writes it did not run, or wrote it elsewhere")
    try:
        if path.suffix == ".csv":
            with path.open(newline="") as file:
                return list(csv.DictReader(file))
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): run its command again") from error
    if isinstance(content, dict) and isinstance(content.get("metrics"), list):
        return content["metrics"]
    return content if isinstance(content, list) else [content]


def at(record: Any, key: str) -> Any:
    """The value at a dotted path; None where the record has no such place."""
    found = record
    for part in key.split("."):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.lstrip("-").isdigit() and -len(found) <= int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def matching(records: Sequence[Record], where: Mapping[str, Any]) -> list[Record]:
    """Those that agree with every condition."""
    return [record for record in records if all(_agrees(at(record, key), wanted) for key, wanted in where.items())]


def reduced(records: Sequence[Record], value: str, reduce: str, *, whence: str) -> float:
    """One number of the records' values.

    Raises:
        ValueError: no record, a value that is no number, or several where ``only`` one is asked for; it names
            ``whence``.
    """
    name, _, key = reduce.partition(" ")
    numbers = [_number(at(record, value), f"{whence}: {value}") for record in records]
    if not numbers:
        raise ValueError(f"{whence}: nothing agrees with the conditions")
    if name == "only":
        if len(set(numbers)) > 1:
            raise ValueError(f"{whence}: {len(numbers)} records agree with the conditions, where one was expected")
        return numbers[0]
    if name in REDUCTIONS:
        return float(REDUCTIONS[name](numbers))
    by = [_number(at(record, key), f"{whence}: {key}") for record in records]
    if name == "rank_correlation":
        return _rank_correlation(numbers, by)
    place = by.index(min(by) if name == "lowest" else max(by))
    return numbers[place]


def is_reduction(reduce: str) -> bool:
    """Whether ``reduced`` knows it."""
    name, _, key = reduce.partition(" ")
    return (name in BY_KEY and bool(key)) or (not key and (name == "only" or name in REDUCTIONS))


def is_number(text: str) -> bool:
    """Whether a text is one, as "1"."""
    return _as_number(text) is not None


def _rank_correlation(numbers: Sequence[float], others: Sequence[float]) -> float:
    """Spearman's; 0 where all of one side are equal."""
    from scipy.stats import spearmanr

    if len(numbers) < 2 or len(set(numbers)) == 1 or len(set(others)) == 1:
        return 0.0
    return float(spearmanr(numbers, others).statistic)


def _agrees(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple):
        return any(_agrees(value, each) for each in wanted)
    if isinstance(wanted, str) and wanted[:2] in ("<=", ">="):
        number = _as_number(value)
        return number is not None and all(_is_within(number, bound) for bound in wanted.split())
    mine, theirs = _as_number(value), _as_number(wanted)
    if mine is not None and theirs is not None:
        return math.isclose(mine, theirs, rel_tol=1e-9, abs_tol=1e-12)
    if wanted is None or value is None:
        return value is wanted
    return str(value).lower() == str(wanted).lower()


def _is_within(number: float, bound: str) -> bool:
    limit = float(bound[2:])
    return number <= limit + 1e-9 if bound.startswith("<=") else number >= limit - 1e-9


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _number(value: Any, whence: str) -> float:
    number = _as_number(value)
    if number is None or not math.isfinite(number):
        raise ValueError(f"{whence} is {value}, which is no finite number")
    return number
