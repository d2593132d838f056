"""Multiple-choice accuracy: which option has the highest log-likelihood after its context.

score(option) = sum_t log p(o_t | context, o_<t), or its mean over the option's tokens (``normalised``), which is what
lm-eval calls acc and (per byte there) acc_norm. An option is scored on the tokens it adds to those of the context.
Sequences that share all but their last token (options of one token, above all) are run once.

Shapes: input ids (batch, longest), right-padded; log-likelihoods (options,) per item.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Choice(Protocol):
    """One item: ``options[answer]`` is the right continuation of ``context``."""

    @property
    def context(self) -> str: ...
    @property
    def options(self) -> Sequence[str]: ...
    @property
    def answer(self) -> int: ...


@dataclass(frozen=True)
class Accuracy:
    """Shares of ``samples`` items answered rightly, in 0..1, by the summed and by the per-token log-likelihood."""

    summed: float
    normalised: float
    samples: int

    @property
    def standard_error(self) -> float:
        """Of ``summed``: sqrt(p (1 - p) / (n - 1)), 0 for a single item."""
        return (self.summed * (1 - self.summed) / max(self.samples - 1, 1)) ** 0.5


def accuracies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Choice]],
    *,
    batch_size: int = 64,
) -> dict[str, Accuracy]:
    """The accuracy on each set.

    Raises:
        ValueError: an empty set, or an item that cannot be scored (see ``log_likelihoods``).
    """
    for name, items in sets.items():
        if not items:
            raise ValueError(f"the multiple-choice set {name!r} is empty: give it at least one item")
    items = [item for members in sets.values() for item in members]
    scored = log_likelihoods(model, tokenizer, items, batch_size=batch_size)
    right = [
        (int(sums.argmax()) == item.answer, int((sums / counts).argmax()) == item.answer)
        for item, (sums, counts) in zip(items, scored, strict=True)
    ]
    found, start = {}, 0
    for name, members in sets.items():
        summed, normalised = np.mean(right[start : start + len(members)], axis=0)
        found[name] = Accuracy(float(summed), float(normalised), len(members))
        start += len(members)
    return found


def log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Choice], *, batch_size: int = 64
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each item, the options' summed log-likelihoods (nats) and numbers of tokens, both of shape (options,).

    The model is in evaluation mode for the time of it.

    Raises:
        ValueError: an item that ``encode`` refuses, or that exceeds the model's positions.
    """
    pairs = encode(tokenizer, items)
    _check_lengths(model, pairs)
    sums = _sums(model, pairs, batch_size, pad=tokenizer.pad_token_id or 0)
    counts = np.array([len(option) for _, option in pairs])
    ends = np.cumsum([len(item.options) for item in items])[:-1]
    return list(zip(np.split(sums, ends), np.split(counts, ends), strict=True))


def encode(tokenizer: PreTrainedTokenizerBase, items: Sequence[Choice]) -> list[tuple[list[int], list[int]]]:
    """For every option of every item in turn: the context's tokens and those that the option adds to them.

    Trailing spaces of the context are tokenised with the option, as tokenizers join a space to the word after it.

    Raises:
        ValueError: fewer than two options, an answer out of range, an option that adds no token.
    """
    contexts, options = [], []
    for item in items:
        if len(item.options) < 2 or not 0 <= item.answer < len(item.options):
            raise ValueError(f"answer {item.answer} of {len(item.options)} options: an item has two options or more")
        stripped = item.context.rstrip(" ")
        contexts += [stripped] * len(item.options)
        options += [item.context[len(stripped) :] + option for option in item.options]
    if not contexts:
        return []
    before = tokenizer(contexts)["input_ids"]
    whole = tokenizer([context + option for context, option in zip(contexts, options, strict=True)])["input_ids"]
    for given, joint, context, option in zip(before, whole, contexts, options, strict=True):
        if not given or len(joint) <= len(given):
            raise ValueError(f"the option {option!r} after {context[-40:]!r} adds no token: both need text")
    return [(joint[: len(given)], joint[len(given) :]) for given, joint in zip(before, whole, strict=True)]


def _check_lengths(model: PreTrainedModel, pairs: Sequence[tuple[list[int], list[int]]]) -> None:
    longest = max((len(context) + len(option) for context, option in pairs), default=0)
    allowed = getattr(model.config, "max_position_embeddings", None)
    if allowed is not None and longest > allowed:
        raise ValueError(f"an item has {longest} tokens, the model has {allowed} positions: shorten its context")


@torch.inference_mode()
def _sums(
    model: PreTrainedModel, pairs: Sequence[tuple[list[int], list[int]]], batch_size: int, pad: int
) -> np.ndarray:
    wanted: dict[tuple[int, ...], list[int]] = {}
    for index, (context, option) in enumerate(pairs):
        wanted.setdefault((*context, *option[:-1]), []).append(index)
    inputs = sorted(wanted, key=len, reverse=True)  # the largest batch first: memory errors come at once
    sums = np.zeros(len(pairs))
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for start in range(0, len(inputs), batch_size):
            batch = inputs[start : start + batch_size]
            log_probabilities = _log_probabilities(model, batch, pad)
            for row, sequence in zip(log_probabilities, batch, strict=True):
                for index in wanted[sequence]:
                    tokens = torch.tensor(pairs[index][1], device=row.device)
                    first = len(sequence) - len(tokens)  # the context's last token predicts the first of the option
                    sums[index] = row[first : len(sequence)].gather(1, tokens[:, None]).sum().item()
    finally:
        for module, was_training in training.items():
            module.training = was_training
    return sums


def _log_probabilities(model: PreTrainedModel, batch: Iterable[tuple[int, ...]], pad: int) -> torch.Tensor:
    rows = [torch.tensor(sequence) for sequence in batch]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad).to(model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    attention_mask = (torch.arange(input_ids.shape[1], device=model.device) < lengths[:, None]).long()
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    return logits.float().log_softmax(-1)
