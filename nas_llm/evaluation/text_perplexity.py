"""Perplexity of a long text under a causal language model, window by window.

A text of n tokens is cut into windows of ``window`` tokens, one beginning at every ``stride``-th. The model reads a
window but for its last token, (batch, window - 1) ids, and is scored on the tokens behind its first
max(window - stride, 1), which are context alone (of the first window: behind its first). With stride < window every
token but a text's first is scored exactly once. With stride = window the first token of each window is not scored,
for nothing stands before it: the way of GPTQ (Frantar et al., ICLR 2023), SparseGPT and Wanda, which also leave out an
incomplete last window.

    token perplexity = exp(NLL / scored tokens)
    word perplexity  = exp(NLL / words of the original text)    (Megatron-LM; UNAST, paper 3: WikiText-103)
    bits per byte    = NLL / (log 2 * bytes of the original text)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from nas_llm.evaluation.long_text import KEY, LongText, TextSource
from nas_llm.models.modes import evaluating

NOT_SCORED = -100


@dataclass(frozen=True)
class TextScore:
    """``nll`` in nats, summed over ``tokens``; words and bytes are None where a part of the text was not scored."""

    nll: float
    tokens: int
    words: int | None
    bytes: int | None

    @property
    def token_perplexity(self) -> float:
        return exponential(self.nll / self.tokens)

    @property
    def word_perplexity(self) -> float | None:
        return None if self.words is None else exponential(self.nll / self.words)

    @property
    def bits_per_byte(self) -> float | None:
        return None if self.bytes is None else self.nll / self.bytes / math.log(2)

    def metrics(self) -> list[dict[str, Any]]:
        """What there is of the three, each with its unit and the number of samples that it is a mean over."""
        figures = [
            ("token_perplexity", self.token_perplexity, "1", self.tokens),
            ("word_perplexity", self.word_perplexity, "1", self.words),
            ("bits_per_byte", self.bits_per_byte, "bits/byte", self.bytes),
        ]
        counts = {"tokens": self.tokens, "words": self.words}
        return [
            {"name": name, "value": value, "unit": unit, "samples": samples, **counts}
            for name, value, unit, samples in figures
            if value is not None
        ]


@dataclass(frozen=True)
class Window:
    """Tokens ``start`` to ``stop`` of a text, of which those from ``scored`` on are scored."""

    start: int
    scored: int
    stop: int


@dataclass(frozen=True)
class TextPerplexity(TextSource):
    """Perplexity of the text of a :class:`TextSource`, whose settings it has too.

    Args:
        window: tokens of a window; the model reads all but the last of them.
        stride: tokens from one window's beginning to the next; None: ``window``.
        drop_last: whether an incomplete last window is left out.
        max_windows: of each text, the first so many.
        batch_size: windows that are run together.

    Raises:
        ValueError: a field out of range.
    """

    window: int = 2048
    stride: int | None = None
    drop_last: bool = False
    max_windows: int | None = None
    batch_size: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("window", 2), ("batch_size", 1), ("max_windows", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{KEY}.{name}={value}: allowed is {least} or more")
        if self.stride is not None and not 1 <= self.stride <= self.window:
            raise ValueError(
                f"{KEY}.stride={self.stride}: allowed is 1 to {KEY}.window={self.window}, with which no token is "
                "passed over, or null for the window"
            )

    @property
    def variant(self) -> str:
        """What tells this measurement from others of the same text."""
        parts = [f"window {self.window}", f"stride {self.stride or self.window}"]
        parts += [f"first {self.max_windows} windows"] if self.max_windows is not None else []
        parts += [f"first {self.max_documents} documents"] if self.max_documents is not None else []
        return ", ".join([*parts, *(["every document by itself"] if self.join is None else [])])

    def windows(self, length: int) -> Iterator[Window]:
        """Those of a text of ``length`` tokens."""
        stride = self.stride or self.window
        context = max(self.window - stride, 1)
        for number in range(length if self.max_windows is None else self.max_windows):
            start = number * stride
            scored, stop = start + (context if number else 1), min(start + self.window, length)
            if scored >= stop or (self.drop_last and start + self.window > length):
                return
            yield Window(start, scored, stop)

    def __call__(self, model: PreTrainedModel, text: LongText) -> TextScore:
        """Runs the model, in evaluation mode for the time of it, on the windows of a text that :meth:`read` gave.

        Raises:
            ValueError: windows that are longer than the model has positions for, or a text of which none is scored.
        """
        found = [(row, window) for row in text.sequences for window in self.windows(len(row))]
        tokens = sum(window.stop - window.scored for _, window in found)
        if tokens == 0:
            longest = max(len(row) for row in text.sequences)
            raise ValueError(
                f"{KEY}.window={self.window} leaves no token of {text.name} to score: its longest text has {longest} "
                f"tokens; set {KEY}.window={max(longest, 2)} or less, or {KEY}.drop_last=false"
            )
        self._refuse_long(model, max(window.stop - window.start for _, window in found))
        ordered = sorted(found, key=lambda pair: pair[1].start - pair[1].stop)
        whole = tokens == sum(len(row) - 1 for row in text.sequences)
        with evaluating(model), torch.inference_mode():
            sums = [
                _summed(model, ordered[start : start + self.batch_size])
                for start in range(0, len(ordered), self.batch_size)
            ]
        return TextScore(math.fsum(sums), tokens, text.words if whole else None, text.bytes if whole else None)

    def _refuse_long(self, model: PreTrainedModel, longest: int) -> None:
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is None or longest - 1 <= positions:
            return
        mend = f"{KEY}.window={positions}"
        if self.stride is not None and self.stride > positions:
            mend += f" {KEY}.stride={positions}"
        raise ValueError(
            f"{KEY}.window={self.window}: the model has {positions} positions, and what is scored with less context "
            f"is another figure; set {mend}"
        )


def _summed(model: PreTrainedModel, windows: Sequence[tuple[np.ndarray, Window]]) -> float:
    """Nats of the scored tokens of a batch: right-padded inputs (batch, longest - 1), labels alike."""
    inputs, labels = [], []
    for row, window in windows:
        ids = torch.from_numpy(row[window.start : window.stop].astype(np.int64))
        inputs.append(ids[:-1])
        labels.append(ids[1:].clone())
        labels[-1][: window.scored - window.start - 1] = NOT_SCORED
    lengths = torch.tensor([len(row) for row in inputs])
    padded, targets = _padded(inputs, 0), _padded(labels, NOT_SCORED).to(model.device)
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    logits = model(input_ids=padded.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
    scored = targets != NOT_SCORED
    return F.cross_entropy(logits[scored].float(), targets[scored], reduction="none").double().sum().item()


def _padded(rows: Sequence[Tensor], value: int) -> Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def exponential(nats: float) -> float:
    """e to the power of it; infinite where that overflows."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
