"""Makes a table or a figure of a paper again: published | ours | difference; nas-llm reproduce paper1/table1."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nas_llm.config import build
from nas_llm.config_errors import unknown
from nas_llm.reporting import numbers
from nas_llm.reporting.reproduction_plot import plot_reproduction
from nas_llm.reproduction.estimate import FORMULA, Needs, needs_of
from nas_llm.reproduction.published import Table, published_dir, read_published
from nas_llm.reproduction.records import at, is_number, matching, read_records, reduced
from nas_llm.reproduction.runs import (
    Place,
    RunCommand,
    copy_file,
    keep_values,
    kept_values,
    run_commands,
)
from nas_llm.reproduction.spec import PLACEHOLDER, Cell, Quotient, Reproduction, Row, Scale
from nas_llm.reproduction.table import entries, write_table
from nas_llm.reproduction.worker_process import Worker, worker
from nas_llm.stages.finished_run import REFERENCES, FinishedRun

READS = ("reproduce", "scale", "seeds", "rows")
OVERRIDES = {
    "reproduce=paper1/table1": "which; also written nas-llm reproduce paper1/table1",
    "scale=mini": "on the embedded models; paper: the paper's own, on a GPU",
    "seeds=[0,1,2]": "what is averaged; null: as the table says",
    "rows=['LoRA','Shears, 50 %']": "these alone; null: all",
    "run_dir=DIR": "where all runs and the table go; called again, only what is missing is run",
    "reproduce.confirm=true": "scale=paper: run, and not only say what it would take",
    "reproduce.common_dir=DIR": "of what rows share, for tables that share it with others",
    "reproduce.tflops=N": "scale=paper: the throughput that the estimate assumes",
}
COMMON, ROWS = "common", "rows"  # folders of the run directory
CHECKED = Path("DIR")  # stands for folders where nothing is run


def main(cfg: DictConfig) -> None:
    """Run every row of ``cfg.reproduce`` and write the table; a failing row does not stop the others.

    Raises:
        ValueError: no such table, scale or row; at the end, rows that failed.
    """
    spec, scale, published = specification(cfg)
    rows = chosen_rows(spec, scale, cfg.rows)
    seeds = [int(seed) for seed in (cfg.seeds if cfg.seeds is not None else spec.seeds.get(scale, [0]))]
    if not seeds:
        raise ValueError("seeds=[]: name at least one, as seeds=[0]")
    with worker() as process:
        if scale == "paper":
            print(forecast(spec, rows, seeds, process))
            if not spec.confirm:
                print("Nothing was run: add reproduce.confirm=true")
                return
        failed = reproduced(cfg, spec, scale, rows, seeds, published, process.run)
    if failed:
        raise ValueError(
            f"{len(failed)} of {numbers.counted(len(rows), 'row')} failed: {'; '.join(failed)}; the table is "
            f"{Path(cfg.run_dir) / 'table.md'}; call the same again to go on"
        )


def specification(cfg: DictConfig) -> tuple[Reproduction, Scale, Table]:
    """The specification of the configuration, its scale and its published rows.

    Raises:
        ValueError: a row or a column whose published one is not in the file.
    """
    spec: Reproduction = build(cfg.reproduce)
    published = {} if spec.published is None else read_published(published_dir() / f"{spec.published}.csv")
    refuse_unpublished(spec, published)
    return spec, cfg.scale, published


def refuse_unpublished(spec: Reproduction, published: Table) -> None:
    """Every row and column that stands beside a published one is in the file.

    Raises:
        ValueError: the first that is not.
    """
    rows, columns = ({key[place] for key in published} for place in (0, 1))
    for row in spec.all_rows:
        if spec.published is not None and row.published is not None and row.published not in rows:
            what = f"reproduce.rows.{row.name}.published={row.published} is not in {spec.published}.csv"
            raise ValueError(unknown(what, row.published, rows))
    for column in spec.all_columns:
        beside = column.published
        sides = (beside.of, beside.over) if isinstance(beside, Quotient) else beside
        for name in (side.partition("@")[0] for side in sides if spec.published is not None):
            if name not in columns and not is_number(name):
                what = f"reproduce.columns.{column.name}.published={name} is not in {spec.published}.csv"
                raise ValueError(unknown(what, name, columns))


def chosen_rows(spec: Reproduction, scale: Scale, names: Sequence[str] | None) -> list[Row]:
    """Those that are asked for, in the table's order; all that the scale has where none are.

    Raises:
        ValueError: one that there is not.
    """
    known = {row.name: row for row in spec.rows_at(scale)}
    if names is None:
        return list(known.values())
    for name in names:
        if name not in known:
            raise ValueError(unknown(f"rows: there is no row {name} at scale={scale}", str(name), known))
    return [row for name, row in known.items() if name in names]


@dataclass(frozen=True)
class RowOfSeed:
    """A row, or what rows share under a name, for one seed, with the folders of both."""

    spec: Reproduction
    scale: Scale
    row: Row | None
    seed: int
    folder: Path
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
            where["architecture"] = network_id(path.parent, self.fill(cell.network))
        return path, matching(read_records(path), where)

    def _wanted(self, wanted: Any) -> Any:
        return self.fill(wanted) if isinstance(wanted, str) else wanted


def network_id(run_dir: Path, network: str) -> str:
    """The id of a run's sub-network by the name, or the budget, that `nas-llm evaluate` was given."""
    key, equals, value = network.partition("=")
    if not equals:
        return FinishedRun(run_dir).choose(network).id if network in REFERENCES else network
    if key not in ("max_params", "max_latency_ms"):
        raise ValueError(
            f"network={network}: allowed are {', '.join(REFERENCES)}, an id, max_params=X, max_latency_ms=X"
        )
    return FinishedRun(run_dir).choose(None, **{key: float(value)}).id


