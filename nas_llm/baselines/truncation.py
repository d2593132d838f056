"""Truncation: the first units and layers of the network as it is, whatever they are worth. What any choice of units, or
any training of sub-networks, has to beat: a network that was trained as a whole and is then cut.

One fraction of every axis in ``axes`` is kept: whole KV groups with all of their query heads, hidden channels and FFN
neurons in multiples of 8 where the network has such; at least one of each. It is the largest that meets the budget;
what then is left of that goes to one unit more of an axis at a time, the coarsest first, until none fits. ``like`` cuts
to the sizes of another model instead, as an exported sub-network: in its first layers, which is the truncation that a
search measures beside its front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.baselines import Batches, Pruned
from nas_llm.baselines.budget import THREE_QUARTERS, limit_of, refuse_max_params
from nas_llm.models.model_directory import shape_of
from nas_llm.models.supernet import Supernet

Axis = Literal["hidden", "kv_groups", "ffn", "layers"]
AXES: tuple[Axis, ...] = get_args(Axis)
COARSEST_FIRST: tuple[Axis, ...] = ("layers", "kv_groups", "hidden", "ffn")
MULTIPLE = 8  # of hidden channels and of FFN neurons
EPSILON = 1e-9  # three of 4 units are 0.75 of them, and 0.75 of 4 are 3


@dataclass(frozen=True)
class Truncation:
    """At most ``max_params`` (up to 1: a fraction of the network's; None: 0.75) by cutting ``axes``, or the sizes of
    the model ``like``, a directory.

    Raises:
        ValueError: ``max_params`` and ``like`` are both given, the former is out of range, ``axes`` are unknown, or
            none.
    """

    max_params: float | None = None
    axes: Sequence[Axis] = AXES
    like: str | None = None

    def __post_init__(self) -> None:
        refuse_max_params(self.max_params)
        if self.like is not None and self.max_params is not None:
            raise ValueError(
                f"baseline.max_params={self.max_params} cannot take effect with baseline.like={self.like}, whose sizes "
                "are taken: set baseline.max_params=null, or baseline.like=null"
            )
        unknown = [axis for axis in self.axes if axis not in AXES]
        if unknown or not self.axes:
            raise ValueError(f"baseline.axes=[{','.join(self.axes)}]: allowed are some of {', '.join(AXES)}")
        if self.like is not None and tuple(self.axes) != AXES:
            raise ValueError(
                f"baseline.axes=[{','.join(self.axes)}] cannot take effect with baseline.like={self.like}, whose sizes "
                "are taken: leave it out"
            )

    def refuse(self, supernet: Supernet) -> None:
        """Raises ValueError for sizes that do not fit into this network, or a budget that cannot be met."""
        supernet.refuse_cut(self.architecture(supernet))

    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        full, architecture = supernet.largest(), self.architecture(supernet)
        sizes = f"; the sizes are those of {self.like}" if self.like is not None else ""
        summary = f"It was cut to its first units and layers as they are ({architecture.summary()}){sizes}."
        records = {"architecture": architecture.to_dict(), "full": full.to_dict()}
        return Pruned(supernet.extract(architecture), summary, records, architecture)

    def architecture(self, supernet: Supernet) -> Architecture:
        """What is kept. Raises as :meth:`refuse`."""
        full = supernet.largest()
        if self.like is not None:
            return self._alike(full)
        whole, asked = supernet.num_parameters(full), THREE_QUARTERS if self.max_params is None else self.max_params
        limit = limit_of(asked, whole)
        if supernet.operators is not None and set(self.axes) != {"layers"}:
            raise ValueError(
                "the model is a network of operators, whose sublayers are whole: truncate its depth alone, "
                "baseline.axes=[layers]"
            )
        units = {axis: _units(full, axis) for axis in AXES if axis in self.axes}
        steps = sorted({step / count for count in units.values() for step in range(1, count + 1)})

        def fits(kept: Mapping[Axis, float]) -> bool:
            return supernet.num_parameters(_cut(full, kept)) <= limit

        low, high = -1, len(steps) - 1  # the fraction at low fits, or low is -1; the one at high does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(dict.fromkeys(units, steps[middle])) else (low, middle)
        if low < 0:
            least = supernet.num_parameters(_cut(full, dict.fromkeys(units, steps[0])))
            raise ValueError(
                f"baseline.max_params={asked}: with one unit of {', '.join(self.axes)} left the network has "
                f"{least:,} parameters, {least / whole:.4f} of {whole:,}: set more, or other baseline.axes="
            )
        kept, grows = dict.fromkeys(units, steps[low]), True
        while grows:
            grows = False
            for axis in COARSEST_FIRST:
                if axis in units and kept[axis] < 1:
                    more = kept | {axis: (int(kept[axis] * units[axis] + EPSILON) + 1) / units[axis]}
                    kept, grows = (more, True) if fits(more) else (kept, grows)
        return _cut(full, kept)

    def _alike(self, full: Architecture) -> Architecture:
        assert self.like is not None
        shape = shape_of(self.like, setting="baseline.like")
        architecture = Architecture(shape.hidden, tuple(LayerChoice(i, *c.shape) for i, c in enumerate(shape.layers)))
        try:
            architecture.refuse_misfit(full)
        except ValueError as error:
            raise ValueError(f"baseline.like={self.like}: {error}: name a model that was cut from this one") from error
        return architecture


def _unit(axis: Axis, size: int) -> int:
    """How many of an axis go together."""
    return MULTIPLE if axis in ("hidden", "ffn") and size % MULTIPLE == 0 else 1


def _units(full: Architecture, axis: Axis) -> int:
    """Units of an axis, of the layer that has the most."""
    if axis == "layers":
        return full.num_layers
    sizes = [full.hidden] if axis == "hidden" else [getattr(layer, axis) for layer in full.layers]
    return max(size // _unit(axis, size) for size in sizes)


def _cut(full: Architecture, kept: Mapping[Axis, float]) -> Architecture:
    """The first units of each axis, by the fraction of them that is kept; axes without one stay whole."""

    def of(axis: Axis, size: int) -> int:
        if axis not in kept or size == 0:
            return size
        unit = _unit(axis, size)
        return max(1, int(kept[axis] * size / unit + EPSILON)) * unit

    layers = tuple(
        LayerChoice(c.index, of("kv_groups", c.kv_groups), c.heads_per_group, c.head_dim, of("ffn", c.ffn))
        for c in full.layers[: of("layers", full.num_layers)]
    )
    return Architecture(of("hidden", full.hidden), layers)
