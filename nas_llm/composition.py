"""The configuration of a stage: composed of its overrides and checked, before anything is written.

A stage that continues a run composes the run's recorded overrides first and the new ones after them.
"""

from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, open_dict

from nas_llm import overrides as text
from nas_llm.config import CONFIG_NAME, check, config_dir
from nas_llm.config_effects import refuse_effects
from nas_llm.config_errors import all_groups, refuse_choices
from nas_llm.ranks import is_main_process
from nas_llm.reporting.sweep import runs_below
from nas_llm.run_directory import OPERATORS, refuse_outputs
from nas_llm.stage_kinds import CONTINUING, FILES_ONLY, RESUMING, STARTING, TRAINING
from nas_llm.stage_reads import refuse_ignored, refuse_unread

SAVED_MODEL = "evaluate.model_path"  # what may be measured without a run
VERSION_BASE = "1.3"


def checked(overrides: Sequence[str], asked: Sequence[str] = ()) -> DictConfig:
    """The configuration as a stage would get it, refused as `check` does, with its run directory settled.

    Args:
        overrides: all, the stage's name among them.
        asked: those of the command line, which have to take effect.
    """
    stage = text.value_of(overrides, "stage")
    assert stage is not None
    refuse_ignored(stage, asked)
    whole = composed(overrides)
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(whole)  # for interpolations of Hydra's own settings
        cfg = whole.copy()
        with open_dict(cfg):
            del cfg["hydra"]
        refuse_unread(stage, asked, cfg, config_dir())
        drop_unchosen(cfg, overrides)
        if cfg.run_dir in (None, "") or not isinstance(cfg.run_dir, str | int):
            raise ValueError(f"run_dir={cfg.run_dir} is not allowed: name a folder, as run_dir=runs/mine")
        cfg.run_dir = str(cfg.run_dir)  # its time is that of now, not of every look at it
        if starts_anew(cfg):
            refuse_outputs(cfg.run_dir)
        check_stage(cfg)
        return cfg
    finally:
        HydraConfig.instance().cfg = before


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration that Hydra makes of overrides, its own settings included.

    Raises:
        ValueError, or Hydra's and OmegaConf's errors: it makes none.
    """
    refuse_choices(text.parse(overrides), config_dir())
    setup_globals()
    with hydra.initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        return hydra.compose(CONFIG_NAME, overrides=text.replacing(overrides), return_hydra_config=True)


def drop_unchosen(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Drops an experiment's settings of objectives in whose place others were chosen; those that were given stay, to be
    refused."""
    given = [text.place(override) for override in text.parse(list(overrides))]
    if "objectives" not in given or not cfg.get("objectives"):
        return
    for name in [str(name) for name, node in cfg.objectives.items() if "_target_" not in node]:
        if not any(f"{key}.".startswith(f"objectives.{name}.") for key in given):
            with open_dict(cfg):
                del cfg.objectives[name]


def check_stage(cfg: DictConfig) -> None:
    """Refuses a configuration that cannot run or take effect, where the stage needs more than files."""
    if cfg.stage not in FILES_ONLY:
        check(cfg)
        refuse_effects(cfg)


def starts_anew(cfg: DictConfig) -> bool:
    """Whether this process starts a run, whose directory must not hold another one's results."""
    starts = cfg.stage in STARTING or (cfg.stage in TRAINING and cfg.ckpt_path is None)
    return starts and is_main_process()


def with_recorded(stage: str, overrides: list[str]) -> list[str]:
    """New overrides after those that the run was started with, where the stage continues a run."""
    run_dir = text.value_of(overrides, "run_dir")
    began_operators = stage in RESUMING and run_dir is not None and Path(run_dir, OPERATORS).is_dir()
    if run_dir is not None and began_operators and Path(run_dir, text.RECORD).exists():
        return _after_recorded(run_dir, overrides)
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
    return _after_recorded(run_dir, overrides)


def _after_recorded(run_dir: str, overrides: list[str]) -> list[str]:
    return text.merge(text.recorded(run_dir), overrides, all_groups(config_dir()))


def _without_run(overrides: list[str]) -> list[str]:
    """A saved model is measured on data that were named; the defaults are the embedded model's."""
    named = {text.place(override).partition(".")[0] for override in text.parse(overrides)}
    return overrides if named & {"data", "objectives"} else [*overrides, "objectives=[none]"]


def _latest_run() -> str:
    runs = sorted(Path("runs").glob(f"*/{text.RECORD}"), key=lambda record: record.stat().st_mtime)
    return f"; the latest is {runs[-1].parent.parent}" if runs else ""
