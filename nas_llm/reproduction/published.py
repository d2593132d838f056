"""Published numbers: a CSV file a table, with the columns row, column, value, unit, source, note.

A value that is damaged in the source is empty, and its note begins with "unreadable" or "doubtful".
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("row", "column", "value", "unit", "source", "note")
DAMAGED = ("unreadable", "doubtful")


@dataclass(frozen=True)
class Published:
    """One published number; ``value`` is None where the source is damaged, which ``note`` then says."""

    value: float | None
    unit: str
    source: str
    note: str


Table = Mapping[tuple[str, str], Published]
"""(row, column) -> what was published there."""


def published_dir() -> Path:
    """The folder of the papers' published rows: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def read_published(path: Path) -> Table:
    """The table of one file.

    Raises:
        ValueError: there is none, or a line is damaged.
    """
    if not path.is_file():
        raise ValueError(f"reproduce.published: {path} does not exist: name a table below {published_dir()}")
    found: dict[tuple[str, str], Published] = {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} has the columns {reader.fieldnames}: they must be {', '.join(COLUMNS)}")
        for number, line in enumerate(reader, start=2):
            key = (line["row"], line["column"])
            if key in found:
                raise ValueError(f"{path}, line {number}: {key[0]!r}, {key[1]!r} is there twice; leave one out")
            found[key] = Published(_value(line, path, number), line["unit"], line["source"], line["note"])
    return found


def _value(line: Mapping[str, str], path: Path, number: int) -> float | None:
    text, note = line["value"], line["note"]
    if text == "":
        if not note.startswith(DAMAGED):
            raise ValueError(
                f"{path}, line {number}: a value that is left out is damaged in the source: begin its note with "
                f"{' or '.join(DAMAGED)}"
            )
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: value={text} is not a number") from error
    if not math.isfinite(value):
        raise ValueError(f"{path}, line {number}: value={text} is not finite; leave it empty and say why in note")
    return value
