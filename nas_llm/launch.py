"""Runs one stage: compose, check, hold the run directory, record where the results come from, call the stage.

Single runs, sweeps and Hydra's launchers all go through `hydra.main` and the function `job` below, which launchers may
pickle. A stage that continues a run composes the run's recorded overrides first and the new ones after them.
"""

import importlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from nas_llm import overrides as text
from nas_llm import provenance
from nas_llm.atomic_files import disk_error, write_text
from nas_llm.config import CONFIG_NAME, check, config_dir
from nas_llm.config_effects import refuse_effects
from nas_llm.config_errors import CONFIG_ERRORS, groups, inner_groups, one_line, options, refuse_choices
from nas_llm.reporting.sweep import runs_below
from nas_llm.run_directory import OPERATORS, create, is_main_process, locked, refuse_outputs, started
from nas_llm.run_fingerprints import forget_start
from nas_llm.stage_reads import refuse_ignored, refuse_unread, unread

CONTINUING = ("search", "evaluate", "export", "report")  # stages that work on what an earlier one left
TRAINING = ("train", "pretrain")  # stages that start a run, or resume it with ckpt_path
STARTING = ("prune",)  # stages that start a run, and do all of it at once
RESUMING = ("distill",)  # stages that go on by themselves where run_dir holds what they began
FILES_ONLY = ("report",)  # stages that read a run directory and need nothing heavy
SAVED_MODEL = "evaluate.model_path"  # what may be measured without a run
CHILD_ARGUMENTS = "NAS_LLM_ARGUMENTS"  # what the other ranks of this job run, whatever their command line says
REFUSED = ".refused"  # in the folder of a sweep: what its jobs have refused, a line each
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
VERSION_BASE = "1.3"


class Refused(BaseException):
    """A user's error on its way through Hydra, which would print more than its one line."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a stage; the message is the command that resumes it."""


def launch(stage: str, arguments: Sequence[str]) -> None:
    """Run `nas-llm STAGE arguments`.

    Raises:
        ValueError, or Hydra's and OmegaConf's errors: the user's mistakes, before anything was written where possible.
        Interrupted: Ctrl-C, with the command to go on.
    """
    parser = get_args_parser()
    parser.error = _refuse_arguments  # type: ignore[method-assign, assignment]
    args = parser.parse_intermixed_args(list(arguments))
    flags = [argument for argument in arguments if argument not in args.overrides]
    given = text.quoted(_with_config_dir(args.overrides, args.config_dir, flags))
    folders = [config_dir(), *([Path(args.config_dir)] if args.config_dir else [])]
    given = text.enumerated(given, lambda group: [name for folder in folders for name in options(folder, group)])
    shows = args.cfg or args.info or args.hydra_help or args.shell_completion
    overrides = [*_with_recorded(stage, given), f"stage={stage}"]
    asked = given if is_main_process() else []  # other ranks are given what the main one composed, recorded ones too
    if shows:
        _run_hydra([*flags, *text.replacing(overrides)])
    elif args.multirun:
        place, named = _checked_sweep(stage, overrides, asked)
        _run_hydra([*flags, *text.replacing(_composable(overrides)), *named])
        _tell_refused(place)
    else:
        cfg = _checked_run(overrides, asked)
        pinned = [] if text.value_of(overrides, "run_dir") else [text.assign("run_dir", cfg.run_dir)]
        plans = cfg.stage == "distill" and cfg.distill.plan
        with started(cfg.run_dir, refusals=(ValueError, OSError, *CONFIG_ERRORS), plans=plans):
            _run_hydra([*flags, *text.replacing(overrides), *pinned])