def reproduced(
    cfg: DictConfig,
    spec: Reproduction,
    scale: Scale,
    rows: Sequence[Row],
    seeds: Sequence[int],
    published: Table,
    run: RunCommand,
) -> list[str]:
    """Runs all rows, writes the table and the picture into the run directory, and says where; returns what failed."""
    run_dir = Path(cfg.run_dir).absolute()
    shared = Path(spec.common_dir).absolute() if spec.common_dir is not None else run_dir / COMMON
    values: dict[tuple[str, str, int], float] = {}
    errors: dict[str, str] = {}
    seconds: list[float] = []
    jobs = [(seed, row) for seed in seeds for row in rows]
    for number, (seed, row) in enumerate(jobs, start=1):
        start = time.perf_counter()
        try:
            ran, found = finished(spec, scale, row, seed, run_dir / ROWS, shared, run)
            values |= {(row.name, column, seed): value for column, value in found.items()}
            said = "done before" if not ran else f"done in {numbers.duration(time.perf_counter() - start)}"
        except ValueError as error:
            ran, said = True, f"FAILED: {error}"
            errors[row.name] = f"seed {seed}: {error}"
        if ran:
            seconds.append(time.perf_counter() - start)
        left = sum(seconds) / len(seconds) * (len(jobs) - number) if seconds else 0.0
        rest = f"; about {numbers.duration(left)} left" if number < len(jobs) else ""
        print(f"[{number}/{len(jobs)}] {row.name}, seed {seed}: {said}{rest}", flush=True)
        write_everything(cfg, spec, scale, rows, seeds, published, values, errors)
    for path in copied_pictures(spec, scale, rows, seeds, run_dir, shared):
        print(f"written: {path}")
    print(f"\n{(run_dir / 'table.md').read_text()}\nwritten: {run_dir}/table.md, table.csv, table.png")
    return [f"{name} ({error})" for name, error in errors.items()]


def finished(
    spec: Reproduction, scale: Scale, row: Row, seed: int, folder: Path, shared: Path, run: RunCommand
) -> tuple[bool, dict[str, float]]:
    """Whether anything had to be run, and the row's numbers for this seed.

    Raises:
        ValueError: a command failed, or a number is not where it should be.
    """
    ran, after, commons = False, {}, {}
    for name in spec.commons_of(row, scale):
        place = place_of(spec, scale, None, seed, shared / name / f"seed-{seed}", {}, spec.common[name][scale])
        ran |= not place.is_finished
        run_commands(place, run)
        commons[name] = place.folder
        after[name] = list(place.commands)
    own = RowOfSeed(spec, scale, row, seed, folder / slug(row.name) / f"seed-{seed}", commons)
    place = place_of(spec, scale, row, seed, own.folder, commons, row.commands[scale], after)
    cells = {
        column.name: source
        for column in spec.all_columns
        if isinstance(source := spec.source(row, column, scale), Cell)
    }
    sources = {name: asdict(cell) for name, cell in cells.items()}
    kept = kept_values(place, sources)
    if kept is not None:
        return ran, dict(kept)
    ran |= not place.is_finished
    run_commands(place, run)
    found = {name: own.number(cell) for name, cell in cells.items()}
    keep_values(place, found, sources)
    return ran, found


