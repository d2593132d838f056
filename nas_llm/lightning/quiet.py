"""Lightning and transformers without tips, device listings, bars of their own and warnings that nobody can act on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
_NOISE = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*Experiment logs directory .* exists and is not empty.*",
    r".*does not have many workers.*",
    r".*lr_scheduler\.step\(\)` before `optimizer\.step\(\)`.*",
    r".*is smaller than the logging interval.*",
    r".*gradient_checkpointing_enable` is deprecated.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block they say what is wrong and nothing else."""
    bars = transformers_logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        transformers_logging.disable_progress_bar()
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in _NOISE:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