def job(cfg: DictConfig) -> None:
    """One run of a stage, called by Hydra with the composed configuration; picklable."""
    hydra_cfg = HydraConfig.get()
    _drop_unchosen(cfg, hydra_cfg.overrides.task)
    sweeps = hydra_cfg.mode is RunMode.MULTIRUN
    if not sweeps:
        try:
            _run_stage(cfg)
        except (ValueError, OSError, *CONFIG_ERRORS) as error:
            raise Refused(error) from error
        return
    if cfg.stage not in CONTINUING:
        with open_dict(cfg):
            cfg.run_dir = hydra_cfg.runtime.output_dir
    _check(cfg)
    asked = " ".join(text.to_record(hydra_cfg.overrides.task))
    print(f"[{hydra_cfg.job.num}] {asked} -> {cfg.run_dir}", flush=True)
    try:
        _run_stage(cfg)
    except (ValueError, *CONFIG_ERRORS) as error:  # the other jobs go on, and the process that launched them tells
        line = (
            one_line(error, hydra_cfg.overrides.task, config_dir()) if isinstance(error, CONFIG_ERRORS) else str(error)
        )
        with Path(hydra_cfg.sweep.dir, REFUSED).open("a") as file:
            file.write(json.dumps(f"{line} (job {hydra_cfg.job.num}: {asked})") + "\n")


def checked(overrides: Sequence[str], asked: Sequence[str] = ()) -> DictConfig:
    """The configuration as a stage would get it, refused as `check` does, with its run directory settled.

    Args:
        overrides: all, the stage's name among them.
        asked: those of the command line, which have to take effect.
    """
    stage = text.value_of(overrides, "stage")
    assert stage is not None
    refuse_ignored(stage, asked)
    whole = _composed(overrides)
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(whole)  # for interpolations of Hydra's own settings
        cfg = whole.copy()
        with open_dict(cfg):
            del cfg["hydra"]
        refuse_unread(stage, asked, cfg, config_dir())
        _drop_unchosen(cfg, overrides)
        if cfg.run_dir in (None, "") or not isinstance(cfg.run_dir, str | int):
            raise ValueError(f"run_dir={cfg.run_dir} is not allowed: name a folder, as run_dir=runs/mine")
        cfg.run_dir = str(cfg.run_dir)  # its time is that of now, not of every look at it
        if _starts_anew(cfg):
            refuse_outputs(cfg.run_dir)
        _check(cfg)
        return cfg
    finally:
        HydraConfig.instance().cfg = before


def _composed(overrides: Sequence[str]) -> DictConfig:
    refuse_choices(text.parse(overrides), config_dir())
    setup_globals()
    with hydra.initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        return hydra.compose(CONFIG_NAME, overrides=text.replacing(overrides), return_hydra_config=True)