def place_of(
    spec: Reproduction,
    scale: Scale,
    row: Row | None,
    seed: int,
    folder: Path,
    commons: Mapping[str, Path],
    commands: Sequence[str],
    after: Mapping[str, Any] | None = None,
) -> Place:
    """Where the commands of a row, or of what rows share, are run for one seed."""
    own = RowOfSeed(spec, scale, row, seed, folder, commons)
    texts = tuple(text for command in commands if (text := spec.text(command, row, scale)).strip())
    return Place(folder, texts, own.fill, after or {})


def write_everything(
    cfg: DictConfig,
    spec: Reproduction,
    scale: Scale,
    rows: Sequence[Row],
    seeds: Sequence[int],
    published: Table,
    values: Mapping[tuple[str, str, int], float],
    errors: Mapping[str, str],
) -> None:
    """The table as far as it is known, and its picture."""
    run_dir = Path(cfg.run_dir)
    by_seed = dict(values)
    for seed in seeds:
        by_seed |= quotients(spec, scale, rows, seed, by_seed)
    over_seeds = {
        (row.name, column.name): [
            by_seed[row.name, column.name, seed] for seed in seeds if (row.name, column.name, seed) in by_seed
        ]
        for row in rows
        for column in spec.all_columns
    }
    found = entries(spec, scale, rows, published, over_seeds, errors)
    named = ", ".join(map(str, seeds))
    setup = spec.setup.get(scale)
    facts = [*([setup] if setup else []), f"scale={scale}, seeds {named}, {date.today().isoformat()}."]
    failures = [f"{name}: {error}" for name, error in errors.items()]
    _, table = write_table(run_dir, spec, scale, found, facts, failures)
    plot_reproduction(table, x=spec.drawn.x, y=spec.drawn.y, lines=spec.drawn.lines)


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


def copied_pictures(
    spec: Reproduction, scale: Scale, rows: Sequence[Row], seeds: Sequence[int], run_dir: Path, shared: Path
) -> list[Path]:
    """Pictures that the commands drew, of the first seed, beside the table."""
    commons = {name: shared / name / f"seed-{seeds[0]}" for name in spec.common}
    found = []
    for text in spec.drawn.files.get(scale, ()):
        for row in rows if "{run}" in text else [None]:
            folder = run_dir / ROWS / slug(row.name) / f"seed-{seeds[0]}" if row is not None else run_dir
            source = Path(RowOfSeed(spec, scale, row, seeds[0], folder, commons).fill(text))
            if source.is_file():
                name = source.name if row is None else f"{slug(row.name)}-{source.name}"
                copy_file(source, run_dir / name)
                found.append(run_dir / name)
    return found


def forecast(spec: Reproduction, rows: Sequence[Row], seeds: Sequence[int], process: Worker) -> str:
    """All command lines of ``scale=paper``, checked, and what they would take.

    Raises:
        ValueError: of the first command line that something is wrong with.
    """
    plan = planned(spec, "paper", rows)
    checked = process.check([shlex.split(line) for lines in plan.values() for line in lines])
    found = {name: [checked.pop(0) for _ in lines] for name, lines in plan.items()}
    shared = {name: found[name] for name in spec.common if name in found}
    made_of = {row.name: [cfg for name in spec.commons_of(row, "paper") for cfg in found[name]] for row in rows}
    total, said = Needs(), []
    for name, configurations in found.items():
        if not configurations:
            continue
        before = [] if name in shared else made_of[name]
        needs = needs_of(configurations, spec.parameters, before)
        total += needs
        shown = f"shared, {name}" if name in shared else name
        said.append(f"\n{shown}: {needs.memory_gib:,.0f} GiB, {needs.hours(spec.tflops):,.1f} GPU-hours")
        said += [f"  nas-llm {line}" for line in plan[name]]
    times = f" for each of {numbers.counted(len(seeds), 'seed')}" if len(seeds) > 1 else ""
    most = f"{total.memory_gib:,.0f} GiB of GPU memory at most and {total.hours(spec.tflops):,.0f} GPU-hours{times}"
    head = f"{spec.title}, at full size: about {most}."
    return "\n".join([head, FORMULA.format(tflops=spec.tflops), *said, ""])


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
    own = {"run": str(CHECKED / name), "seed": "0", **{common: str(CHECKED / common) for common in spec.common}}
    fill: Callable[[Any], str] = partial(_stand_in, known=own)
    lines = (PLACEHOLDER.sub(fill, spec.text(command, row, scale)) for command in commands)
    return [line for line in lines if line.strip()]


def _stand_in(match: Any, known: Mapping[str, str]) -> str:
    return known.get(match[1], match[1].upper())


def slug(name: str) -> str:
    """A row's name as one of a folder."""
    words = "".join(letter if letter.isalnum() or letter in ".:" else " " for letter in name).split()
    return "-".join(words).replace(":", "-").lower()
