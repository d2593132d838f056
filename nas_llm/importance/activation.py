"""Importance by activations on calibration data, as in Minitron, on which paper 1 (section 4.2) and paper 4 build.

- FFN neuron: its intermediate activation (what the down projection reads);
- head: the l2 norm of its attention output (what the output projection reads); a KV group: the sum over its heads;
- hidden channel: the outputs of all normalisation layers, summed over layers.

Activations (batch, sequence, units) are reduced over the tokens of a sample, then over samples; by default the mean
absolute value over tokens and the l2 norm over samples. Padding does not count. One pass, statistics in float32, no
copy of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nas_llm.models.elastic import ElasticModule
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

    @torch.no_grad()
    def __call__(self, supernet: Supernet, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Scores per axis, float32, on the CPU: ``hidden``; per layer ``ffn``, ``heads_per_group``, ``kv_groups``."""
        statistics: dict[str, _Statistic] = {}
        mode = supernet.model.training
        supernet.model.eval()
        device = supernet.model.device
        try:
            with _recording(supernet, self.tokens, statistics) as start:
                for batch in batches:
                    moved = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
                    start(moved["attention_mask"])
                    supernet.model(**moved, use_cache=False)
        finally:
            supernet.model.train(mode)
        if not statistics:
            raise ValueError(
                "importance needs calibration data, there is no batch; data.calibration_size must be at least 1"
            )
        return _scores({key: statistic.reduced(self.samples) for key, statistic in statistics.items()})


@dataclass
class _Statistic:
    """Running sums over samples of values per unit."""

    total: Tensor
    absolute: Tensor
    squares: Tensor
    samples: int

    @classmethod
    def zeros(cls, like: Tensor) -> _Statistic:
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


@contextmanager
def _recording(
    supernet: Supernet, tokens: Reduction, statistics: dict[str, _Statistic]
) -> Iterator[Callable[[Tensor], None]]:
    """Hooks that gather statistics of every axis; the yielded function announces the mask of the next batch."""
    mask: list[Tensor] = []
    handles = []

    def record(key: str, values: Tensor) -> None:
        sample = _over_tokens(values.float().reshape(*mask[0].shape, *values.shape[-1:]), mask[0], tokens)
        statistics.setdefault(key, _Statistic.zeros(sample[0])).add(sample)

    def record_heads(key: str, values: Tensor, module: ElasticModule) -> None:
        sizes = module.elastic_full
        heads = (sizes["kv_groups"], sizes["heads_per_group"], sizes["head_dim"])
        norms = values.float().reshape(*mask[0].shape, *heads).norm(dim=-1).flatten(2)
        sample = _over_tokens(norms, mask[0], tokens).unflatten(1, heads[:2])
        statistics.setdefault(key, _Statistic.zeros(sample[0])).add(sample)

    def input_hook(key: str, heads: bool) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            record_heads(key, args[0], module) if heads else record(key, args[0])

        return hook

    def norm_hook(module: nn.Module, args: Any, output: Tensor) -> None:
        record(f"norm.{id(module)}", output)

    def start(attention_mask: Tensor) -> None:
        mask[:] = [attention_mask]

    try:
        for module in supernet.shared_modules:
            if _is_hidden_norm(module):
                handles.append(module.register_forward_hook(norm_hook))
        for index, layer in enumerate(supernet.layer_modules):
            for module in layer:
                if _is_hidden_norm(module):
                    handles.append(module.register_forward_hook(norm_hook))
                elif isinstance(module, nn.Linear | Conv1D):
                    layout = module.elastic_layouts["weight"][0 if isinstance(module, Conv1D) else 1]
                    if layout.carries(("ffn",)):
                        handles.append(module.register_forward_pre_hook(input_hook(f"layers.{index}.ffn", False)))
                    elif layout.carries(("kv_groups",)):
                        handles.append(module.register_forward_pre_hook(input_hook(f"layers.{index}.heads", True)))
        yield start
    finally:
        for handle in handles:
            handle.remove()


def _is_hidden_norm(module: ElasticModule) -> bool:
    layout = module.elastic_layouts["weight"]
    return len(layout) == 1 and layout[0].carries(("hidden",))


def _over_tokens(values: Tensor, mask: Tensor, how: Reduction) -> Tensor:
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
