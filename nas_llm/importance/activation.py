"""Importance by activations on calibration data, as in Minitron, on which paper 1 (section 4.2) and paper 4 build.

- FFN neuron: its intermediate activation (what the down projection reads);
- head: the l2 norm of its attention output (what the output projection reads); a KV group: the sum over its heads;
- hidden channel: the outputs of all normalisation layers, summed over layers.

Activations (batch, sequence, units) are reduced over the tokens of a sample, then over samples; by default the mean
absolute value over tokens and the l2 norm over samples. Padding does not count. One pass, statistics in float32, no
copy of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nas_llm.importance.recording import Batches, hidden_norms, observe, per_token, readers
from nas_llm.models.supernet import Supernet

Reduction = Literal["mean", "abs_mean", "l2", "variance"]


@dataclass(frozen=True)
class Activation:
    """Mean activations of a calibration set; ``tokens`` and ``samples`` say how the two dimensions are reduced.

    Raises:
        ValueError: an unknown reduction; when called: no batch.
    """

    tokens: Reduction = "abs_mean"
    samples: Reduction = "l2"

    def __post_init__(self) -> None:
        for key, value in (("tokens", self.tokens), ("samples", self.samples)):
            if value not in get_args(Reduction):
                raise ValueError(f"importance.{key}={value!r}: allowed are {', '.join(get_args(Reduction))}")

    def __call__(self, supernet: Supernet, batches: Batches) -> dict[str, Tensor]:
        """Scores per axis, float32, on the CPU: ``hidden``; per layer ``ffn``, ``heads_per_group``, ``kv_groups``."""
        statistics: dict[str, Statistic] = {}
        attention = {f"layers.{reader.layer}.heads": reader.module for reader in readers(supernet, "kv_groups")}
        modules: dict[str, nn.Module] = {f"norm.{n}": norm for n, norm in enumerate(hidden_norms(supernet))}
        modules |= {f"layers.{reader.layer}.ffn": reader.module for reader in readers(supernet, "ffn")}

        def record(key: str, read: Tensor, written: Tensor, mask: Tensor) -> None:
            values = per_token(written if key.startswith("norm.") else read, mask)
            if key in attention:
                sizes = attention[key].elastic_full
                heads = (sizes["kv_groups"], sizes["heads_per_group"])
                values = values.unflatten(2, (*heads, sizes["head_dim"])).norm(dim=-1).flatten(2)
                sample = over_tokens(values, mask, self.tokens).unflatten(1, heads)
            else:
                sample = over_tokens(values, mask, self.tokens)
            statistics.setdefault(key, Statistic.zeros(sample[0])).add(sample)

        observe(supernet, batches, modules | attention, record)
        return _scores({key: statistic.reduced(self.samples) for key, statistic in statistics.items()})


@dataclass
class Statistic:
    """Running sums over samples of values per unit."""

    total: Tensor
    absolute: Tensor
    squares: Tensor
    samples: int

    @classmethod
    def zeros(cls, like: Tensor) -> Statistic:
        return cls(torch.zeros_like(like), torch.zeros_like(like), torch.zeros_like(like), 0)

    def add(self, values: Tensor) -> None:
        """values: (samples, ...units)."""
        self.total += values.sum(0)
        self.absolute += values.abs().sum(0)
        self.squares += values.square().sum(0)
        self.samples += values.shape[0]

    def reduced(self, how: Reduction) -> Tensor:
        mean = self.total / self.samples
        if how == "mean":
            return mean
        if how == "abs_mean":
            return self.absolute / self.samples
        return self.squares.sqrt() if how == "l2" else self.squares / self.samples - mean.square()


def over_tokens(values: Tensor, mask: Tensor, how: Reduction) -> Tensor:
    """(batch, sequence, units) -> (batch, units) over the tokens that the mask keeps."""
    weight = mask.to(values.dtype).unsqueeze(-1)
    count = weight.sum(1).clamp(min=1)
    if how == "abs_mean":
        return (values.abs() * weight).sum(1) / count
    if how == "l2":
        return (values.square() * weight).sum(1).sqrt()
    mean = (values * weight).sum(1) / count
    return mean if how == "mean" else (values.square() * weight).sum(1) / count - mean.square()


def _scores(reduced: Mapping[str, Tensor]) -> dict[str, Tensor]:
    norms = [value for key, value in reduced.items() if key.startswith("norm.")]
    scores = {"hidden": torch.stack(norms).sum(0)}
    for key, value in reduced.items():
        if key.endswith(".ffn"):
            scores[key] = value
        elif key.endswith(".heads"):
            layer = key.removesuffix("heads")
            scores[f"{layer}heads_per_group"] = value
            scores[f"{layer}kv_groups"] = value.sum(1)
    return {key: value.cpu() for key, value in scores.items()}
