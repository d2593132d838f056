"""Runs one command line: compose, check, hand the stage to Hydra.

Single runs, sweeps and Hydra's launchers all go through `hydra.main` and the function `job` below, which launchers may
pickle.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from nas_llm import overrides as text
from nas_llm.composition import VERSION_BASE, check_stage, checked, drop_unchosen, with_recorded
from nas_llm.config import CONFIG_NAME, config_dir
from nas_llm.config_errors import CONFIG_ERRORS, one_line, options
from nas_llm.ranks import is_main_process
from nas_llm.run_directory import started
from nas_llm.stage_kinds import CONTINUING
from nas_llm.stage_run import run_stage
from nas_llm.sweep_jobs import add_refusal, checked_sweep, composable, tell_refused


class Refused(BaseException):
    """A user's error on its way through Hydra, which would print more than its one line."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


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
    overrides = [*with_recorded(stage, given), f"stage={stage}"]
    asked = given if is_main_process() else []  # other ranks are given what the main one composed, recorded ones too
    if shows:
        _run_hydra([*flags, *text.replacing(overrides)])
    elif args.multirun:
        place, named = checked_sweep(stage, overrides, asked)
        _run_hydra([*flags, *text.replacing(composable(overrides)), *named])
        tell_refused(place)
    else:
        cfg = _checked_run(overrides, asked)
        pinned = [] if text.value_of(overrides, "run_dir") else [text.assign("run_dir", cfg.run_dir)]
        plans = cfg.stage == "distill" and cfg.distill.plan
        with started(cfg.run_dir, refusals=(ValueError, OSError, *CONFIG_ERRORS), plans=plans):
            if flags or text.value_of(overrides, "hydra.mode") is not None:
                _run_hydra([*flags, *text.replacing(overrides), *pinned])
            else:
                _run_once([*text.replacing(overrides), *pinned])


def job(cfg: DictConfig) -> None:
    """One run of a stage, called by Hydra with the composed configuration; picklable."""
    hydra_cfg = HydraConfig.get()
    drop_unchosen(cfg, hydra_cfg.overrides.task)
    sweeps = hydra_cfg.mode is RunMode.MULTIRUN
    if not sweeps:
        try:
            run_stage(cfg)
        except (ValueError, OSError, *CONFIG_ERRORS) as error:
            raise Refused(error) from error
        return
    if cfg.stage not in CONTINUING:
        with open_dict(cfg):
            cfg.run_dir = hydra_cfg.runtime.output_dir
    check_stage(cfg)
    asked = " ".join(text.to_record(hydra_cfg.overrides.task))
    print(f"[{hydra_cfg.job.num}] {asked} -> {cfg.run_dir}", flush=True)
    try:
        run_stage(cfg)
    except (ValueError, *CONFIG_ERRORS) as error:  # the other jobs go on, and the process that launched them tells
        line = (
            one_line(error, hydra_cfg.overrides.task, config_dir()) if isinstance(error, CONFIG_ERRORS) else str(error)
        )
        add_refusal(hydra_cfg.sweep.dir, f"{line} (job {hydra_cfg.job.num}: {asked})")


def _checked_run(overrides: list[str], asked: Sequence[str]) -> DictConfig:
    """Refuse what is wrong before anything is written; the run directory's default holds the time."""
    if text.value_of(overrides, "run_dir") is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "run_dir is required when another program starts the processes: add run_dir=DIR, the same for all"
        )
    return checked(overrides, asked)


def _with_config_dir(overrides: Sequence[str], folder: str | None, flags: list[str]) -> list[str]:
    """Hydra's --config-dir as an override, so that `compose` and the other ranks see it too."""
    if folder is None:
        return list(overrides)
    path = Path(folder).absolute()
    if not path.is_dir():
        raise ValueError(f"--config-dir {folder} is no folder: name one that holds groups, as FOLDER/sampler/mine.yaml")
    flags[:] = [flag for flag in flags if flag not in ("--config-dir", "-cd", folder) and folder not in flag.split("=")]
    return [*overrides, f"hydra.searchpath=['file://{path}']"]


def _run_once(overrides: list[str]) -> None:
    """As `hydra.main` runs one job, which would compose it twice, once to see that it is no sweep."""
    with hydra.initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        running = GlobalHydra.instance().hydra
        assert running is not None
        try:
            running.run(config_name=CONFIG_NAME, task_function=job, overrides=overrides)
        except Refused as refused:
            raise refused.error from refused.error.__cause__


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


def _refuse_arguments(message: str) -> None:
    raise ValueError(f"{message}: write key=value, or see nas-llm --help")
