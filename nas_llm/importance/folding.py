"""Sums over the weights that belong to a unit, for every unit of every width axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from nas_llm.models.elastic import ElasticModule
from nas_llm.models.supernet import Supernet

HIDDEN_AXES = (("hidden",),)
LAYER_AXES = (("hidden",), ("kv_groups",), ("kv_groups", "heads_per_group"), ("ffn",))


def fold_weights(supernet: Supernet, values: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
    """Sum of ``values(parameter)``, of the parameter's shape, over all weights of a unit: ``hidden``, and per layer
    ``kv_groups``, ``heads_per_group``, ``ffn``, as far as weights carry them.

    A tied weight counts once. A weight belongs to the unit of every dimension that it has, as W[i, j] of an up
    projection to FFN neuron i and to hidden channel j.
    """
    totals: dict[str, Tensor] = {}
    seen: set[int] = set()
    _fold(supernet.shared_modules, HIDDEN_AXES, "", values, totals, seen)
    for index, modules in enumerate(supernet.layer_modules):
        _fold(modules, LAYER_AXES, f"layers.{index}.", values, totals, seen)
    return totals


def _fold(
    modules: Sequence[ElasticModule],
    axes_of: Sequence[tuple[str, ...]],
    prefix: str,
    values: Callable[[nn.Parameter], Tensor],
    totals: dict[str, Tensor],
    seen: set[int],
) -> None:
    for module in modules:
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            whole = values(parameter)
            for dim, layout in enumerate(module.elastic_layouts[name]):
                carried = [axes for axes in axes_of if layout.carries(axes)]
                others = [d for d in range(whole.ndim) if d != dim]
                sums = whole.sum(others) if others and carried else whole
                for axes in carried:
                    key = "hidden" if axes == ("hidden",) else prefix + axes[-1]
                    folded = layout.fold(sums, module.elastic_full, axes)
                    totals[key] = totals[key] + folded if key in totals else folded
