"""The tokenizer of a model: beside it, or alone in a directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from nas_llm.models.model_directory import (
    MODEL_TYPE,
    config_keys,
    first_line,
    not_found,
    refuse_family,
    refuse_missing,
    resolve,
)
from nas_llm.models.stock import base_config


def load_tokenizer(
    name_or_path: str | Path, *, trust_remote_code: bool = False, setting: str = "model.path"
) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, or alone in a directory; errors name ``setting`` as the key it came from.

    Raises:
        ValueError: there is none, or the model beside it is none that this program knows.
    """
    path = resolve(name_or_path)
    folder = Path(path)
    refuse_missing(path, setting)
    own: Mapping[str, Any] | None = None
    if (folder / "config.json").is_file():
        keys = config_keys(path, setting)
        own = keys.get("nas_llm") if keys["model_type"] == MODEL_TYPE else None
        if setting == "model.path" and keys["model_type"] != MODEL_TYPE:
            refuse_family(path, keys["model_type"])
    if folder.is_dir() and not any(folder.glob("*token*")) and not any(folder.glob("vocab.*")):
        raise ValueError(
            f"{setting}={path}: no tokenizer in this directory (tokenizer.json and tokenizer_config.json); "
            "copy it there or name one: model.tokenizer_path=<directory or hub name>"
        )
    try:
        # of a cut model transformers would look for a class of its configuration, and warn that there is none
        config = None if own is None else base_config(own)
        return AutoTokenizer.from_pretrained(path, config=config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # a damaged file fails in any way
        if not folder.is_dir() and not _has_config(path):
            raise ValueError(not_found(path, setting)) from error
        raise ValueError(
            f"{setting}={path}: its tokenizer does not load ({first_line(error)}); "
            "name one: model.tokenizer_path=<directory or hub name>"
        ) from error


def _has_config(path: str) -> bool:
    try:
        AutoConfig.from_pretrained(path)
    except OSError:
        return False
    return True
