"""The text that a perplexity is measured on: its tokens, and the words and bytes that it counts by other units.

Documents are records of a .json, .jsonl or .parquet file or a hub dataset, whole text files, their lines, or what lies
between their end-of-text marks. They are joined into one text, or each is a text of its own; token ids are int32 of
shape (length,).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from nas_llm.data.cache import adds_bos, encode
from nas_llm.data.sources import Source, open_source, text_field
from nas_llm.data.text import END_OF_TEXT, split_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEY = "text_perplexity"
BLANK = " \n"  # a line of a WikiText file that a hub dataset holds as ""


@dataclass(frozen=True)
class LongText:
    """``sequences`` of token ids, (length,) each; ``words`` and ``bytes`` of the text that they were made from."""

    name: str
    sequences: tuple[np.ndarray, ...]
    words: int
    bytes: int


@dataclass(frozen=True)
class TextSource:
    """Where a text comes from and what it is made of.

    Args:
        path: a file, a folder, or a hub dataset ``owner/name[:split]``.
        field: of the text in .json, .jsonl, .parquet and hub records.
        subset: a hub dataset's configuration.
        hub_file: one file of a hub dataset, where the rest is not to be fetched.
        lines: every line of a text file is a document; a blank one is "", others keep their line break, as in the hub's
            WikiText.
        join: what stands between documents; None leaves each a text of its own.
        wikitext: the documents are WikiText's lines, whose tokens ("@-@", spaced punctuation) are put together to prose
            before they are tokenised. Words are those of the original text, which count a line's end as one.
        max_documents: the first so many.
        bos: whether a text begins with the beginning of sequence; None where the tokenizer itself puts one.

    Raises:
        ValueError: a limit below 1.
    """

    path: str
    field: str = "text"
    subset: str | None = None
    hub_file: str | None = None
    lines: bool = False
    join: str | None = "\n\n"
    wikitext: bool = False
    max_documents: int | None = None
    bos: bool | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError(f"{KEY}.path={self.path!r} names no text; set {KEY}.path to a file, folder or hub dataset")
        if self.max_documents is not None and self.max_documents < 1:
            raise ValueError(f"{KEY}.max_documents={self.max_documents}: allowed is 1 or more, or null for all")

    def read(self, tokenizer: PreTrainedTokenizerBase) -> LongText:
        """The tokens, with no special ones but a beginning of sequence in front of each text.

        Raises:
            ValueError: data that cannot be read, no text in it, or ``bos=true`` where the tokenizer has none.
        """
        source = open_source(self.path, f"{KEY}.path", self.subset, self.hub_file)
        documents = list(islice(self._documents(source, _marks(tokenizer)), self.max_documents))
        texts = documents if self.join is None else [self.join.join(documents)]
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise ValueError(f"{KEY}.path={self.path}: there is no text in it; set {KEY}.path to one that has some")
        begin = self._begin(tokenizer)
        spelt = [_prose(text) for text in texts] if self.wikitext else texts
        ids = encode(tokenizer, spelt)
        return LongText(
            name=f"{self.path} ({self.subset})" if source.hub is not None and self.subset is not None else self.path,
            sequences=tuple(np.concatenate([begin, row]).astype(np.int32) for row in ids),
            words=sum(len(text.strip().split(" ") if self.wikitext else text.split()) for text in texts),
            bytes=sum(len(text.encode()) for text in texts),
        )

    def _documents(self, source: Source, marks: tuple[str, ...]) -> Iterator[str]:
        mend = f"set {KEY}.field to the field that holds the text"
        for where, row in source.rows():
            if not isinstance(row, str):
                text = text_field(row, self.field, where, mend=mend)
                yield BLANK if self.wikitext and not text.strip() else text
            elif self.lines and not self.wikitext:
                yield from (line if line.strip() else "" for line in re.findall(r"[^\n]*\n|[^\n]+", row))
            elif any(mark in row for mark in marks):
                yield from split_text(row, marks)
            else:
                yield row

    def _begin(self, tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
        wanted = adds_bos(tokenizer) if self.bos is None else self.bos
        if wanted and tokenizer.bos_token_id is None:
            raise ValueError(
                f"{KEY}.bos=true: the tokenizer has no beginning of sequence; set {KEY}.bos=null to begin as it does"
            )
        return [int(tokenizer.bos_token_id)] if wanted else []  # type: ignore[arg-type]


def _marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What ends a document in a text file."""
    return (END_OF_TEXT,) if tokenizer.eos_token is None else (END_OF_TEXT, str(tokenizer.eos_token))


def _prose(text: str) -> str:
    """WikiText's tokens put together, as Megatron-LM does it; the harness has the same function."""
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    return wikitext_detokenizer({"page": text})
