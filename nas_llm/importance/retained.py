"""How much of the importance scores a sub-network of a sorted super-network keeps.

For every axis the share of the scores of the kept units, which are the most important ones:

    retained(theta) = mean of  share of hidden channels,
                               mean over all layers of the share of its heads,
                               mean over all layers of the share of its FFN neurons,

a dropped layer keeping nothing; where layers have scores of their own, the share of the kept ones is a fourth term.
Scores below zero are moved up by the smallest one of their axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nas_llm.architecture import Architecture


@dataclass(frozen=True)
class Retained:
    """``hidden`` (hidden + 1,), per layer ``heads`` (groups + 1, heads per group + 1) and ``ffn`` (ffn + 1,): shares of
    the first units; ``layers`` (depth,): share of every layer, or None."""

    hidden: np.ndarray | None
    heads: Mapping[int, np.ndarray]
    ffn: Mapping[int, np.ndarray]
    layers: np.ndarray | None
    depth: int

    @classmethod
    def of(cls, scores: Mapping[str, Tensor], full: Architecture) -> Retained:
        """From the scores that the network was sorted by, in the order of the unsorted network."""
        values = {key: score.float().cpu().double().numpy() for key, score in scores.items()}
        layers = values.get("layers")
        heads, ffn = {}, {}
        for index in range(full.num_layers):
            groups = values.get(f"layers.{index}.kv_groups")
            per_group = values.get(f"layers.{index}.heads_per_group")
            if groups is None and per_group is not None:
                groups = per_group.sum(1)
            if groups is not None:
                within = np.ones((len(groups), full.layers[index].heads_per_group)) if per_group is None else per_group
                if per_group is None:
                    within = within * groups[:, None]
                ordered = -np.sort(-within[np.argsort(-groups, kind="stable")], axis=1)
                heads[index] = _shares(ordered)
            if f"layers.{index}.ffn" in values:
                ffn[index] = _shares(-np.sort(-values[f"layers.{index}.ffn"]))
        hidden = _shares(-np.sort(-values["hidden"])) if "hidden" in values else None
        shares = None if layers is None else np.diff(_shares(layers))
        return cls(hidden, heads, ffn, shares, full.num_layers)

    def __call__(self, architecture: Architecture) -> float:
        """Between 0 and 1; higher is better."""
        terms = [] if self.hidden is None else [float(self.hidden[architecture.hidden])]
        if self.heads:
            kept = (
                self.heads[layer.index][layer.kv_groups, layer.heads_per_group]
                for layer in architecture.layers
                if layer.index in self.heads
            )
            terms.append(float(sum(kept)) / self.depth)
        if self.ffn:
            terms.append(
                sum(float(self.ffn[c.index][c.ffn]) for c in architecture.layers if c.index in self.ffn) / self.depth
            )
        if self.layers is not None:
            terms.append(float(sum(self.layers[layer.index] for layer in architecture.layers)))
        return sum(terms) / len(terms)


def _shares(scores: np.ndarray) -> np.ndarray:
    """Cumulative shares along all dimensions, with a zero before the first unit of each."""
    moved = scores - min(0.0, float(scores.min()))
    total = moved.sum()
    moved = moved / total if total > 0 else np.full(moved.shape, 1 / moved.size)
    for axis in range(moved.ndim):
        moved = np.cumsum(moved, axis=axis)
    return np.pad(moved, [(1, 0)] * moved.ndim)
