"""What benchmarks find: rows of a table that are metrics of a run too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Row(Protocol):
    """One measured thing."""

    def cells(self) -> Mapping[str, str]:
        """Head of a column -> what stands in it; rows of one table have the same columns."""

    def metrics(self) -> list[dict[str, Any]]:
        """As `results.json` holds them: name, value, unit, ..."""


@dataclass(frozen=True)
class Figure:
    """One measured ratio; ``limit`` is the largest allowed, ``details`` what it is made of."""

    name: str
    value: float
    limit: float
    details: str

    @property
    def holds(self) -> bool:
        return self.value <= self.limit

    def cells(self) -> Mapping[str, str]:
        details = self.details if self.holds else f"OVER THE LIMIT; {self.details}"
        return {"figure": self.name, "measured": f"{self.value:.3f}", "limit": f"{self.limit:.2f}", "": details}

    def metrics(self) -> list[dict[str, Any]]:
        return [
            {"name": self.name, "value": self.value, "unit": "1", "limit": self.limit, "details": self.details},
        ]


def table(rows: Sequence[Row]) -> str:
    """Columns of text to the left, of numbers to the right."""
    cells = [dict(row.cells()) for row in rows]
    columns = []
    for head in cells[0]:
        column = [head, *(row[head] for row in cells)]
        width = max(map(len, column))
        number = all(text[:1].isdigit() or text == "-" for text in column[1:])
        columns.append([text.rjust(width) if number else text.ljust(width) for text in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))
