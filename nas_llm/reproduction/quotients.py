"""Numbers of a table that are computed of its other numbers: speed-ups, parts of a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nas_llm.reproduction.records import is_number
from nas_llm.reproduction.spec import Quotient, Reproduction, Row, Scale


def quotients(
    spec: Reproduction,
    scale: Scale,
    rows: Sequence[Row],
    seed: int,
    values: Mapping[tuple[str, str, int], float],
) -> dict[tuple[str, str, int], float]:
    """The numbers that are computed of others, of which both are known."""
    found: dict[tuple[str, str, int], float] = {}
    for column in spec.all_columns:  # in their order, so that one may be of one before it
        for row in rows:
            source = spec.source(row, column, scale)
            if not isinstance(source, Quotient):
                continue
            known = {**values, **found}
            of, over = (_side(spec.text(side, row, scale), row, seed, known) for side in (source.of, source.over))
            if of is not None and over:
                found[row.name, column.name, seed] = source.factor * of / over
    return found


def _side(text: str, row: Row, seed: int, known: Mapping[tuple[str, str, int], float]) -> float | None:
    """The number that a side of a quotient names: a column's, of this row or another, or the one that is written."""
    column, _, whose = text.partition("@")
    return float(text) if is_number(text) else known.get((whose or row.name, column, seed))
