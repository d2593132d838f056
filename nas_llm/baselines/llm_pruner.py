"""LLM-Pruner (Ma et al., "LLM-Pruner: On the Structural Pruning of Large Language Models", arXiv:2305.11627): whole
dependency groups go, those of which the loss depends least to first order. Its block-wise setting is the default here.

A group is a unit of an axis with every weight that has to go with it: a KV group with its query heads, an FFN neuron, a
hidden channel of the whole network. Importance of a weight (equation 5, element-wise, first order): |w dL/dw|, L the
mean token cross-entropy of the calibration set. Of a group: the sum over its weights in each module (q, k, v, o; gate,
up, down), aggregated over the n modules (section 3.2): ``sum``, ``prod`` (its n-th root, whose order is the same),
``max``, or ``first``, that of the first one in the model's order. Norms and embeddings are among the modules of a
hidden channel; biases have no score.

In every layer from ``first_layer`` to before ``last_layer`` the share ``ratio`` of the groups goes; of a network of 32
layers those are layers 4 to 29, and a quarter of their groups is about 20 % of the parameters. All go at once.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.baselines import Batch, Batches, Pruned
from nas_llm.baselines.budget import limit_of, refuse_max_params
from nas_llm.importance.taylor import mean_gradients
from nas_llm.models.elastic import ElasticModule
from nas_llm.models.order import Order
from nas_llm.models.supernet import Supernet

Axis = Literal["kv_groups", "ffn", "hidden"]
AXES: tuple[Axis, ...] = get_args(Axis)
Aggregation = Literal["sum", "prod", "max", "first"]
RATIO = 0.25
PAPER_DEPTH, PAPER_FIRST, PAPER_LAST = 32, 4, 30

_AGGREGATIONS: dict[Aggregation, Callable[[Tensor], Tensor]] = {
    "sum": lambda scores: scores.sum(0),
    "prod": lambda scores: scores.double().log().mean(0).exp().float(),  # no underflow
    "max": lambda scores: scores.amax(0),
    "first": lambda scores: scores[0],
}
"""(modules, units) -> (units,)."""


@dataclass(frozen=True)
class LLMPruner:
    """``ratio`` of the groups of ``axes``, or as much as at most ``max_params`` need (up to 1: a fraction of the
    network's); None and None: a ratio of 0.25. ``first_layer`` and ``last_layer`` (which is not cut any more) None:
    4 and 30 of 32, and their like in other depths. A hidden channel is that of all layers.

    Raises:
        ValueError: both sizes are given, one is out of range, an unknown axis or aggregation, or layers that are none.
    """

    ratio: float | None = None
    max_params: float | None = None
    axes: Sequence[Axis] = ("kv_groups", "ffn")
    aggregation: Aggregation = "sum"
    first_layer: int | None = None
    last_layer: int | None = None

    def __post_init__(self) -> None:
        refuse_max_params(self.max_params)
        if self.ratio is not None and self.max_params is not None:
            raise ValueError(
                f"baseline.ratio={self.ratio} and baseline.max_params={self.max_params}: allowed is one of them; set "
                "baseline.max_params=null, or baseline.ratio=null"
            )
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(
                f"baseline.ratio={self.ratio}: allowed is the share of the groups that go, above 0 and below 1, as "
                f"baseline.ratio={RATIO}"
            )
        if self.aggregation not in get_args(Aggregation):
            raise ValueError(f"baseline.aggregation={self.aggregation}: allowed are {', '.join(get_args(Aggregation))}")
        if not self.axes or any(axis not in AXES for axis in self.axes):
            raise ValueError(f"baseline.axes=[{','.join(self.axes)}]: allowed are some of {', '.join(AXES)}")
        for key, value in {"first_layer": self.first_layer, "last_layer": self.last_layer}.items():
            if value is not None and value < 0:
                raise ValueError(f"baseline.{key}={value}: allowed is 0 or more layers, as baseline.{key}=null")

    def refuse(self, supernet: Supernet) -> None:
        """Raises ValueError for a network of operators, or a quantised one, and for sizes that cannot be met."""
        if supernet.operators is not None:
            raise ValueError(
                "baseline=llm_pruner: the model is a network of operators, whose sublayers are whole: set model.path "
                "to the network it was made from, or remove whole layers, baseline=shortgpt"
            )
        supernet.refuse_cut(self.architecture(supernet))

    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        full, architecture, cut = supernet.largest(), self.architecture(supernet), self.layers(supernet)
        scores = group_scores(supernet, batches(), self._keys(supernet), self.aggregation)
        supernet.sort(scores)
        records = {
            "layers": [cut.start, cut.stop],
            "scores": {key: values.tolist() for key, values in scores.items()},
            "kept": kept_units(supernet.order, architecture),
            "architecture": architecture.to_dict(),
        }
        whole = supernet.num_parameters(full)
        summary = (
            f"LLM-Pruner kept the groups ({', '.join(self.axes)}) of the highest first-order importance, "
            f"{self.aggregation} over their modules, in layers {cut.start} to {cut.stop - 1}: "
            f"{supernet.num_parameters(architecture) / whole:.1%} of the parameters ({architecture.summary()})."
        )
        return Pruned(supernet.extract(architecture), summary, records, architecture)

    def layers(self, supernet: Supernet) -> range:
        """Those that are cut. Raises ValueError where there are none."""
        depth = supernet.largest().num_layers
        scaled = (round(layer * depth / PAPER_DEPTH) for layer in (PAPER_FIRST, PAPER_LAST))
        given = (self.first_layer, self.last_layer)
        first, last = (s if g is None else g for s, g in zip(scaled, given, strict=True))
        if not 0 <= first < last <= depth:
            raise ValueError(
                f"baseline.first_layer={first} and baseline.last_layer={last}: the network has {depth} layers; allowed "
                f"is 0 <= first_layer < last_layer <= {depth}, as baseline.first_layer=0 baseline.last_layer={depth}"
            )
        return range(first, last)

    def architecture(self, supernet: Supernet) -> Architecture:
        """The sizes that are kept, whatever the units. Raises as :meth:`refuse`."""
        full, cut = supernet.largest(), self.layers(supernet)
        if self.max_params is None:
            ratio = RATIO if self.ratio is None else self.ratio
            found = self._cut(full, cut, ratio)
            if found == full:
                raise ValueError(
                    f"baseline.ratio={ratio} leaves every unit of {', '.join(self.axes)} where it is: set more, or "
                    f"other baseline.axes= ({full.summary()})"
                )
            return found
        whole = supernet.num_parameters(full)
        limit = limit_of(self.max_params, whole)
        counts = {full.hidden, *(size for i in cut for size in (full.layers[i].kv_groups, full.layers[i].ffn))}
        ratios = sorted({gone / count for count in counts for gone in range(count)})

        def fits(ratio: float) -> bool:
            return supernet.num_parameters(self._cut(full, cut, ratio)) <= limit

        place = bisect_left(ratios, True, key=fits)
        if place == len(ratios):
            least = supernet.num_parameters(self._cut(full, cut, ratios[-1]))
            raise ValueError(
                f"baseline.max_params={self.max_params}: with one unit of {', '.join(self.axes)} left in layers "
                f"{cut.start} to {cut.stop - 1} the network has {least:,} parameters, {least / whole:.4f} of "
                f"{whole:,}: set baseline.max_params={math.ceil(1000 * least / whole) / 1000} or more, other "
                "baseline.axes=, or more layers, baseline.first_layer=0"
            )
        return self._cut(full, cut, ratios[place])

    def _cut(self, full: Architecture, cut: range, ratio: float) -> Architecture:
        def kept(axis: Axis, size: int) -> int:
            return max(1, int((1 - ratio) * size + 1e-9)) if axis in self.axes else size

        layers = tuple(
            LayerChoice(
                layer.index,
                kept("kv_groups", layer.kv_groups),
                layer.heads_per_group,
                layer.head_dim,
                kept("ffn", layer.ffn),
            )
            if layer.index in cut
            else layer
            for layer in full.layers
        )
        return Architecture(kept("hidden", full.hidden), layers)

    def _keys(self, supernet: Supernet) -> list[str]:
        inside = [f"layers.{i}.{axis}" for i in self.layers(supernet) for axis in self.axes if axis != "hidden"]
        return [*inside, *(["hidden"] if "hidden" in self.axes else [])]


def group_scores(
    supernet: Supernet, batches: Iterable[Batch], keys: Sequence[str], aggregation: Aggregation
) -> dict[str, Tensor]:
    """The importance of every group of the axes ``keys``, which are those of :meth:`nas_llm.Supernet.sort`: (units,),
    float32, on the CPU. Held are the gradients of all weights that these groups have.

    Raises:
        ValueError: no batch, or no labelled token in them.
    """
    carriers = {key: _carriers(supernet, key) for key in keys}
    weights = {id(weight): weight for found in carriers.values() for weight, _, _ in found}
    gradients = dict(zip(weights, mean_gradients(supernet, list(weights.values()), batches), strict=True))
    scores: dict[str, Tensor] = {}
    with torch.no_grad():
        for key, found in carriers.items():
            axis = key.rpartition(".")[2]
            of_modules = []
            for weight, dim, module in found:
                product = (weight.float() * gradients[id(weight)].float()).abs_()
                sums = product.sum([d for d in range(product.ndim) if d != dim]) if product.ndim > 1 else product
                of_modules.append(module.elastic_layouts["weight"][dim].fold(sums, module.elastic_full, (axis,)))
            scores[key] = _AGGREGATIONS[aggregation](torch.stack(of_modules)).cpu()
    return scores


def kept_units(order: Order, architecture: Architecture) -> Mapping[str, Any]:
    """Old places of the units that a sorted network keeps, ascending, by axis; heads by the old place of their group,
    of those that are kept."""
    sizes = {"hidden": architecture.hidden}
    for layer in architecture.layers:
        sizes |= {f"layers.{layer.index}.{axis}": getattr(layer, axis) for axis in ("kv_groups", "ffn")}
    return {key: sorted(order.units[key][:size].tolist()) for key, size in sizes.items() if key in order.units}


def _carriers(supernet: Supernet, key: str) -> list[tuple[nn.Parameter, int, ElasticModule]]:
    """Every weight that has the axis, once, with the dimension that has it."""
    if key == "hidden":
        modules = [module for layer in (supernet.shared_modules, *supernet.layer_modules) for module in layer]
    else:
        modules = list(supernet.layer_modules[int(key.split(".")[1])])
    found: dict[int, tuple[nn.Parameter, int, ElasticModule]] = {}
    for module in modules:
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        for dim, layout in enumerate(module.elastic_layouts["weight"]):
            if layout.carries((key.rpartition(".")[2],)):
                found.setdefault(id(weight), (weight, dim, module))
    return list(found.values())
