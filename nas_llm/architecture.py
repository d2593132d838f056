"""A sub-network as a value: how many units of each axis of the super-network stay active.

Sizes are counts of units. Multi-head attention has ``kv_groups`` = number of heads and ``heads_per_group`` = 1;
grouped-query attention keeps whole key/value groups and, within every kept group, the first ``heads_per_group``
query heads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

Ranks = tuple[tuple[str, int], ...]
"""Rank of every group of low-rank adapters, by the group's name, in the order of the names."""


@dataclass(frozen=True, order=True, slots=True)
class LayerChoice:
    """One transformer block of a sub-network; ``index`` is the block of the super-network it is cut from.

    ``ranks`` names those of the adapters in the block; a group that is left out keeps its whole rank. A block of a
    network of operators that has no attention, or no feed-forward network, has zeros there.
    """

    index: int
    kv_groups: int
    heads_per_group: int
    head_dim: int
    ffn: int
    ranks: Ranks = ()

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.kv_groups * self.heads_per_group

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sizes without the place in the network and the adapters: (kv_groups, heads_per_group, head_dim, ffn)."""
        return (self.kv_groups, self.heads_per_group, self.head_dim, self.ffn)


@dataclass(frozen=True, order=True)
class Architecture:
    """A point of a search space. Immutable, hashable, ordered, JSON-able.

    ``ranks`` names those of the adapters outside of the blocks.

    Raises:
        ValueError: a size below 1 (below 0 of what a block of operators may lack), or layers that are not in the order
            of the super-network.
    """

    hidden: int
    layers: tuple[LayerChoice, ...]
    ranks: Ranks = ()

    def __post_init__(self) -> None:
        indices = [layer.index for layer in self.layers]
        if any(a >= b for a, b in pairwise(indices)) or any(i < 0 for i in indices):
            raise ValueError(f"layers must be distinct and in the order of the super-network, got indices {indices}")
        if self.hidden < 1 or any(_is_torn(layer) for layer in self.layers):
            raise ValueError(f"every size of an architecture must be at least 1, got {self.summary()}")
        for name, rank in (pair for ranks in (self.ranks, *(layer.ranks for layer in self.layers)) for pair in ranks):
            if rank < 1:
                raise ValueError(f"the rank of {name} must be at least 1, got {rank}")

    @cached_property
    def id(self) -> str:
        """12 hexadecimal digits, the same on every machine and in every run."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def is_uniform(self) -> bool:
        """Whether every kept layer has the same shape (whatever the ranks of its adapters)."""
        return len({layer.shape for layer in self.layers}) <= 1

    @property
    def without_ranks(self) -> Architecture:
        """The network alone, whatever adapters it has."""
        return Architecture(self.hidden, tuple(LayerChoice(layer.index, *layer.shape) for layer in self.layers))

    def refuse_misfit(self, full: Architecture) -> None:
        """Raises ValueError where this is no sub-network of ``full``: it keeps nothing, or more than there is."""
        fits = self.layers and self.hidden <= full.hidden and self.layers[-1].index < full.num_layers
        if not fits or any(
            size > limit or (size == 0) != (limit == 0)
            for layer in self.layers
            for size, limit in zip(layer.shape, full.layers[layer.index].shape, strict=True)
        ):
            raise ValueError(f"the architecture ({self.summary()}) does not fit into the network ({full.summary()})")
        _refuse_ranks(self.ranks, full.ranks)
        for layer in self.layers:
            _refuse_ranks(layer.ranks, full.layers[layer.index].ranks)

    def summary(self) -> str:
        """One line for tables and errors; ranges where the layers differ."""

        def span(values: list[int]) -> str:
            low, high = min(values), max(values)
            return str(low) if low == high else f"{low}-{high}"

        if not self.layers:
            return f"hidden {self.hidden}, 0 layers"
        heads, groups = [c.heads for c in self.layers], [c.kv_groups for c in self.layers]
        depth = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        grouped = "1 group" if set(groups) == {1} else f"{span(groups)} groups"
        by_group: dict[str, list[int]] = {}
        for name, rank in (pair for ranks in (*(c.ranks for c in self.layers), self.ranks) for pair in ranks):
            by_group.setdefault(name, []).append(rank)
        ranks = "".join(f", rank {span(values)} of {name}" for name, values in by_group.items())
        return (
            f"hidden {self.hidden}, {depth}, heads {span(heads)} in {grouped}, "
            f"head_dim {span([c.head_dim for c in self.layers])}, ffn {span([c.ffn for c in self.layers])}{ranks}"
        )

    def to_dict(self) -> dict[str, Any]:
        """``ranks`` stand in it where there are adapters alone, so that other networks keep their ids."""
        layers = [asdict(layer) | {"ranks": dict(layer.ranks)} for layer in self.layers]
        for layer in layers:
            if not layer["ranks"]:
                del layer["ranks"]
        return {"hidden": self.hidden, "layers": layers} | ({"ranks": dict(self.ranks)} if self.ranks else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Inverse of ``to_dict``. Raises ValueError where a field is missing or unknown."""
        try:
            layers = tuple(LayerChoice(**{**layer, "ranks": _ranks(layer)}) for layer in data["layers"])
            return cls(int(data["hidden"]), layers, _ranks(data))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"not an architecture: {error}; needed are 'hidden' and 'layers' with {list(_FIELDS)}"
            ) from error


def _is_torn(layer: LayerChoice) -> bool:
    """Whether a size is negative, or one of attention's is 0 and others are not."""
    return min(layer.shape) < 0 or min(layer.shape[:3]) == 0 < max(layer.shape[:3])


def _ranks(data: Mapping[str, Any]) -> Ranks:
    return tuple(sorted((str(name), int(rank)) for name, rank in data.get("ranks", {}).items()))


def _refuse_ranks(ranks: Ranks, full: Ranks) -> None:
    if not ranks or ranks == full:
        return
    known = dict(full)
    for name, rank in ranks:
        if rank > known.get(name, 0):
            there = f"at most {known[name]}" if name in known else f"groups: {', '.join(known) or 'none'}"
            raise ValueError(f"rank {rank} of the adapters {name!r} does not fit into the network ({there})")


_FIELDS = LayerChoice.__dataclass_fields__
