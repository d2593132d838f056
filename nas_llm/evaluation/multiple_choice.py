"""Multiple-choice accuracy: which option has the highest log-likelihood after its context.

score(option) = sum_t log p(o_t | context, o_<t), or its mean over the option's tokens (``normalised``), which is what
lm-eval calls acc and (per byte there) acc_norm. An option is scored on the tokens it adds to those of the context.

What the options of an item begin with (their context, as a rule) is run once; its keys and values then serve every
option; models that keep none in order run whole sequences instead. An option's last token is not run at all, and
sequences that differ in it alone are one.

Shapes: beginnings (groups, longest beginning), left-padded; endings (endings, longest ending), right-padded, after the
keys and values (endings, heads, longest beginning, head size) of their groups; log-likelihoods (options,) per item.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from nas_llm.models.modes import evaluating

LEAST_SAVING = 0.3  # of an item's tokens, below which a second pass costs more than it saves

Pair = tuple[list[int], list[int]]  # the tokens of a context, and those that an option adds


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
    ends = np.cumsum([len(item.options) for item in items])[:-1]
    members = [pairs[first:last] for first, last in pairwise([0, *ends, len(pairs)])]
    sums = summed(model, members, batch_size=batch_size, pad=tokenizer.pad_token_id or 0)
    return [
        (of_item, np.array([len(option) for _, option in options]))
        for of_item, options in zip(sums, members, strict=True)
    ]


@torch.inference_mode()
def summed(
    model: PreTrainedModel, items: Sequence[Sequence[Pair]], *, batch_size: int = 64, pad: int = 0, shared: bool = True
) -> list[np.ndarray]:
    """For each item, the options' summed log-likelihoods in nats, of shape (options,).

    The model is in evaluation mode for the time of it.

    Args:
        model: a causal language model, a super-network's active sub-network too.
        items: of each option the tokens of its context and those that it adds, neither empty.
        batch_size: sequences that are run at once.
        pad: any token.
        shared: run what options begin with once; False: whole sequences, as for models without a cache.
    """
    groups = _groups(items, shared=shared and not _changes_with_length(model))
    sums = [np.zeros(len(options)) for options in items]
    with evaluating(model):
        for batch in _batches(groups, batch_size):
            if not _score(model, batch, sums, pad):  # keys and values of this model do not serve what follows
                whole = _groups(items, shared=False)
                for again in _batches(whole, batch_size):
                    _score(model, again, sums, pad)
                break
    return sums


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


@dataclass
class _Group:
    """Options that begin alike.

    beginning: their common tokens, run once.
    first: tokens up to the one that predicts the first that is scored: the shortest context, or the beginning.
    endings: the rest of each sequence but for its last token -> (item, option, context's length, option's tokens).
    """

    beginning: tuple[int, ...]
    first: int
    endings: dict[tuple[int, ...], list[tuple[int, int, int, list[int]]]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return max(1, sum(1 for ending in self.endings if ending))


def _groups(items: Sequence[Sequence[Pair]], *, shared: bool) -> list[_Group]:
    found: dict[tuple[int, ...], _Group] = {}
    for item, options in enumerate(items):
        runs = [(*context, *option[:-1]) for context, option in options]
        common = _common(runs, min(len(context) for context, _ in options)) if shared else 0
        for index, (run, (context, option)) in enumerate(zip(runs, options, strict=True)):
            beginning = run[:common] if common else run
            group = found.setdefault(beginning, _Group(beginning, len(beginning)))
            group.first = min(group.first, len(context))
            group.endings.setdefault(run[len(beginning) :], []).append((item, index, len(context), option))
    return list(found.values())


def _common(runs: Sequence[tuple[int, ...]], most: int) -> int:
    """Tokens that all begin with, at most those of the shortest context; 0 where running them once saves too little."""
    different = set(runs)
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*different, strict=False))
    common = min(most, sum(1 for _ in alike))
    saved = (len(different) - 1) * common
    return common if saved > LEAST_SAVING * sum(map(len, different)) else 0


def _batches(groups: Sequence[_Group], batch_size: int) -> Iterator[list[_Group]]:
    """The longest first, as memory errors then come at once; so many sequences each as `batch_size` says."""
    batch: list[_Group] = []
    for group in sorted(groups, key=lambda group: len(group.beginning), reverse=True):
        if batch and sum(other.rows for other in batch) + group.rows > batch_size:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _score(model: PreTrainedModel, groups: Sequence[_Group], sums: Sequence[np.ndarray], pad: int) -> bool:
    """Writes the options' sums; False, and none written, where the keys and values are not what the endings need."""
    rows = [(number, ending) for number, group in enumerate(groups) for ending in group.endings if ending]
    lengths = [len(group.beginning) for group in groups]
    ids, mask = _left_padded([group.beginning for group in groups], pad, model.device)
    cache = DynamicCache() if rows else None  # of whole layers: what slides out of a window is masked, not dropped
    kept = max(length - group.first + 1 for length, group in zip(lengths, groups, strict=True))
    begun = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=bool(rows),
        logits_to_keep=kept,
    ).logits
    ended: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    if cache is not None:
        length = ids.shape[1]
        whole = [isinstance(layer, DynamicLayer) and layer.get_seq_length() == length for layer in cache.layers]
        if not whole or not all(whole):
            return False
        logits = _endings(model, cache, mask, lengths, rows, pad)
        ended = {row: logits[index, : len(row[1])] for index, row in enumerate(rows)}
    for number, group in enumerate(groups):
        before = begun[number, begun.shape[1] - (lengths[number] - group.first + 1) :]
        for ending, options in group.endings.items():
            parts = [before, ended[number, ending]] if ending else [before]
            predicted = torch.cat(parts).float().log_softmax(-1)
            for item, index, context, option in options:
                tokens = torch.tensor(option, device=predicted.device)
                start = context - group.first
                chosen = predicted[start : start + len(option)].gather(1, tokens[:, None])
                sums[item][index] = chosen.double().sum().item()
    return True


def _endings(
    model: PreTrainedModel,
    cache: DynamicCache,
    mask: Tensor,
    lengths: Sequence[int],
    rows: Sequence[tuple[int, tuple[int, ...]]],
    pad: int,
) -> Tensor:
    """Logits (rows, longest ending, vocabulary) of endings after the beginnings of their groups."""
    device = mask.device
    of = torch.tensor([number for number, _ in rows], device=device)
    cache.batch_select_indices(of)
    endings = [torch.tensor(ending) for _, ending in rows]
    ids = torch.nn.utils.rnn.pad_sequence(endings, batch_first=True, padding_value=pad).to(device)
    sizes = torch.tensor([len(ending) for ending in endings], device=device)[:, None]
    steps = torch.arange(ids.shape[1], device=device)[None]
    starts = torch.tensor(lengths, device=device)[of][:, None]
    return model(
        input_ids=ids,
        attention_mask=torch.cat([mask[of], (steps < sizes).long()], 1),
        position_ids=starts + torch.minimum(steps, sizes - 1),  # padding stays within the model's positions
        past_key_values=cache,
        use_cache=True,
    ).logits


def _left_padded(sequences: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, sequences))
    ids = [[pad] * (longest - len(sequence)) + list(sequence) for sequence in sequences]
    mask = [[0] * (longest - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _changes_with_length(model: PreTrainedModel) -> bool:
    """Whether rotary frequencies follow the length of what is run, so that keys do not serve a longer sequence."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    kinds = [rope, *(child for child in rope.values() if isinstance(child, dict))]
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)
