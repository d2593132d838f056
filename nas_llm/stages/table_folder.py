"""A folder in which a table is made again: which table, its rows of a seed, and what earlier calls have left there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas_llm.atomic_files import read_json, write_json
from nas_llm.reproduction.filling import RowOfSeed, slug
from nas_llm.reproduction.runs import Place, kept_values
from nas_llm.reproduction.spec import Cell, Reproduction, Row, Scale

COMMON, ROWS, TABLE_FILE = "common", "rows", "reproduced.json"
NetworkId = Callable[[Path, str], str]
"""The id of a run's sub-network by its name or budget."""


@dataclass(frozen=True)
class Job:
    """One row and one seed: the commands of what it shares, its own, and where its numbers then lie."""

    row: Row
    seed: int
    own: RowOfSeed
    commons: Mapping[str, Place]
    place: Place
    cells: Mapping[str, Cell]

    @property
    def sources(self) -> dict[str, Any]:
        return {name: asdict(cell) for name, cell in self.cells.items()}

    @property
    def kept(self) -> Mapping[str, float] | None:
        """The numbers of an earlier call with the same commands."""
        return kept_values(self.place, self.sources)


@dataclass(frozen=True)
class TableFolder:
    """``shared`` is the folder of what rows share; both are absolute."""

    spec: Reproduction
    scale: Scale
    run_dir: Path
    shared: Path
    network_id: NetworkId

    def claim(self) -> None:
        """Says in the folder which table it is of.

        Raises:
            ValueError: it is of another one, whose runs would be mixed with this one's.
        """
        file, own = self.run_dir / TABLE_FILE, {"title": self.spec.title, "scale": self.scale}
        if not file.is_file():
            write_json(file, own)
            return
        found = read_json(file, *own)
        if any(found[key] != value for key, value in own.items()):
            raise ValueError(
                f"run_dir={self.run_dir} holds another table, {found['title']}, scale={found['scale']}: name another "
                "folder"
            )

    def job(self, row: Row, seed: int) -> Job:
        commons = {
            name: self._place(None, seed, self.shared / name / f"seed-{seed}", {}, self.spec.common[name][self.scale])
            for name in self.spec.commons_of(row, self.scale)
        }
        folders = {name: place.folder for name, place in commons.items()}
        folder = self.folder(row, seed)
        after = {name: list(place.commands) for name, place in commons.items()}
        cells = {
            column.name: source
            for column in self.spec.all_columns
            if isinstance(source := self.spec.source(row, column, self.scale), Cell)
        }
        own = RowOfSeed(self.spec, self.scale, row, seed, folder, self.network_id, folders)
        place = self._place(row, seed, folder, folders, row.commands[self.scale], after)
        return Job(row, seed, own, commons, place, cells)

    def folder(self, row: Row, seed: int) -> Path:
        return self.run_dir / ROWS / slug(row.name) / f"seed-{seed}"

    def left(self, but: Iterable[tuple[Row, int]]) -> dict[tuple[str, int], Mapping[str, float]]:
        """(row's name, seed) -> numbers of earlier calls with the same commands."""
        known = {(row.name, seed) for row, seed in but}
        jobs = [
            self.job(row, int(found.stem.removeprefix("seed-")))
            for row in self.spec.rows_at(self.scale)
            for found in sorted((self.run_dir / ROWS / slug(row.name)).glob("seed-*.json"))
        ]
        return {
            (job.row.name, job.seed): kept
            for job in jobs
            if (job.row.name, job.seed) not in known and (kept := job.kept) is not None
        }

    def _place(
        self,
        row: Row | None,
        seed: int,
        folder: Path,
        commons: Mapping[str, Path],
        commands: Sequence[str],
        after: Mapping[str, Any] | None = None,
    ) -> Place:
        """Where the commands of a row, or of what rows share, are run for one seed."""
        own = RowOfSeed(self.spec, self.scale, row, seed, folder, self.network_id, commons)
        texts = tuple(text for command in commands if (text := self.spec.text(command, row, self.scale)).strip())
        return Place(folder, texts, own.fill, after or {})