def _drop_unchosen(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Drops an experiment's settings of objectives in whose place others were chosen; those that were given stay, to be
    refused."""
    given = [text.place(override) for override in text.parse(list(overrides))]
    if "objectives" not in given or not cfg.get("objectives"):
        return
    for name in [str(name) for name, node in cfg.objectives.items() if "_target_" not in node]:
        if not any(f"{key}.".startswith(f"objectives.{name}.") for key in given):
            with open_dict(cfg):
                del cfg.objectives[name]


def _check(cfg: DictConfig) -> None:
    if cfg.stage not in FILES_ONLY:
        check(cfg)
        refuse_effects(cfg)


def _run_stage(cfg: DictConfig) -> None:
    hydra_cfg = HydraConfig.get()
    task = [line for line in hydra_cfg.overrides.task if not line.startswith(("stage=", "run_dir="))]
    passed_over = unread(cfg.stage, task, cfg)  # of those that the run has recorded
    task = [line for line in task if line not in passed_over]
    where = [text.assign("run_dir", Path(cfg.run_dir).absolute()), *_search_path()]
    arguments, shown = [cfg.stage, *task, *where], [cfg.stage, *text.given(task), *where]
    with (
        _environment(arguments),
        _held(cfg),
        provenance.recorded(cfg.run_dir, stage=cfg.stage, argv=["nas-llm", *shown], seed=cfg.seed),
    ):
        if cfg.stage not in FILES_ONLY:
            from lightning import seed_everything

            seed_everything(cfg.seed, workers=True, verbose=False)
        main = importlib.import_module(f"nas_llm.stages.{cfg.stage}").main
        with _configuration(cfg):
            try:
                main(cfg)
            except (KeyboardInterrupt, SystemExit) as stop:
                if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
                    raise Interrupted(_resume_command(cfg, task)) from stop
                raise
            except OSError as error:
                reason = disk_error(error)
                if reason is None or error.filename is not None:
                    raise
                raise ValueError(
                    f"run_dir={cfg.run_dir}: a file there could not be written ({reason}): mend that, or choose "
                    "another run_dir="
                ) from error


@contextmanager
def _held(cfg: DictConfig) -> Iterator[None]:
    """The run directory's lock; what an earlier start left is looked at, and forgotten, only once it is held."""
    with locked(cfg.run_dir):
        if _starts_anew(cfg):
            refuse_outputs(cfg.run_dir)
            forget_start(cfg.run_dir)
        yield


def _starts_anew(cfg: DictConfig) -> bool:
    starts = cfg.stage in STARTING or (cfg.stage in TRAINING and cfg.ckpt_path is None)
    return starts and is_main_process()


def _with_config_dir(overrides: Sequence[str], folder: str | None, flags: list[str]) -> list[str]:
    """Hydra's --config-dir as an override, so that `compose` and the other ranks see it too."""
    if folder is None:
        return list(overrides)
    path = Path(folder).absolute()
    if not path.is_dir():
        raise ValueError(f"--config-dir {folder} is no folder: name one that holds groups, as FOLDER/sampler/mine.yaml")
    flags[:] = [flag for flag in flags if flag not in ("--config-dir", "-cd", folder) and folder not in flag.split("=")]
    return [*overrides, f"hydra.searchpath=['file://{path}']"]


def _with_recorded(stage: str, overrides: list[str]) -> list[str]:
    """New overrides after those that the run was started with, where the stage continues a run."""
    run_dir = text.value_of(overrides, "run_dir")
    if (
        stage in RESUMING
        and run_dir is not None
        and Path(run_dir, OPERATORS).is_dir()
        and Path(run_dir, text.RECORD).exists()
    ):
        return text.merge(text.recorded(run_dir), overrides, [*groups(config_dir()), *inner_groups(config_dir())])
    resumed = text.value_of(overrides, "ckpt_path") if stage in TRAINING else None
    if stage not in CONTINUING and resumed is None:
        return overrides
    if run_dir is None:
        needed = f"{stage} ckpt_path={resumed}" if resumed else stage
        raise ValueError(f"nas-llm {needed} goes on with a run: name it with run_dir=DIR{_latest_run()}")
    if stage in FILES_ONLY and runs_below(Path(run_dir)):
        return overrides  # a sweep's folder, which is no run itself
    if stage == "evaluate" and text.value_of(overrides, SAVED_MODEL) and not Path(run_dir, text.RECORD).exists():
        return _without_run(overrides)
    if resumed not in (None, "last") and not (Path(run_dir) / text.RECORD).exists():
        return overrides
    return text.merge(text.recorded(run_dir), overrides, [*groups(config_dir()), *inner_groups(config_dir())])


def _without_run(overrides: list[str]) -> list[str]:
    """A saved model is measured on data that were named; the defaults are the embedded model's."""
    named = {text.place(override).partition(".")[0] for override in text.parse(overrides)}
    return overrides if named & {"data", "objectives"} else [*overrides, "objectives=[none]"]


def _checked_run(overrides: list[str], asked: Sequence[str]) -> DictConfig:
    """Refuse what is wrong before anything is written; the run directory's default holds the time."""
    if text.value_of(overrides, "run_dir") is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "run_dir is required when another program starts the processes: add run_dir=DIR, the same for all"
        )
    return checked(overrides, asked)


def _checked_sweep(stage: str, overrides: list[str], asked: Sequence[str]) -> tuple[Path, list[str]]:
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


def _tell_refused(place: Path) -> None:
    """Raise what jobs of the sweep in this folder have refused, as one error of the user."""
    path = place / REFUSED
    if path.exists():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.unlink()
        raise ValueError("; ".join(lines))


