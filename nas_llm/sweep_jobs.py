"""The jobs of a sweep: every one is checked before the first one starts, none shares a place with another, and what
they refuse is told together when all have ended.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from nas_llm import overrides as text
from nas_llm.composition import checked, composed
from nas_llm.config import config_dir
from nas_llm.config_errors import CONFIG_ERRORS, all_groups
from nas_llm.run_directory import create
from nas_llm.stage_kinds import CONTINUING

REFUSED = ".refused"  # in the folder of a sweep: what its jobs have refused, a line each


def checked_sweep(stage: str, overrides: list[str], asked: Sequence[str]) -> tuple[Path, list[str]]:
    """Refuse what is wrong in any job before the first one starts.

    Returns the folder of the sweep, and overrides that tell the jobs apart.
    """
    given = text.value_of(overrides, "run_dir")
    if stage not in CONTINUING:
        _refuse_shared_folder(overrides, given)
    _refuse_shared_export(overrides)
    jobs = _jobs(overrides)
    swept = {override for job_overrides in jobs for override in job_overrides} - set(overrides)
    run_dirs = []
    for number, job_overrides in enumerate(jobs):
        try:
            run_dirs.append(checked(job_overrides, asked).run_dir)
        except ValueError as error:
            named = " ".join(override for override in job_overrides if override in swept)
            raise ValueError(f"{error} (job {number}: {named})") from error
    run_dir = run_dirs[0]
    place = Path(run_dir, ".hydra", stage) if stage in CONTINUING else Path(run_dir)
    create(place)
    (place / REFUSED).unlink(missing_ok=True)
    excluded = dict.fromkeys([*text.not_swept(overrides), "run_dir"])
    nameless = set(text.swept(overrides)) <= set(excluded) and text.value_of(overrides, "hydra.sweep.subdir") is None
    return place, [
        *([] if given is not None else [text.assign("run_dir", run_dir)]),
        text.assign("hydra.sweep.dir", place),
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(excluded)}]",
        *(["hydra.sweep.subdir=${hydra.job.num}"] if nameless else []),
    ]


def composable(overrides: Sequence[str]) -> list[str]:
    """Overrides of a sweep that compose without its choices, as Hydra does once: settings that only a swept option
    has are added there. Whether they exist is seen where the jobs are checked.
    """
    known = all_groups(config_dir())
    if not set(text.swept(overrides)) & set(known):
        return list(overrides)
    try:
        composed(text.not_sweeps(overrides))
    except CONFIG_ERRORS:
        return text.as_additions(overrides, known)
    return list(overrides)


def add_refusal(place: str | Path, line: str) -> None:
    """Note in the sweep's folder what a job has refused; the process that launched the jobs tells it."""
    with Path(place, REFUSED).open("a") as file:
        file.write(json.dumps(line) + "\n")


def tell_refused(place: Path) -> None:
    """Raise what jobs of the sweep in this folder have refused, as one error of the user."""
    path = place / REFUSED
    if path.exists():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.unlink()
        raise ValueError("; ".join(lines))


def _refuse_shared_folder(overrides: Sequence[str], run_dir: str | None) -> None:
    """Every job of a sweep has a folder of its own in `run_dir`, which is the sweep's; refuse what would undo that."""
    swept = text.swept(overrides)
    subdir = text.value_of(overrides, "hydra.sweep.subdir")
    names_jobs = subdir is None or text.mentions(subdir, ("hydra.job.num", "hydra.job.override_dirname"))
    shared = [] if subdir is None or names_jobs else [key for key in swept if not text.mentions(subdir, [key])]
    if shared:
        raise ValueError(
            f"hydra.sweep.subdir={subdir} puts jobs that differ in {' and '.join(shared)} into one folder of "
            f"run_dir={run_dir or 'runs/...'}: leave it out (each then has its own there, as 0-{shared[0]}-...), or "
            f"write hydra.sweep.subdir=${{hydra.job.num}}-{subdir}"
        )
    if run_dir is not None and text.mentions(run_dir, swept):
        raise ValueError(
            f"run_dir={run_dir} would be another one for every job, but in a sweep it is the folder of them all: write "
            f"run_dir=FOLDER (each job has its own there, as FOLDER/0-{swept[0]}-...), or leave it out"
        )


def _refuse_shared_export(overrides: Sequence[str]) -> None:
    """Jobs that export to one place would each replace what the one before them wrote."""
    swept, path = text.swept(overrides), text.value_of(overrides, "export.path")
    if path is not None and swept and "export.path" not in swept and not text.mentions(path, swept):
        raise ValueError(
            f"export.path={path} is one place for all jobs, each of which would replace the one before: leave it out "
            f"(run_dir/subnets/<id>), or write export.path='{path}-${{{swept[0]}}}'"
        )


def _jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep, also of one that the configuration itself describes."""
    params = OmegaConf.select(composed(text.not_sweeps(composable(list(overrides)))), "hydra.sweeper.params") or {}
    return text.jobs([*text.parse([f"{key}={value}" for key, value in params.items()]), *text.parse(overrides)])
