"""Makes a table or a figure of a paper again: published | ours | difference; nas-llm reproduce paper1/table1."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

from omegaconf import DictConfig

from nas_llm.config import build
from nas_llm.config_errors import unknown
from nas_llm.reporting import numbers
from nas_llm.reporting.reproduction_plot import plot_reproduction
from nas_llm.reproduction.estimate import FORMULA, Needs, needs_of
from nas_llm.reproduction.filling import RowOfSeed, planned, slug
from nas_llm.reproduction.published import Table, published_dir, read_published
from nas_llm.reproduction.quotients import quotients
from nas_llm.reproduction.records import is_number
from nas_llm.reproduction.runs import CommandFailed, Place, RunCommand, copy_file, keep_values, run_commands
from nas_llm.reproduction.spec import SCALES, Quotient, Reproduction, Row, Scale
from nas_llm.reproduction.table import entries, write_table
from nas_llm.reproduction.worker_process import Worker, worker
from nas_llm.stages.finished_run import REFERENCES, FinishedRun
from nas_llm.stages.table_folder import COMMON, Job, TableFolder

READS = ("reproduce", "scale", "seeds", "rows")
OVERRIDES = {
    "reproduce=paper1/table1": "which; also written nas-llm reproduce paper1/table1",
    "scale=mini": "on the embedded models; paper: the paper's own, on a GPU",
    "seeds=[0,1,2]": "what is averaged; null: as the table says",
    "rows=[LoRA]": "these alone; null: all",
    "run_dir=DIR": "where all runs and the table go; called again, only what is missing is run",
    "reproduce.confirm=true": "scale=paper: run, and not only say what it would take",
    "reproduce.common_dir=DIR": "of what rows share, for tables that share it with others",
    "reproduce.tflops=N": "scale=paper: the throughput that the estimate assumes",
}


def main(cfg: DictConfig) -> None:
    """Run every row of ``cfg.reproduce`` and write the table; a failing row does not stop the others.

    Raises:
        ValueError: no such table, scale or row; at the end, rows that failed.
    """
    spec, scale, published = specification(cfg)
    rows = chosen_rows(spec, scale, cfg.rows)
    seeds = [int(seed) for seed in (cfg.seeds if cfg.seeds is not None else spec.seeds.get(scale, [0]))]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={seeds}: name at least one, and each once, as seeds=[0,1,2]")
    with worker() as process:
        if scale == "paper":
            print(forecast(spec, rows, seeds, process))
            if not spec.confirm:
                print("Nothing was run: add reproduce.confirm=true")
                return
        failed = reproduced(Path(cfg.run_dir), spec, scale, rows, seeds, published, process.run)
    if failed:
        raise ValueError(
            f"{len(failed)} of {numbers.counted(len(rows), 'row')} failed: {'; '.join(failed)}; why is at the end of "
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
        ValueError: one that there is not, or none at this scale.
    """
    known = {row.name: row for row in spec.rows_at(scale)}
    if not known:
        others = [f"scale={other}" for other in SCALES if spec.rows_at(other)]
        raise ValueError(f"scale={scale}: this table has no rows at it; set {' or '.join(others)}")
    if names is None:
        return list(known.values())
    for name in map(str, names):
        if name not in known:
            alike = [row for row in known if name.lower() in row.lower()] or list(known)
            listed = ", ".join(f"\"rows=['{row}']\"" for row in alike)
            raise ValueError(f"rows=[{name}]: there is no such row at scale={scale}; choose {listed}")
    return [row for name, row in known.items() if name in names]


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
    run_dir: Path,
    spec: Reproduction,
    scale: Scale,
    rows: Sequence[Row],
    seeds: Sequence[int],
    published: Table,
    run: RunCommand,
) -> list[str]:
    """Runs all rows, writes the table and the picture into the run directory; returns the names of rows that failed."""
    run_dir = run_dir.absolute()
    shared = Path(spec.common_dir).absolute() if spec.common_dir is not None else run_dir / COMMON
    folder = TableFolder(spec, scale, run_dir, shared, network_id)
    folder.claim()
    jobs = [(row, seed) for seed in seeds for row in rows]
    left = folder.left(but=jobs)  # of earlier calls: other rows, other seeds
    values = {(row, column, seed): value for (row, seed), kept in left.items() for column, value in kept.items()}
    named = {row.name for row in rows} | {row for row, _ in left}
    shown = [row for row in spec.rows_at(scale) if row.name in named]
    errors: dict[str, str] = {}
    broken: dict[Path, str] = {}
    seconds: list[float] = []
    for number, (row, seed) in enumerate(jobs, start=1):
        start = time.perf_counter()
        try:
            ran, found = finished(folder.job(row, seed), run, broken)
            values |= {(row.name, column, seed): value for column, value in found.items()}
            said = "done before" if not ran else f"done in {numbers.duration(time.perf_counter() - start)}"
        except ValueError as error:
            ran, said = True, f"FAILED: {error}"
            errors[row.name] = f"seed {seed}: {error}"
        if ran:
            seconds.append(time.perf_counter() - start)
        ahead = sum(seconds) / len(seconds) * (len(jobs) - number) if seconds else 0.0
        rest = f"; about {numbers.duration(ahead)} left" if ahead else ""
        print(f"[{number}/{len(jobs)}] {row.name}, seed {seed}: {said}{rest}", flush=True)
        table = write_everything(
            run_dir, spec, scale, shown, sorted({*seeds, *(seed for _, seed in left)}), published, values, errors
        )
    picture = plot_reproduction(table, x=spec.drawn.x, y=spec.drawn.y, lines=spec.drawn.lines)
    for path in copied_pictures(folder, rows, seeds):
        print(f"written: {path}")
    files = ", ".join(["table.md", "table.csv", *(["table.png"] if picture is not None else [])])
    print(f"\n{(run_dir / 'table.md').read_text()}\nwritten: {run_dir}/{files}")
    return list(errors)


