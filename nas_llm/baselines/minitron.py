"""Minitron (Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", arXiv:2407.14679):
width and depth pruning by activations, every layer alike, to a number of parameters; with the formulas and the search
of NVIDIA's ModelOpt. What follows in the paper, distillation on logits, is ``nas-llm train`` with a teacher.

With x_t the activations (channels,) of token t and s_c = sqrt(sum over samples of (mean over tokens of |x_tc|)^2):

- FFN neuron: s_c of what the down projection reads;
- head: ||s|| over its channels of what the output projection reads. Where KV groups have several heads, heads are
  ranked within their group and all groups stay; where each head is its own group, heads are ranked among all;
- hidden channel: s_c of what each normalisation writes, summed over all of them;
- layer: 1 - cos(read, written), the mean over tokens (``importance/block.py``).

Candidates: all combinations of sizes, of every axis from ``1 - max_width_pruning`` (of the depth, ``1 -
max_depth_pruning``) of it up, hidden channels and FFN neurons in multiples of ``multiple_of``. Of those that meet the
budget the ``candidates`` largest are run on the calibration set as they are; the one of the lowest loss is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.baselines import Batch, Batches, Pruned
from nas_llm.baselines.budget import THREE_QUARTERS, limit_of, refuse_max_params
from nas_llm.baselines.llm_pruner import kept_units
from nas_llm.importance.activation import Statistic, over_tokens
from nas_llm.importance.block import Block
from nas_llm.importance.recording import hidden_norms, observe, per_token, readers
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.loss import mean_token_loss

Axis = Literal["hidden", "heads", "ffn", "layers"]
AXES: tuple[Axis, ...] = get_args(Axis)
_FINEST = 16  # steps of a width, where multiple_of is not given: 256 of 4,096, as in ModelOpt


@dataclass(frozen=True)
class Minitron:
    """At most ``max_params`` (up to 1: a fraction of the network's; None: 0.75) by cutting ``axes``; ``multiple_of``
    None: the largest power of 2 that is at most a sixteenth of the axis.

    Raises:
        ValueError: a number out of range, or axes that are unknown, or none.
    """

    max_params: float | None = None
    axes: Sequence[Axis] = AXES
    max_width_pruning: float = 0.4
    max_depth_pruning: float = 0.2
    multiple_of: int | None = None
    candidates: int = 10

    def __post_init__(self) -> None:
        refuse_max_params(self.max_params)
        for key in ("max_width_pruning", "max_depth_pruning"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(
                    f"baseline.{key}={getattr(self, key)}: allowed is the largest share of an axis that may go, from 0 "
                    f"to below 1, as baseline.{key}=0.4"
                )
        for key, value in {"multiple_of": self.multiple_of, "candidates": self.candidates}.items():
            if value is not None and value < 1:
                raise ValueError(f"baseline.{key}={value}: allowed is 1 or more, as baseline.{key}=8")
        if not self.axes or any(axis not in AXES for axis in self.axes):
            raise ValueError(f"baseline.axes=[{','.join(self.axes)}]: allowed are some of {', '.join(AXES)}")

    def refuse(self, supernet: Supernet) -> None:
        """Raises ValueError for a network of operators, for one whose layers differ, and for a quantised one; for a
        budget that no candidate meets."""
        full = supernet.largest()
        if supernet.operators is not None or not full.is_uniform:
            what = "a network of operators" if supernet.operators is not None else "of layers that differ in shape"
            raise ValueError(
                f"baseline=minitron: the model is {what}, and Minitron cuts all layers alike: set model.path to the "
                "network it was made from, or remove whole layers, baseline=shortgpt"
            )
        for layers, shape in self.largest_candidates(supernet):
            supernet.refuse_cut(_uniform(full, range(layers), shape))

    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        full, shapes = supernet.largest(), self.largest_candidates(supernet)
        scores = Block("cosine")(supernet, batches()) | width_scores(supernet, batches())
        supernet.sort(scores)
        records: dict[str, Any] = {"scores": {key: values.tolist() for key, values in scores.items()}}
        calibration = list(batches())
        measured = []
        for layers, shape in shapes:
            candidate = _uniform(full, sorted(supernet.layer_order[:layers]), shape)
            with supernet.activate(candidate) as model:
                measured.append((mean_token_loss(model, calibration), candidate))
        best = min(range(len(measured)), key=lambda i: math.inf if math.isnan(measured[i][0]) else measured[i][0])
        loss, architecture = measured[best]
        records |= {
            "kept": {**kept_units(supernet.order, architecture), "layers": [c.index for c in architecture.layers]},
            "candidates": [
                {"params": supernet.num_parameters(one), "loss": value, "architecture": one.to_dict()}
                for value, one in measured
            ],
            "architecture": architecture.to_dict(),
        }
        summary = (
            f"Minitron kept the units of the highest activations and the layers that turn the residual stream most: of "
            f"the {len(measured)} largest shapes within the budget the one of the lowest loss on the calibration data, "
            f"{loss:.3f} nats/token ({architecture.summary()})."
        )
        return Pruned(supernet.extract(architecture), summary, records, architecture)

    def largest_candidates(self, supernet: Supernet) -> list[tuple[int, Architecture]]:
        """The largest shapes that meet the budget, the largest first, as (layers, one layer's sizes): which layers they
        keep is not known yet, and does not change their number of parameters.

        Raises:
            ValueError: there is none.
        """
        full = supernet.largest()
        whole, asked = supernet.num_parameters(full), THREE_QUARTERS if self.max_params is None else self.max_params
        limit, first = limit_of(asked, whole), full.layers[0]
        grouped = first.heads_per_group > 1
        heads = self._sizes("heads", first.heads_per_group if grouped else first.kv_groups, 1)
        found = []
        for hidden, head, ffn, layers in product(
            self._sizes("hidden", full.hidden, self._multiple(full.hidden)),
            heads,
            self._sizes("ffn", first.ffn, self._multiple(first.ffn)),
            self._sizes("layers", full.num_layers, 1),
        ):
            groups, each = (first.kv_groups, head) if grouped else (head, 1)
            shape = Architecture(hidden, (LayerChoice(0, groups, each, first.head_dim, ffn),))
            found.append((supernet.num_parameters(_uniform(full, range(layers), shape)), layers, shape))
        fitting = sorted((one for one in found if one[0] <= limit), key=lambda one: (-one[0], *one[1:]))
        if not fitting:
            least = min(one[0] for one in found)
            raise ValueError(
                f"baseline.max_params={asked}: with at most {self.max_width_pruning:g} of {', '.join(self.axes)} gone "
                f"(of the layers {self.max_depth_pruning:g}) the network has {least:,} parameters, {least / whole:.4f} "
                f"of {whole:,}: set baseline.max_width_pruning= or baseline.max_depth_pruning= higher, or "
                f"baseline.max_params={math.ceil(1000 * least / whole) / 1000} or more"
            )
        return [(layers, shape) for _, layers, shape in fitting[: self.candidates]]

    def _sizes(self, axis: Axis, full: int, multiple_of: int) -> list[int]:
        if axis not in self.axes:
            return [full]
        gone = self.max_depth_pruning if axis == "layers" else self.max_width_pruning
        least = max(1, math.ceil((1 - gone) * full - 1e-9))
        return [size for size in range(multiple_of, full, multiple_of) if size >= least] + [full]

    def _multiple(self, full: int) -> int:
        return self.multiple_of or 1 << (max(1, full // _FINEST).bit_length() - 1)


def width_scores(supernet: Supernet, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Scores of hidden channels, heads and FFN neurons as above, float32, on the CPU, by the keys of
    :meth:`nas_llm.Supernet.sort`: ``heads_per_group`` (groups, heads) where groups have several heads, ``kv_groups``
    (groups,) where they have one.

    Raises:
        ValueError: there is no batch.
    """
    channels: dict[str, Statistic] = {}
    modules: dict[str, nn.Module] = {f"norm.{n}": norm for n, norm in enumerate(hidden_norms(supernet))}
    modules |= {f"layers.{r.layer}.heads": r.module for r in readers(supernet, "kv_groups")}
    modules |= {f"layers.{r.layer}.ffn": r.module for r in readers(supernet, "ffn")}

    def record(key: str, read: Tensor, written: Tensor, mask: Tensor) -> None:
        values = over_tokens(per_token(written if key.startswith("norm.") else read, mask), mask, "abs_mean")
        channels.setdefault(key, Statistic.zeros(values[0])).add(values)

    observe(supernet, batches, modules, record)
    reduced = {key: statistic.reduced("l2").cpu() for key, statistic in channels.items()}
    scores = {"hidden": torch.stack([values for key, values in reduced.items() if key.startswith("norm.")]).sum(0)}
    for key, values in reduced.items():
        if key.endswith(".ffn"):
            scores[key] = values
        elif key.endswith(".heads"):
            layer = key.removesuffix("heads")
            sizes = supernet.largest().layers[int(key.split(".")[1])]
            of_heads = values.reshape(sizes.kv_groups, sizes.heads_per_group, sizes.head_dim).norm(dim=-1)
            grouped = sizes.heads_per_group > 1
            scores[layer + ("heads_per_group" if grouped else "kv_groups")] = of_heads if grouped else of_heads[:, 0]
    return scores


def _uniform(full: Architecture, layers: Iterable[int], shape: Architecture) -> Architecture:
    """These layers, all of one shape."""
    sizes = shape.layers[0].shape
    return Architecture(shape.hidden, tuple(LayerChoice(full.layers[i].index, *sizes) for i in layers))
