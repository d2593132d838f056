"""One run of a stage in its run directory: held, recorded, seeded; after Ctrl-C, the command that resumes it."""

import importlib
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from nas_llm import overrides as text
from nas_llm import provenance
from nas_llm.atomic_files import disk_error, write_text
from nas_llm.composition import starts_anew
from nas_llm.config_errors import CONFIG_ERRORS
from nas_llm.ranks import is_main_process, told_to_ranks
from nas_llm.run_directory import locked, refuse_outputs
from nas_llm.run_fingerprints import forget_start
from nas_llm.stage_kinds import CONTINUING, FILES_ONLY, TRAINING
from nas_llm.stage_reads import unread


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a stage; the message is the command that resumes it."""


def run_stage(cfg: DictConfig) -> None:
    """Calls the stage with its configuration, inside a call of Hydra.

    Raises:
        Interrupted: Ctrl-C.
        ValueError: the disk is full or refuses a write; and what the stage raises.
    """
    hydra_cfg = HydraConfig.get()
    task = [line for line in hydra_cfg.overrides.task if not line.startswith(("stage=", "run_dir="))]
    passed_over = unread(cfg.stage, task, cfg)  # of those that the run has recorded
    task = [line for line in task if line not in passed_over]
    where = [text.assign("run_dir", Path(cfg.run_dir).absolute()), *_search_path()]
    arguments, shown = [cfg.stage, *task, *where], [cfg.stage, *text.given(task), *where]
    with (
        told_to_ranks(arguments),
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
        if starts_anew(cfg):
            refuse_outputs(cfg.run_dir)
            forget_start(cfg.run_dir)
        yield


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
