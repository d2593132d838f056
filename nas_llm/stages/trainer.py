"""Lightning's Trainer as the stages make and run it: what it refuses names the settings that it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from nas_llm.config import build, config_dir
from nas_llm.ranks import is_main_process
from nas_llm.run_directory import refuse_unmakable


def built_trainer(cfg: DictConfig, **runtime: Any) -> Trainer:
    """The trainer of the configuration, with what the stage passes.

    Raises:
        ValueError: Lightning takes a setting for impossible here.
    """
    with one_line_refusals(cfg):
        try:
            return build(cfg.trainer, **runtime)
        except (ValueError, TypeError, ImportError) as error:
            raise MisconfigurationException(str(error)) from error


def built_logger(cfg: DictConfig) -> Any:
    """The logger of the configuration; False for `logger=none`, as the trainer wants it.

    Raises:
        ValueError: what it writes could not be written where it is to be.
    """
    folder = cfg.logger.get("save_dir")
    if folder is not None and "://" not in str(folder) and is_main_process():
        refuse_unmakable(folder, "logger.save_dir")
    return build(cfg.logger) or False


@contextmanager
def one_line_refusals(cfg: DictConfig) -> Iterator[None]:
    """Turn Lightning's refusals inside the block into errors of the user that name the settings.

    Raises:
        ValueError: a MisconfigurationException was raised.
    """
    try:
        yield
    except MisconfigurationException as error:
        message = " ".join(str(error).split()).rstrip(".")
        settings, defaults = dict(cfg.trainer), _defaults()
        changed = [key for key, value in settings.items() if isinstance(value, str) and value != defaults.get(key)]
        words = {word.lower() for word in re.findall(r"\w+", message)}
        blamed = [key for key in settings if key in words or (key in changed and settings[key].lower() in words)]
        named = blamed or [key for key in changed if key not in ("_target_", "default_root_dir")]
        given = ", ".join(f"trainer.{key}={_shown(settings[key])}" for key in named)
        usual = " ".join(f"trainer.{key}={_shown(defaults[key])}" for key in named if key in defaults)
        raise ValueError(
            f"{given or 'trainer'}: {message}; the defaults are {usual or 'in trainer=default'}"
        ) from error


def _defaults() -> dict[str, Any]:
    node = OmegaConf.load(config_dir() / "trainer" / "default.yaml")
    assert isinstance(node, DictConfig)
    return {str(key): value for key, value in OmegaConf.to_container(node).items()}  # type: ignore[union-attr]


def _shown(value: Any) -> Any:
    return "null" if value is None else value
