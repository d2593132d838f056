"""Importance by weight magnitude: the l2 norm of all weights that belong to a unit. No data needed.

Score of unit u of an axis: sqrt(sum of w^2 over every weight tensor that carries the axis, at u).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_llm.models.elastic import ElasticModule
from nas_llm.models.supernet import Supernet

_LAYER_AXES: tuple[tuple[str, ...], ...] = (("kv_groups",), ("kv_groups", "heads_per_group"), ("ffn",))


@dataclass(frozen=True)
class Magnitude:
    """Weight norms of hidden channels, KV groups, heads and FFN neurons."""

    @torch.no_grad()
    def __call__(self, supernet: Supernet, batches: Iterable[Mapping[str, Tensor]] = ()) -> dict[str, Tensor]:
        """Scores per axis in float32; ``batches`` are not looked at."""
        modules = [module for layer in (supernet.shared_modules, *supernet.layer_modules) for module in layer]
        hidden = _squares(modules, ("hidden",))
        assert hidden is not None
        scores = {"hidden": hidden.sqrt()}
        for index, layer in enumerate(supernet.layer_modules):
            for axes in _LAYER_AXES:
                squares = _squares(layer, axes)
                if squares is not None:
                    scores[f"layers.{index}.{axes[-1]}"] = squares.sqrt()
        return scores


def _squares(modules: Sequence[ElasticModule], axes: tuple[str, ...]) -> Tensor | None:
    """Sum of squared weights per unit of ``axes``; None where no weight carries them all."""
    total: Tensor | None = None
    seen: set[int] = set()
    for module in modules:
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            for dim, layout in enumerate(module.elastic_layouts[name]):
                if layout.carries(axes):
                    others = [d for d in range(parameter.ndim) if d != dim]
                    squares = parameter.float().square()
                    folded = layout.fold(squares.sum(others) if others else squares, module.elastic_full, axes)
                    total = folded if total is None else total + folded
    return total