def _jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep, also of one that the configuration itself describes."""
    params = OmegaConf.select(_composed(text.not_sweeps(_composable(list(overrides)))), "hydra.sweeper.params") or {}
    return text.jobs([*text.parse([f"{key}={value}" for key, value in params.items()]), *text.parse(overrides)])


def _composable(overrides: Sequence[str]) -> list[str]:
    """Overrides of a sweep that compose without its choices, as Hydra does once: settings that only a swept option
    has are added there. Whether they exist is seen where the jobs are checked.
    """
    known = [*groups(config_dir()), *inner_groups(config_dir())]
    if not set(text.swept(overrides)) & set(known):
        return list(overrides)
    try:
        _composed(text.not_sweeps(overrides))
    except CONFIG_ERRORS:
        return text.as_additions(overrides, known)
    return list(overrides)


def _run_hydra(arguments: list[str]) -> None:
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print
    try:
        hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name=CONFIG_NAME)(job)()
    except Refused as refused:
        raise refused.error from refused.error.__cause__
    finally:
        sys.argv = before[0]
        if before[1] is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)


@contextmanager
def _environment(arguments: list[str]) -> Iterator[None]:
    """Tell the processes that Lightning starts for other ranks what to run; leave no trace of this job's ranks."""
    before = {name: os.environ.get(name) for name in (CHILD_ARGUMENTS, *RANK_VARIABLES)}
    os.environ[CHILD_ARGUMENTS] = json.dumps(arguments)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if "torch.distributed" in sys.modules:
            distributed = sys.modules["torch.distributed"]
            if distributed.is_available() and distributed.is_initialized():
                distributed.destroy_process_group()


@contextmanager
def _configuration(cfg: DictConfig) -> Iterator[None]:
    """Write `.hydra/` of the run for the stage that starts or resumes it; later stages write theirs below it.

    A resumption that is refused leaves the record of the run as it was.
    """
    if not is_main_process():
        yield
        return
    hydra_cfg = HydraConfig.get()
    folder = Path(cfg.run_dir) / ".hydra"
    if cfg.stage in CONTINUING:
        sweeps = hydra_cfg.mode is RunMode.MULTIRUN
        folder = Path(hydra_cfg.runtime.output_dir) if sweeps else folder / cfg.stage
    recorded = OmegaConf.create([*text.to_record(hydra_cfg.overrides.task), *_search_path()])
    files = {
        folder / "config.yaml": OmegaConf.to_yaml(cfg),
        folder / "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra_cfg})),
        folder / "overrides.yaml": OmegaConf.to_yaml(recorded),
    }
    before = {path: path.read_text() for path in files if path.exists()}
    for path, content in files.items():
        write_text(path, content)
    try:
        yield
    except (ValueError, *CONFIG_ERRORS):
        for path, content in before.items():
            write_text(path, content)
        raise


def _search_path() -> list[str]:
    """The folders of own options, as an override."""
    folders = ",".join(f"'{folder}'" for folder in HydraConfig.get().searchpath)
    return [f"hydra.searchpath=[{folders}]"] if folders else []


def _resume_command(cfg: DictConfig, task: Sequence[str]) -> str:
    kept = [line for line in task if not line.startswith("ckpt_path=")]
    command = ["nas-llm", cfg.stage, f"run_dir={cfg.run_dir}"]
    if cfg.stage in TRAINING and Path(cfg.run_dir, "checkpoints", "last.ckpt").exists():
        return shlex.join([*command, "ckpt_path=last"])
    return shlex.join([*command, *kept])


def _latest_run() -> str:
    runs = sorted(Path("runs").glob(f"*/{text.RECORD}"), key=lambda record: record.stat().st_mtime)
    return f"; the latest is {runs[-1].parent.parent}" if runs else ""


def _refuse_arguments(message: str) -> None:
    raise ValueError(f"{message}: write key=value, or see nas-llm --help")
