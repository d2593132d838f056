"""Placeholders of commands and files filled for one row and seed, and the numbers that lie in those files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nas_llm.reproduction.records import at, matching, read_records, reduced
from nas_llm.reproduction.spec import PLACEHOLDER, Cell, Reproduction, Row, Scale

ChooseNetwork = Callable[[Path, str], str]
"""The id of a run's sub-network by a name, or by the budget that `nas-llm evaluate` was given."""
STAND_IN = Path("DIR")  # of folders, where nothing is run


@dataclass(frozen=True)
class RowOfSeed:
    """A row, or what rows share under a name, for one seed, with the folders of both."""

    spec: Reproduction
    scale: Scale
    row: Row | None
    seed: int
    folder: Path
    choose: ChooseNetwork
    commons: Mapping[str, Path] = field(default_factory=dict)

    def fill(self, text: str) -> str:
        """With everything that placeholders stand for.

        Raises:
            ValueError: a name is to be found in a file that does not hold it.
        """
        known = {"run": str(self.folder), "seed": str(self.seed), **{n: str(path) for n, path in self.commons.items()}}

        def filled(match: Any) -> str:
            name = match[1]
            if name in known:
                return known[name]
            names = self.row.names[self.scale] if self.row is not None else {}
            return self.found(names[name]) if name in names else str(match[0])

        return PLACEHOLDER.sub(filled, self.spec.text(text, self.row, self.scale))

    def found(self, cell: Cell) -> str:
        """The text at a cell, as the id of a network."""
        path, records = self._records(cell)
        texts = list(dict.fromkeys(str(at(record, cell.value)) for record in records))
        if len(texts) != 1 and cell.reduce != "last":
            raise ValueError(f"{path}: {len(texts)} values of {cell.value} where one was expected")
        if not texts:
            raise ValueError(f"{path}: nothing agrees with {dict(cell.where)}")
        return texts[-1]

    def number(self, cell: Cell) -> float:
        """The number at a cell."""
        path, records = self._records(cell)
        return cell.factor * reduced(records, cell.value, cell.reduce, whence=f"{path}, {dict(cell.where)}")

    def _records(self, cell: Cell) -> tuple[Path, list[Any]]:
        path = Path(self.fill(cell.file))
        where = {self.fill(key): self._wanted(wanted) for key, wanted in cell.where.items()}
        if cell.network is not None:
            where["architecture"] = self.choose(path.parent, self.fill(cell.network))
        return path, matching(read_records(path), where)

    def _wanted(self, wanted: Any) -> Any:
        return self.fill(wanted) if isinstance(wanted, str) else wanted


def planned(spec: Reproduction, scale: Scale, rows: Sequence[Row]) -> dict[str, list[str]]:
    """Command lines by what they make, what rows share before them, with stand-ins for folders, seeds and what earlier
    commands find out."""
    needed = {name for row in rows for name in spec.commons_of(row, scale)}
    plan = {
        name: command_lines(spec, scale, None, spec.common[name][scale], name) for name in spec.common if name in needed
    }
    return plan | {row.name: command_lines(spec, scale, row, row.commands[scale], slug(row.name)) for row in rows}


def command_lines(spec: Reproduction, scale: Scale, row: Row | None, commands: Sequence[str], name: str) -> list[str]:
    """Command lines with stand-ins for folders, seeds and what earlier commands find out."""
    own = {"run": str(STAND_IN / name), "seed": "0", **{common: str(STAND_IN / common) for common in spec.common}}
    fill: Callable[[Any], str] = partial(_stand_in, known=own)
    lines = (PLACEHOLDER.sub(fill, spec.text(command, row, scale)) for command in commands)
    return [line for line in lines if line.strip()]


def _stand_in(match: Any, known: Mapping[str, str]) -> str:
    return known.get(match[1], match[1].upper())


def slug(name: str) -> str:
    """A row's name as one of a folder."""
    words = "".join(letter if letter.isalnum() or letter in ".:" else " " for letter in name).split()
    return "-".join(words).replace(":", "-").lower()
