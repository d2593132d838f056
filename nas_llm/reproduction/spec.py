"""What a table of a paper is made of: its published rows, the command lines of every row, and where the numbers lie.

The fields of ``Reproduction`` are ``conf/reproduce/PAPER/TABLE.yaml``. Both scales live in one file: ``mini`` on the
embedded models, ``paper`` with the paper's own. In commands and file names stand placeholders:

    {run}         the folder of the row (of what rows share: of that) and seed
    {seed}
    {NAME}        of ``common``: the folder of what rows share, for the same seed
    {NAME}        of ``words``: a piece of text
    {NAME}        of ``names``: a text that earlier commands of the row left in a file, as the id of a network
    {NAME}        of ``each``: a field of the row; a row with ``each`` stands for as many rows as it lists
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from nas_llm.config_errors import unknown
from nas_llm.config_types import describe, fits
from nas_llm.reproduction.records import REDUCED, is_number, is_reduction

Scale = Literal["mini", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
OWN = ("run", "seed")  # placeholders of every command
PLACEHOLDER = re.compile(r"\{(\w+)\}")
T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """Where one number lies: of the records of ``file`` that agree with ``where``, their ``value`` as one number.

    Args:
        file: path, with placeholders.
        value: dotted path within a record.
        where: dotted path -> what it must be there.
        network: of a run's sub-networks the one whose record is meant (``architecture``): an id, ``largest``,
            ``middle``, ``smallest``, or a budget, as ``max_params=0.5``.
        reduce: how several values are one.
        factor: the number is multiplied by it.
        unit: where it is not the column's; such numbers are not subtracted from the published ones.
        compared: false: they are not, though the unit is the same.
    """

    file: str
    value: str = "value"
    where: Mapping[str, Any] = field(default_factory=dict)
    network: str | None = None
    reduce: str = "only"
    factor: float = 1.0
    unit: str | None = None
    compared: bool = True


@dataclass(frozen=True)
class Quotient:
    """A number computed of two others of the same seed: ``of / over``, each a column, ``COLUMN@ROW``, or a number."""

    of: str
    over: str
    factor: float = 1.0
    unit: str | None = None
    compared: bool = True


Source = Cell | Quotient


@dataclass(frozen=True)
class Column:
    """One column: its unit, the published columns whose mean or quotient it stands beside, and where ours lies at each
    scale."""

    name: str
    unit: str
    published: tuple[str, ...] | Quotient
    sources: Mapping[str, Source]


@dataclass(frozen=True)
class Row:
    """One row: the published one it stands beside, and per scale its commands and cells that are not the column's."""

    name: str
    published: str | None
    series: str | None
    fields: Mapping[str, str]
    commands: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, Mapping[str, Source | None]]
    names: Mapping[str, Mapping[str, Cell]]


