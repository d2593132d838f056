"""Shortened LLaMA (Kim et al., "Shortened LLaMA: Depth Pruning for Large Language Models with Comparison of Retraining
Methods", arXiv:2402.02834): the layers whose removal costs least go, all at once; the first four and the last two stay.

- ``perplexity``: that of the network without the layer on the calibration data; the order is the loss's, which no large
  network overflows. One pass for every layer.
- ``taylor``: sum over the weights w of the layer's projections of |w dL/dw|, L the mean token cross-entropy of the
  whole calibration set. One backward pass; gradients of all projections are held, in their own precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch

from nas_llm.baselines import Batch, Batches, Pruned
from nas_llm.baselines.budget import Budget
from nas_llm.baselines.layers import refuse_depth, without_layers
from nas_llm.importance.block import Block
from nas_llm.importance.taylor import mean_gradients
from nas_llm.models.block_walk import projections
from nas_llm.models.supernet import Supernet

Criterion = Literal["perplexity", "taylor"]


@dataclass(frozen=True)
class ShortenedLlama:
    """``criterion`` as above; ``keep_first`` and ``keep_last`` layers stay; sizes as in
    :class:`~nas_llm.baselines.shortgpt.ShortGPT`.

    Raises:
        ValueError: an unknown criterion, a number of layers below 0, and as that.
    """

    max_params: float | None = None
    layers_removed: int | None = None
    criterion: Criterion = "perplexity"
    keep_first: int = 4
    keep_last: int = 2

    def __post_init__(self) -> None:
        _ = self.budget
        if self.criterion not in get_args(Criterion):
            raise ValueError(f"baseline.criterion={self.criterion}: allowed are {', '.join(get_args(Criterion))}")
        for key, value in {"keep_first": self.keep_first, "keep_last": self.keep_last}.items():
            if value < 0:
                raise ValueError(f"baseline.{key}={value}: allowed is 0 or more layers, as baseline.{key}=1")

    @property
    def budget(self) -> Budget:
        return Budget.of(self.max_params, self.layers_removed, "layers_removed")

    def refuse(self, supernet: Supernet) -> None:
        """Raises ValueError where too few layers may go, or, for ``taylor``, where some have no gradients."""
        depth = supernet.largest().num_layers
        if self.keep_first + self.keep_last >= depth:
            raise ValueError(
                f"baseline.keep_first={self.keep_first} and baseline.keep_last={self.keep_last} keep all {depth} "
                f"layers of this network: set fewer, as baseline.keep_first={min(1, depth - 1)} baseline.keep_last=0"
            )
        refuse_depth(supernet, self.budget, kept=self._kept(depth))
        if self.criterion == "taylor":
            for projection in (p for of_layer in projections(supernet) for p in of_layer):
                _ = projection.parameter  # a quantised one refuses

    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        kept = self._kept(supernet.largest().num_layers)
        if self.criterion == "taylor":
            scores, name = taylor_scores(supernet, batches()), "sum of |weight x gradient|"
        else:
            scores, name = Block("loss")(supernet, batches())["layers"].tolist(), "growth of the loss without it"
        return without_layers(supernet, scores, self.budget, kept=kept, method="Shortened LLaMA", criterion=name)

    def _kept(self, depth: int) -> list[int]:
        return [*range(self.keep_first), *range(depth - self.keep_last, depth)]


def taylor_scores(supernet: Supernet, batches: Iterable[Batch]) -> list[float]:
    """One score for every layer. The model's gradients, ``requires_grad`` and modes are left as they are.

    Raises:
        ValueError: no batch, or no labelled token in them.
    """
    layers = [[projection.parameter for projection in of_layer] for of_layer in projections(supernet)]
    weights = [weight for layer in layers for weight in layer]
    gradients = mean_gradients(supernet, weights, batches)
    with torch.no_grad():
        each = [
            float((w.float() * g.float()).abs().sum(dtype=torch.float64))
            for w, g in zip(weights, gradients, strict=True)
        ]
    ends = torch.tensor([0, *(len(layer) for layer in layers)]).cumsum(0).tolist()
    return [sum(each[begin:end]) for begin, end in pairwise(ends)]
