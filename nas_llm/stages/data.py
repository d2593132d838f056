"""The data of a run as every stage sees them: the same splits, and no longer sequences than the model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from nas_llm.config import build, sources_of
from nas_llm.models.supernet import Supernet
from nas_llm.run_fingerprints import refuse_mismatch

HANDLING = ("batch_size", "num_workers", "cache_dir")  # of the data: no matter for what is in the splits


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
    refuse_mismatch(run_dir, {"data": data.fingerprint}, settings={"data": data_settings(cfg)})
    return data


def data_settings(cfg: DictConfig) -> dict[str, Any]:
    """What the content of the splits follows from, by the key that a user sets: `seed`, where `data.seed` is that."""
    plain: Any = OmegaConf.to_container(cfg.data, resolve=True)
    sources = sources_of(OmegaConf.to_container(cfg.data, resolve=False), "data")
    content = {f"data.{key}": value for key, value in plain.items() if key not in HANDLING}
    return {sources.get(key, key): value for key, value in content.items()}