def finished(job: Job, run: RunCommand, broken: dict[Path, str]) -> tuple[bool, Mapping[str, float]]:
    """Whether anything had to be run, and the row's numbers for this seed.

    ``broken`` takes what rows share and what has failed, so that it is not tried again for every row.

    Raises:
        ValueError: a command failed, or a number is not where it should be.
    """
    ran = False
    for place in job.commons.values():
        ran |= not place.is_finished
        run_shared(place, run, broken)
    if (kept := job.kept) is not None:
        return ran, kept
    ran |= not job.place.is_finished
    run_commands(job.place, run)
    found = {name: job.own.number(cell) for name, cell in job.cells.items()}
    keep_values(job.place, found, job.sources)
    return ran, found


def run_shared(place: Place, run: RunCommand, broken: dict[Path, str]) -> None:
    """As ``run_commands``; what has failed before fails at once."""
    if place.folder in broken:
        raise CommandFailed(broken[place.folder])
    try:
        run_commands(place, run)
    except CommandFailed as error:
        broken[place.folder] = str(error)
        raise


def write_everything(
    run_dir: Path,
    spec: Reproduction,
    scale: Scale,
    rows: Sequence[Row],
    seeds: Sequence[int],
    published: Table,
    values: Mapping[tuple[str, str, int], float],
    errors: Mapping[str, str],
) -> Path:
    """The table as far as it is known; returns its CSV."""
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
    setup = spec.setup.get(scale)
    facts = [*([setup] if setup else []), f"scale={scale}, {_of_seeds(rows, seeds, by_seed)}, {date.today()}."]
    failures = [f"{name}: {error}" for name, error in errors.items()]
    return write_table(run_dir, spec, found, facts, failures)


def _of_seeds(rows: Sequence[Row], seeds: Sequence[int], values: Mapping[tuple[str, str, int], float]) -> str:
    """Which seeds the numbers are of; rows with fewer than the most are named."""
    own = {row.name: {seed for name, _, seed in values if name == row.name} for row in rows}
    most = set().union(*own.values()) or set(seeds)
    fewer = [f"{name} {_listed(found)}" for name, found in own.items() if found and found < most]
    return f"seeds {_listed(most)}" + (f" ({'; '.join(fewer)})" if fewer else "")


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def copied_pictures(folder: TableFolder, rows: Sequence[Row], seeds: Sequence[int]) -> list[Path]:
    """Pictures that the commands drew, of the first seed, beside the table."""
    spec, scale, run_dir, seed = folder.spec, folder.scale, folder.run_dir, seeds[0]
    commons = {name: folder.shared / name / f"seed-{seed}" for name in spec.common}
    found = []
    for text in spec.drawn.files.get(scale, ()):
        for row in rows if "{run}" in text else [None]:
            place = run_dir if row is None else folder.folder(row, seed)
            source = Path(RowOfSeed(spec, scale, row, seed, place, network_id, commons).fill(text))
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
