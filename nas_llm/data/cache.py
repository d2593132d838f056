"""Tokenised records on disk: one safetensors file per (content of the source, tokenizer, way of tokenising).

Files are written to a temporary name and renamed, so that concurrent processes at worst do the same work twice.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from nas_llm.data.records import TokenRecords

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

DEFAULT_CACHE_DIR = "~/.cache/nas_llm"


def cached_records(
    make: Callable[[], TokenRecords], signature: dict[str, Any], cache_dir: str | None = None
) -> TokenRecords:
    """The records that `make` gives, read from the cache where a file for the JSON-able `signature` lies in it.

    Raises ValueError naming data.cache_dir if that folder cannot be written.
    """
    key = hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest()[:24]
    folder = Path(cache_dir or DEFAULT_CACHE_DIR).expanduser() / "tokens"
    path = folder / f"{key}.safetensors"
    if path.is_file():
        try:
            arrays = load_file(path)
            log.info("tokenised data: cache hit, %d records from %s", len(arrays["masked"]), path)
            return TokenRecords(arrays["tokens"], arrays["offsets"], arrays["masked"])
        except (SafetensorError, KeyError):
            log.warning("tokenised data: %s is damaged and is made anew", path)
    records = make()
    _write(records, path)
    log.info("tokenised data: cache miss, %d records tokenised into %s", len(records), path)
    return records


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of all that decides which tokens a text becomes."""
    from transformers import PreTrainedTokenizerFast

    if isinstance(tokenizer, PreTrainedTokenizerFast):
        content = tokenizer.backend_tokenizer.to_str()
    else:
        content = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    special = json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id, sorted(tokenizer.all_special_tokens)])
    return hashlib.sha256((content + special).encode()).hexdigest()


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer itself begins a text with its BOS, which tells that the model was trained so."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], batch_size: int = 1000) -> list[np.ndarray]:
    """The tokens of each text, int32 of shape (length,), with no special token added."""
    encoded: list[np.ndarray] = []
    for first in range(0, len(texts), batch_size):
        batch = list(texts[first : first + batch_size])
        ids = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        encoded.extend(np.asarray(row, dtype=np.int32) for row in ids)
    return encoded


def _write(records: TokenRecords, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"tokens": records.tokens, "offsets": records.offsets, "masked": records.masked}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise ValueError(
            f"data.cache_dir: cannot write {path} ({error}); set data.cache_dir to a writable folder with free space"
        ) from error
