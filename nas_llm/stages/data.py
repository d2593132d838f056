"""The data of a run as every stage sees them: the same splits, and no longer sequences than the model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from nas_llm.config import build
from nas_llm.models.supernet import Supernet
from nas_llm.run_directory import refuse_mismatch


def prepared_data(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, supernet: Supernet) -> Any:
    """The data module, set up; the model bounds the sequence length.

    Raises:
        ValueError: `data.sequence_length` is above the model's positions; and what the data module raises.
    """
    positions = getattr(supernet.config, "max_position_embeddings", None)
    data = build(cfg.data, tokenizer=tokenizer, model_max_length=positions)
    data.prepare_data()
    data.setup()
    return data


def recorded_data(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, supernet: Supernet, run_dir: Path) -> Any:
    """The data module of a finished run: with other splits, what trained the network would be what measures it.

    Raises:
        ValueError: as `prepared_data`, or the content of the splits is not the run's.
    """
    data = prepared_data(cfg, tokenizer, supernet)
    refuse_mismatch(run_dir, {"data": data.fingerprint})
    return data