@dataclass(frozen=True)
class Picture:
    """How the table is drawn: ``y`` over ``x``, both columns, in one line per series; without them, a panel a column.

    ``files`` are pictures that the commands drew themselves, by scale, which are copied beside the table.
    """

    x: str | None = None
    y: str | None = None
    lines: bool = False
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reproduction:
    """A table or a figure of a paper.

    Args:
        title: what it shows, and which it is.
        columns: name -> unit, published (one, a list whose mean is meant, a quotient, or null), mini, paper (a cell or
            a quotient).
        rows: name -> published (a row; left out: the row's own name; null: none), series, each, and per scale
            commands, cells, names.
        published: the file of published rows, without its ending, in the folder ``experiments``; null: there is none.
        notes: inconsistencies of the source, and what differs here.
        setup: by scale, one line on models, data and amounts.
        seeds: by scale.
        common: name -> per scale, the commands that rows share.
        words: by scale, name -> text.
        parameters: of models that cannot be looked at here, by the name that a command gives.
        picture: how it is drawn.
        confirm: what ``scale=paper`` needs to start.
        common_dir: folder of what rows share; tables that share it with others can name the same; null: in the run
            directory.
        tflops: throughput that the estimate of ``scale=paper`` assumes, 1e12 floating-point operations a second.

    Raises:
        ValueError: an unknown key, a value of a wrong type, a placeholder or a column that there is not.
    """

    title: str
    columns: Mapping[str, Any]
    rows: Mapping[str, Any]
    published: str | None = None
    notes: Sequence[str] = ()
    setup: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, Sequence[int]] = field(default_factory=lambda: {"mini": [0], "paper": [0]})
    common: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, float] = field(default_factory=dict)
    picture: Mapping[str, Any] = field(default_factory=dict)
    confirm: bool = False
    common_dir: str | None = None
    tflops: float = 125.0

    def __post_init__(self) -> None:
        for name, by_scale in (("setup", self.setup), ("seeds", self.seeds), ("words", self.words)):
            _refuse_unknown(by_scale, SCALES, f"reproduce.{name}")
        for name, per_scale in self.common.items():
            _refuse_unknown(per_scale, SCALES, f"reproduce.common.{name}")
        if self.tflops <= 0:
            raise ValueError(f"reproduce.tflops={self.tflops}: allowed is a number above 0, as reproduce.tflops=125")
        for scale in SCALES:
            for row in self.rows_at(scale):
                self._refuse_dangling(row, scale)
        for axis in (self.drawn.x, self.drawn.y):
            if axis is not None and axis not in self.columns:
                raise ValueError(unknown(f"reproduce.picture: there is no column {axis}", axis, self.columns))

    @cached_property
    def all_columns(self) -> tuple[Column, ...]:
        return tuple(_column(name, node) for name, node in self.columns.items())

    @cached_property
    def all_rows(self) -> tuple[Row, ...]:
        return tuple(row for name, node in self.rows.items() for row in _rows(name, node))

    @cached_property
    def drawn(self) -> Picture:
        return _made(Picture, self.picture, "reproduce.picture")

    def rows_at(self, scale: Scale) -> tuple[Row, ...]:
        """Those that have commands at this scale."""
        return tuple(row for row in self.all_rows if scale in row.commands)

    def columns_at(self, scale: Scale) -> tuple[Column, ...]:
        """Those of which a row has a number at this scale."""
        overridden = {name for row in self.rows_at(scale) for name, source in row.sources[scale].items() if source}
        return tuple(column for column in self.all_columns if scale in column.sources or column.name in overridden)

    def source(self, row: Row, column: Column, scale: Scale) -> Source | None:
        """Where the number lies; None where the row has none in this column."""
        own = row.sources[scale]
        return own[column.name] if column.name in own else column.sources.get(scale)

    def commons_of(self, row: Row, scale: Scale) -> tuple[str, ...]:
        """Names of what the row shares, in the order of ``common``."""
        texts = [*row.commands[scale], *self._files(row, scale)]
        named = set(self._named(row, scale, texts))
        return tuple(name for name in self.common if name in named)

    def text(self, text: str, row: Row | None, scale: Scale) -> str:
        """With the row's fields and the scale's words in the place of their names, words within words too."""
        known = {**self.words.get(scale, {}), **(row.fields if row else {})}
        for _ in range(4):
            text = PLACEHOLDER.sub(lambda match: str(known.get(match[1], match[0])), text)
        return text

    def _files(self, row: Row, scale: Scale) -> Iterator[str]:
        sources = [self.source(row, column, scale) for column in self.all_columns]
        for source in (*sources, *row.names[scale].values()):
            if isinstance(source, Cell):
                yield source.file

    def _named(self, row: Row, scale: Scale, texts: Sequence[str]) -> Iterator[str]:
        for text in texts:
            yield from PLACEHOLDER.findall(self.text(text, row, scale))

    def _refuse_dangling(self, row: Row, scale: Scale) -> None:
        """Placeholders that nothing fills, columns that there are not."""
        known = {*OWN, *self.common, *row.names[scale]}
        for name in self._named(row, scale, [*row.commands[scale], *self._files(row, scale)]):
            if name not in known:
                what = f"reproduce.rows.{row.name}.{scale}: {{{name}}} is filled by nothing"
                raise ValueError(unknown(what, name, known))
        for name in self.commons_of(row, scale):
            if scale not in self.common[name]:
                raise ValueError(f"reproduce.common.{name} has no {scale}, which {row.name} needs: add its commands")
        for name in row.sources[scale]:
            if name not in self.columns:
                raise ValueError(unknown(f"reproduce.rows.{row.name}: there is no column {name}", name, self.columns))
        names = {other.name for other in self.rows_at(scale)}
        for column in self.all_columns:
            source = self.source(row, column, scale)
            for place in (source.of, source.over) if isinstance(source, Quotient) else ():
                of, _, whose = self.text(place, row, scale).partition("@")
                if is_number(of):
                    continue
                if of not in self.columns or (whose and whose not in names):
                    raise ValueError(f"reproduce.columns.{column.name}: there is no {place}")


