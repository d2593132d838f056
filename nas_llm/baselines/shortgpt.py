"""ShortGPT (Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
arXiv:2403.03853): the layers of the lowest block influence go, all at once.

Block influence, equation 1: BI_i = 1 - E[x_i . x_{i+1} / (|x_i| |x_{i+1}|)] over tokens, x_i (hidden,) what layer i
reads and x_{i+1} what it writes; ``importance/block.py`` measures it in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from nas_llm.baselines import Batches, Pruned
from nas_llm.baselines.budget import Budget
from nas_llm.baselines.layers import refuse_depth, without_layers
from nas_llm.importance.block import Block
from nas_llm.models.supernet import Supernet


@dataclass(frozen=True)
class ShortGPT:
    """At most ``max_params`` (up to 1: a fraction of the network's) or ``layers_removed``; None and None: 0.75.

    Raises:
        ValueError: both are given, or one is out of range.
    """

    max_params: float | None = None
    layers_removed: int | None = None

    def __post_init__(self) -> None:
        _ = self.budget

    @property
    def budget(self) -> Budget:
        return Budget.of(self.max_params, self.layers_removed, "layers_removed")

    def refuse(self, supernet: Supernet) -> None:
        refuse_depth(supernet, self.budget)

    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        scores = Block("cosine")(supernet, batches())["layers"].tolist()
        return without_layers(supernet, scores, self.budget, method="ShortGPT", criterion="block influence")
