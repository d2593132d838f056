"""Plain text, packed into blocks of `sequence_length` tokens; the labels are the tokens.

A document is a record of a .json, .jsonl or .parquet file or hub dataset, or a part of a text file between
end-of-text marks. A text file without marks is one running text, cut into contiguous segments at blank lines.
Each document becomes [BOS] tokens EOS, with a BOS where the tokenizer itself puts one.
"""

import logging
import re
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from nas_llm.data.cache import adds_bos, encode, tokenizer_digest
from nas_llm.data.files import DataFiles, check_sequence_length
from nas_llm.data.module import SplitDataModule
from nas_llm.data.packing import pack
from nas_llm.data.records import TokenRecords
from nas_llm.data.sources import Source, text_field

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
SEGMENT_CHARACTERS = 4096  # of a text without marks; shorter where the file would give fewer than SEGMENTS of them
SEGMENTS = 64


class TextData(SplitDataModule):
    """Packed text from local files, a folder or a hub dataset.

    path: file, folder, or hub `owner/name[:split]`; field: the text's field in .json, .jsonl, .parquet and hub data.
    *_size: a fraction of the tokens of `path`, or a count of blocks; *_path: the split's own data, then without a size.
    batch_size: blocks of a global batch; max_records: read only the first documents of `path`.
    model_max_length: the positions the model has.

    Raises ValueError, naming the setting, for impossible settings, data that cannot be read or too few of them.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        path: str,
        *,
        sequence_length: int = 512,
        batch_size: int = 8,
        seed: int = 0,
        validation_size: float = 0.05,
        calibration_size: float = 64,
        test_size: float = 0.05,
        validation_path: str | None = None,
        calibration_path: str | None = None,
        test_path: str | None = None,
        field: str = "text",
        subset: str | None = None,
        max_records: int | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
        model_max_length: int | None = None,
    ) -> None:
        check_sequence_length(sequence_length, model_max_length)
        self.sequence_length, self.field = sequence_length, field
        self.files = DataFiles(
            path=path,
            paths={"validation": validation_path, "calibration": calibration_path, "test": test_path},
            sizes={"validation": validation_size, "calibration": calibration_size, "test": test_size},
            seed=seed,
            subset=subset,
            max_records=max_records,
            cache_dir=cache_dir,
        )
        super().__init__(tokenizer, batch_size=batch_size, seed=seed, num_workers=num_workers)
        self._documents: dict[str, TokenRecords] | None = None

    def prepare_data(self) -> None:
        """Tokenise what is not in the cache."""
        self._documents = self._tokenise()

    def build(self) -> dict[str, TokenRecords]:
        documents = self._tokenise() if self._documents is None else self._documents
        return {
            name: self._pack(name, split)
            for name, split in self.files.split(documents, block_length=self.sequence_length).items()
        }

    def _tokenise(self) -> dict[str, TokenRecords]:
        signature = {"kind": "text 1", "field": self.field, "tokenizer": tokenizer_digest(self.tokenizer)}
        return self.files.tokenise(self._read, signature)

    def _read(self, source: Source, limit: int | None) -> TokenRecords:
        texts = list(islice(documents(source, self.field, marks=(END_OF_TEXT, str(self.tokenizer.eos_token))), limit))
        if not texts:
            raise ValueError(
                f"{source.key}={source.path} is empty: no text in it; set {source.key} to a file with text"
            )
        bos = [self.tokenizer.bos_token_id] if adds_bos(self.tokenizer) else []
        return TokenRecords.from_lists(
            np.concatenate([[] if ids[:1].tolist() == bos else bos, ids, [self.tokenizer.eos_token_id]]).astype(
                np.int32
            )
            for ids in encode(self.tokenizer, texts)
        )

    def _pack(self, name: str, split: TokenRecords) -> TokenRecords:
        size = None if self.files.paths.get(name) else self.files.sizes.get(name)
        blocks = pack(split, self.sequence_length, at_most=size if isinstance(size, int) else None)
        if len(split) and not len(blocks) and size != 0:
            key = "data.path" if size is not None or name == "train" else f"data.{name}_path"
            raise ValueError(
                f"the {name} split of {key} holds {len(split.tokens)} tokens, less than one block of "
                f"data.sequence_length={self.sequence_length}; set a smaller data.sequence_length or give more text"
            )
        left = len(split.tokens) - len(blocks.tokens)
        log.info("%s: %d blocks of %d documents, %d tokens left over", name, len(blocks), len(split), left)
        return blocks


def documents(source: Source, field: str, marks: tuple[str, ...]) -> Iterator[str]:
    """The texts of a source in order, blank ones left out."""
    mend = "set data.field to the field that holds the text"
    for where, row in source.rows():
        if isinstance(row, str):
            yield from split_text(row, marks)
        elif (text := text_field(row, field, where, mend=mend)).strip():
            yield text


def split_text(text: str, marks: tuple[str, ...]) -> list[str]:
    """The documents between the marks; without any mark, segments whose concatenation is the text."""
    present = [mark for mark in marks if mark in text]
    if present:
        return [part.strip() for part in re.split("|".join(map(re.escape, present)), text) if part.strip()]
    return segments(text, target=min(SEGMENT_CHARACTERS, max(256, len(text) // SEGMENTS)))


def segments(text: str, target: int) -> list[str]:
    """Contiguous parts of target to 2 x target characters (the last may be shorter), cut after a blank line where there
    is one, else after a line, else after a space."""
    parts, start = [], 0
    while len(text) - start > 2 * target:
        window = text[start + target : start + 2 * target]
        cut = next((m.end() for m in (re.search(p, window) for p in (r"\n\s*\n", r"\n", r" ")) if m), len(window))
        parts.append(text[start : start + target + cut])
        start += target + cut
    return [part for part in (*parts, text[start:]) if part.strip()]