def _column(name: str, node: Any) -> Column:
    key = f"reproduce.columns.{name}"
    _refuse_unknown(node, ("unit", "published", *SCALES), key)
    sources: dict[str, Source] = {
        scale: _source(node[scale], f"{key}.{scale}") for scale in SCALES if node.get(scale) is not None
    }
    return Column(name, str(node.get("unit", "1")), _beside(node.get("published", name), key), sources)


def _beside(published: Any, key: str) -> tuple[str, ...] | Quotient:
    if isinstance(published, Mapping):
        return _made(Quotient, published, f"{key}.published")
    return () if published is None else (published,) if isinstance(published, str) else tuple(published)


def _rows(name: str, node: Any) -> Iterator[Row]:
    key = f"reproduce.rows.{name}"
    _refuse_unknown(node, ("published", "series", "each", *SCALES), key)
    for place in node.get("each", [{}]):
        filled = {str(field): str(value) for field, value in place.items()}
        scales = [scale for scale in SCALES if node.get(scale) is not None and not _left_out(filled, scale)]
        for scale in scales:
            _refuse_unknown(node[scale], ("commands", "cells", "names"), f"{key}.{scale}")
        own = _filled(name, filled)
        published = node.get("published", name)
        yield Row(
            name=own,
            published=None if published is None else _filled(published, filled),
            series=_filled(node["series"], filled) if node.get("series") else None,
            fields=filled,
            commands={scale: tuple(node[scale].get("commands", ())) for scale in scales},
            sources={
                scale: {
                    column: None if cell is None else _source(cell, f"{key}.{scale}.cells.{column}")
                    for column, cell in node[scale].get("cells", {}).items()
                }
                for scale in scales
            },
            names={
                scale: {
                    found: _made(Cell, cell, f"{key}.{scale}.names.{found}")
                    for found, cell in node[scale].get("names", {}).items()
                }
                for scale in scales
            },
        )


def _left_out(filled: Mapping[str, str], scale: Scale) -> bool:
    """A field ``scale`` of ``each`` says that the row is one of that scale alone."""
    return filled.get("scale", scale) != scale


def _filled(text: str, filled: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda match: filled.get(match[1], match[0]), text)


def _source(node: Any, key: str) -> Source:
    if isinstance(node, Mapping) and "over" in node:
        return _made(Quotient, node, key)
    cell = _made(Cell, node, key)
    if not is_reduction(cell.reduce):
        raise ValueError(f"{key}.reduce={cell.reduce}: allowed are {', '.join(REDUCED)}")
    return cell


def _made(kind: type[T], node: Any, key: str) -> T:
    """A dataclass of a plain mapping, whose keys and types are judged."""
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    _refuse_unknown(node, tuple(known), key)
    annotations = get_type_hints(kind)
    for name, value in node.items():
        if not fits(value, annotations[name]):
            raise ValueError(f"{key}.{name}={value} is not allowed: it must be {describe(annotations[name])}")
    for name, each in known.items():
        if each.default is MISSING and each.default_factory is MISSING and name not in node:
            raise ValueError(f"{key}.{name} is required: add it")
    return kind(**node)


def _refuse_unknown(node: Any, known: Sequence[str], key: str) -> None:
    if not isinstance(node, Mapping):
        raise ValueError(f"{key}={node} is not allowed: it must be a mapping, of {', '.join(known)}")
    for name in node:
        if name not in known:
            raise ValueError(unknown(f"{key}.{name} is not known", str(name), known))
