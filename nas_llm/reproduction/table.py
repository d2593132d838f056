"""The finished table: published, ours and the difference, as Markdown and as CSV.

Ours is the mean over the seeds with their standard deviation (n - 1; none for one seed).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from nas_llm.atomic_files import write_text
from nas_llm.reporting import numbers
from nas_llm.reporting.reproduction_plot import COLUMNS, CSV_FILE
from nas_llm.reporting.sweep import Spread
from nas_llm.reproduction.published import Published, Table
from nas_llm.reproduction.records import is_number
from nas_llm.reproduction.spec import Column, Quotient, Reproduction, Row, Scale, Source

MARKDOWN_FILE = "table.md"
DAMAGED, FAILED, NOTHING = "?", "failed", "-"
Values = Mapping[tuple[str, str], Sequence[float]]
"""(row, column) -> one number a seed that has one."""


@dataclass(frozen=True)
class Entry:
    """One cell: ``published`` and its damage, ours over the seeds, in its unit."""

    row: str
    series: str
    column: str
    unit: str
    published: float | None
    damage: str
    ours: Spread | None
    our_unit: str
    compared: bool
    error: str

    @property
    def difference(self) -> float | None:
        if self.published is None or self.ours is None or not self.compared:
            return None
        return self.ours.mean - self.published

    @property
    def said(self) -> tuple[str, str, str]:
        """Published, ours, difference, in words."""
        published = NOTHING if self.published is None else numbers.significant(self.published)
        if self.damage:
            published = DAMAGED
        ours = NOTHING if self.ours is None else str(self.ours)
        if self.ours is not None and self.our_unit != self.unit:
            ours += f" {self.our_unit}"
        if self.error:
            ours = f"{ours} ({FAILED})" if self.ours is not None else FAILED
        difference = self.difference
        return published, ours, NOTHING if difference is None else numbers.signed(difference)


def entries(
    spec: Reproduction, scale: Scale, rows: Sequence[Row], published: Table, values: Values, errors: Mapping[str, str]
) -> list[Entry]:
    """Row by row, all columns of the scale."""
    return [
        _entry(row, column, spec.source(row, column, scale), _published(spec, row, column, published), values, errors)
        for row in rows
        for column in spec.columns_at(scale)
    ]


def _entry(
    row: Row,
    column: Column,
    source: Source | None,
    published: tuple[float | None, str],
    values: Values,
    errors: Mapping[str, str],
) -> Entry:
    known, damage = published
    found = values.get((row.name, column.name), ())
    unit = column.unit if source is None or source.unit is None else source.unit
    return Entry(
        row=row.name,
        series=row.series or "",
        column=column.name,
        unit=column.unit,
        published=known,
        damage=damage,
        ours=Spread.of(found) if found else None,
        our_unit=unit,
        compared=source is not None and source.compared and unit == column.unit,
        error=errors.get(row.name, "") if source is not None else "",
    )


def _published(spec: Reproduction, row: Row, column: Column, published: Table) -> tuple[float | None, str]:
    """The mean, or the quotient, of the published columns that this one stands beside; None, and why, where one is
    damaged."""
    if row.published is None:
        return None, ""
    if isinstance(column.published, Quotient):
        sides = [_side(spec, text, row, published) for text in (column.published.of, column.published.over)]
        return _known(sides, lambda of, over: column.published.factor * of / over)  # type: ignore[union-attr]
    return _known([published.get((row.published, name)) for name in column.published], lambda *found: fmean(found))


def _side(spec: Reproduction, text: str, row: Row, published: Table) -> Published | None:
    of, _, whose = spec.text(text, row, "paper").partition("@")
    if is_number(of):
        return Published(float(of), "1", "", "")
    return published.get((whose or row.published or "", of))


def _known(places: Sequence[Published | None], made: Callable[..., float]) -> tuple[float | None, str]:
    found = [place for place in places if place is not None]
    if not found or len(found) < len(places):
        return None, ""
    damage = "; ".join(dict.fromkeys(place.note for place in found if place.value is None))
    return (None, damage) if damage else (made(*(place.value for place in found)), "")


def write_table(
    folder: Path, spec: Reproduction, found: Sequence[Entry], facts: Sequence[str], errors: Sequence[str]
) -> Path:
    """``table.md`` and ``table.csv``, which is returned; ``facts`` go below the title, ``errors`` to the end."""
    markdown, table = folder / MARKDOWN_FILE, folder / CSV_FILE
    write_text(table, _csv(found))
    write_text(markdown, _markdown(spec, found, facts, errors))
    return table


def _csv(found: Sequence[Entry]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in found:
        ours, difference = entry.ours, entry.difference
        writer.writerow(
            [
                entry.row,
                entry.series,
                entry.column,
                entry.unit,
                "" if entry.published is None else f"{entry.published:.10g}",
                entry.damage,
                "" if ours is None else f"{ours.mean:.10g}",
                "" if ours is None or ours.deviation is None else f"{ours.deviation:.10g}",
                0 if ours is None else ours.runs,
                entry.our_unit,
                "" if difference is None else f"{difference:.10g}",
                entry.error,
            ]
        )
    return text.getvalue()


def _markdown(spec: Reproduction, found: Sequence[Entry], facts: Sequence[str], errors: Sequence[str]) -> str:
    columns = list(dict.fromkeys((entry.column, entry.unit) for entry in found))
    has_published = {
        column for column, _ in columns if any(e.published is not None or e.damage for e in found if e.column == column)
    }
    has_difference = {entry.column for entry in found if entry.difference is not None}
    head = [""]
    for column, unit in columns:
        named = numbers.axis(column, unit)
        parts = (["published"] if column in has_published else []) + ["ours"]
        parts += ["difference"] if column in has_difference else []
        head += [f"{named}: {parts[0]}" if len(parts) > 1 else named, *parts[1:]]
    lines = [f"# {spec.title}", "", *_sentences(facts), "", _line(head), _line(["---"] * len(head))]
    for row in dict.fromkeys(entry.row for entry in found):
        cells = [row]
        for entry in (entry for entry in found if entry.row == row):
            published, ours, difference = entry.said
            cells += [published] if entry.column in has_published else []
            cells.append(ours)
            cells += [difference] if entry.column in has_difference else []
        lines.append(_line(cells))
    lines += ["", *(f"- {note}" for note in [*_legend(found), *spec.notes])]
    damaged = {f"{entry.row}, {entry.column}: {entry.damage}" for entry in found if entry.damage}
    if damaged:
        lines += ["", "Damaged in the source:", "", *(f"- {each}" for each in sorted(damaged))]
    if errors:
        lines += ["", "What failed:", "", *(f"- {each}" for each in errors)]
    return "\n".join(lines) + "\n"


def _legend(found: Sequence[Entry]) -> list[str]:
    said = [f"{NOTHING}: not published, or not measured here"]
    if any(entry.damage for entry in found):
        said.append(f"{DAMAGED}: damaged in the source")
    if any(entry.ours is not None and entry.ours.deviation is not None for entry in found):
        said.append("±: standard deviation over the seeds")
    return said


def _sentences(facts: Sequence[str]) -> list[str]:
    return [line for fact in facts for line in (fact, "")][:-1]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
