"""Search spaces: which sub-networks of a super-network may be chosen.

The joint space is paper 1, section 4: Theta_d x Theta_H x Theta_r x Theta_L (residual width, heads, FFN ratio,
depth), the same for every layer; its FFN width is the ratio times the sub-network's own residual width, and a depth
of L keeps the L most important layers (the first L while no layer importance is known). The per-layer space chooses
heads and FFN width for every layer by itself, and any subset of layers. Where the network has low-rank adapters, the
rank of every group of them is an axis like any other (paper 2). A network whose layers differ, or are operators (paper
3), only varies in depth: every layer is kept whole or not at all.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from nas_llm.architecture import Architecture, LayerChoice, Ranks
from nas_llm.axis_choices import AxisChoices, AxisGrid, Elastic, RankChoices, rank_key
from nas_llm.encoding import decode, encode, gene_sizes
from nas_llm.whole_layers import as_chosen, count_subsets, count_uniform, with_own_shapes

Kind = Literal["joint", "per_layer"]
_RANKS = ("ranks", "shared_ranks")
_AXES = ("hidden", "kv_groups", "heads_per_group", "head_dim")


@dataclass(frozen=True)
class SearchSpace:
    """A finite space of architectures; every list of choices is ascending and its last value is the largest.

    ``ffn`` holds ratios to the residual width (float) in the joint space and widths (int) in the per-layer space.
    ``depth`` lists the allowed numbers of layers. :meth:`joint` and :meth:`per_layer` make one from a super-network.
    ``blocks`` are the layers of a network in which they differ: a kept one is whole, whatever the one choice of its
    other axes says, which is then the largest layer's; of ranks it has those of its own adapters.
    """

    kind: Kind
    hidden: tuple[int, ...]
    kv_groups: tuple[int, ...]
    heads_per_group: tuple[int, ...]
    head_dim: tuple[int, ...]
    ffn: tuple[float, ...]
    depth: tuple[int, ...]
    layer_order: tuple[int, ...]
    ffn_max: int
    multiple_of: int = 1
    ranks: RankChoices = ()  # of the adapters in every block
    shared_ranks: RankChoices = ()  # of those outside of the blocks
    blocks: tuple[LayerChoice, ...] = ()

    # ---------------------------------------------------------------- construction

    @classmethod
    def joint(
        cls,
        supernet: Elastic,
        *,
        hidden: Sequence[int] | None = None,
        kv_groups: Sequence[int] | None = None,
        heads_per_group: Sequence[int] | None = None,
        head_dim: Sequence[int] | None = None,
        ffn_ratio: Sequence[float] | None = None,
        depth: Sequence[int] | None = None,
        min_fraction: float = 0.25,
        steps: int = 8,
        multiple_of: int = 8,
        elastic: Sequence[str] | None = None,
        ranks: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    ) -> SearchSpace:
        """The joint space, uniform over layers.

        An axis left ``None`` gets at most ``steps`` choices, equally spaced between ``min_fraction`` of its full size
        and the full size, in multiples of ``multiple_of`` (groups and layers: of 1). ``heads_per_group`` and
        ``head_dim`` stay whole unless given. ``ffn_ratio`` is relative to the residual width of the sub-network;
        widths are rounded to ``multiple_of``. ``elastic`` names the axes that vary (hidden, kv_groups,
        heads_per_group, head_dim, ffn, depth, rank): the others stay whole, the FFN too where the residual width
        varies. ``ranks`` are those of the network's adapters, for all groups or by the group's name; the rank stays
        whole unless they are given or ``elastic`` names it.

        Raises:
            ValueError: an empty or impossible list of choices, choices of an axis that is not elastic, or an axis that
                the family cannot slice.
        """
        grid = AxisGrid(min_fraction, steps, multiple_of)
        sizes = {"hidden": hidden, "kv_groups": kv_groups, "heads_per_group": heads_per_group, "head_dim": head_dim}
        axes = AxisChoices(supernet, grid, elastic)
        choices = {axis: axes.sizes(axis, given) for axis, given in {**sizes, "depth": depth}.items()}
        return cls._of(axes, "joint", choices, axes.ffn_ratios(ffn_ratio, choices["hidden"]), axes.ranks(ranks))

    @classmethod
    def per_layer(
        cls,
        supernet: Elastic,
        *,
        hidden: Sequence[int] | None = None,
        kv_groups: Sequence[int] | None = None,
        heads_per_group: Sequence[int] | None = None,
        head_dim: Sequence[int] | None = None,
        ffn: Sequence[int] | None = None,
        depth: Sequence[int] | None = None,
        min_fraction: float = 0.25,
        steps: int = 8,
        multiple_of: int = 8,
        elastic: Sequence[str] | None = None,
        ranks: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    ) -> SearchSpace:
        """Heads and FFN width chosen for every layer, any subset of layers; residual width and head size are global.

        Defaults and errors as in :meth:`joint`; ``ffn`` lists widths.
        """
        grid = AxisGrid(min_fraction, steps, multiple_of)
        sizes = {"hidden": hidden, "kv_groups": kv_groups, "heads_per_group": heads_per_group, "head_dim": head_dim}
        axes = AxisChoices(supernet, grid, elastic)
        choices = {axis: axes.sizes(axis, given) for axis, given in {**sizes, "depth": depth}.items()}
        return cls._of(axes, "per_layer", choices, axes.sizes("ffn", ffn), axes.ranks(ranks))

    @classmethod
    def _of(
        cls,
        axes: AxisChoices,
        kind: Kind,
        choices: Mapping[str, tuple[int, ...]],
        ffn: tuple[float, ...],
        ranks: tuple[RankChoices, RankChoices],
    ) -> SearchSpace:
        return cls(
            kind,
            **choices,
            ffn=ffn,
            layer_order=tuple(axes.supernet.layer_order),
            ffn_max=axes.full["ffn"],
            multiple_of=axes.grid.multiple_of,
            ranks=ranks[0],
            shared_ranks=ranks[1],
            blocks=axes.blocks,
        )

    # ---------------------------------------------------------------- points

    def largest(self) -> Architecture:
        return self.uniform({axis: count - 1 for axis, count in self.choice_counts.items()})

    def smallest(self) -> Architecture:
        return self.uniform(dict.fromkeys(self.choice_counts, 0))

    def middle(self) -> Architecture:
        """The heuristic sub-network: the middle choice of every axis (of two the larger), the most important layers."""
        return self.uniform({axis: count // 2 for axis, count in self.choice_counts.items()})

    @property
    def choice_counts(self) -> dict[str, int]:
        """Number of choices by axis: hidden, head_dim, kv_groups, heads_per_group, ffn, depth, rank.<group>."""
        choices = (self.hidden, self.head_dim, self.kv_groups, self.heads_per_group, self.ffn, self.depth)
        names = ("hidden", "head_dim", "kv_groups", "heads_per_group", "ffn", "depth")
        ranks = {rank_key(name): len(values) for name, values in self.ranks + self.shared_ranks}
        return {name: len(values) for name, values in zip(names, choices, strict=True)} | ranks

    def uniform(self, positions: Mapping[str, int]) -> Architecture:
        """The same choice in every layer, the most important layers; ``positions`` index every axis's choices."""
        hidden = self.hidden[positions["hidden"]]
        shape = (
            self.kv_groups[positions["kv_groups"]],
            self.heads_per_group[positions["heads_per_group"]],
            self.head_dim[positions["head_dim"]],
            self.ffn_width(self.ffn[positions["ffn"]], hidden),
        )
        kept = self.most_important(self.depth[positions["depth"]])
        inside, outside = (
            tuple((name, values[positions[rank_key(name)]]) for name, values in choices)
            for choices in (self.ranks, self.shared_ranks)
        )
        return self.made_of(hidden, [LayerChoice(index, *shape, inside) for index in kept], outside)

    def sample(self, rng: np.random.Generator) -> Architecture:
        """Uniform over the choices of every axis (paper 1, section 3.2: theta ~ Theta)."""
        hidden = _draw(rng, self.hidden)
        head_dim = _draw(rng, self.head_dim)
        depth = _draw(rng, self.depth)
        if self.kind == "joint":
            shape = (_draw(rng, self.kv_groups), _draw(rng, self.heads_per_group), head_dim)
            width = self.ffn_width(_draw(rng, self.ffn), hidden)
            ranks = _draw_ranks(rng, self.ranks)
            layers = [LayerChoice(i, *shape, width, ranks) for i in self.most_important(depth)]
            return self.made_of(hidden, layers, _draw_ranks(rng, self.shared_ranks))
        kept = np.sort(rng.permutation(len(self.layer_order))[:depth]).tolist()
        groups, per_group, widths = (
            rng.integers(len(choices), size=depth).tolist()
            for choices in (self.kv_groups, self.heads_per_group, self.ffn)
        )
        layers = [
            LayerChoice(
                i,
                self.kv_groups[g],
                self.heads_per_group[h],
                head_dim,
                int(self.ffn[f]),
                _draw_ranks(rng, self.ranks),
            )
            for i, g, h, f in zip(kept, groups, per_group, widths, strict=True)
        ]
        return self.made_of(hidden, layers, _draw_ranks(rng, self.shared_ranks))

    def __contains__(self, architecture: object) -> bool:
        if not isinstance(architecture, Architecture):
            return False
        try:
            return self.decode(self.encode(architecture)) == architecture
        except ValueError:
            return False

    # ---------------------------------------------------------------- genomes

    @cached_property
    def gene_sizes(self) -> tuple[int, ...]:
        """Number of choices of every gene, in the order that :mod:`nas_llm.encoding` says."""
        return gene_sizes(self)

    def encode(self, architecture: Architecture) -> np.ndarray:
        """Indices into the choices, int64 of shape (len(gene_sizes),); dropped layers carry the largest choices.

        Raises:
            ValueError: the architecture is not a point of this space.
        """
        return encode(self, architecture)

    def decode(self, genome: np.ndarray | Sequence[int]) -> Architecture:
        """Inverse of :meth:`encode`; an impossible number of layers is mended by the order of their importance.

        Raises:
            ValueError: wrong length or an index out of range.
        """
        return decode(self, genome)

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """Every distinct architecture one step of one gene away."""
        genome = self.encode(architecture)
        found: dict[Architecture, None] = {}
        for position, size in enumerate(self.gene_sizes):
            for step in (-1, 1):
                moved = genome.copy()
                moved[position] += step
                if 0 <= moved[position] < size:
                    found[self.decode(moved)] = None
        found.pop(architecture, None)
        return list(found)

    def axis_sizes(self) -> dict[str, tuple[int, ...]]:
        """Every size that an axis takes in the space, ascending, by the axis's name."""
        if self.blocks:
            sizes = zip(*(layer.shape for layer in self.blocks), strict=True)
            names = ("kv_groups", "heads_per_group", "head_dim", "ffn")
            return {"hidden": self.hidden} | {n: tuple(sorted(set(s))) for n, s in zip(names, sizes, strict=True)}
        widths = {self.ffn_width(choice, hidden) for choice in self.ffn for hidden in self.hidden}
        return {axis: getattr(self, axis) for axis in _AXES} | {"ffn": tuple(sorted(widths))}

    @property
    def size(self) -> int:
        """Exact number of distinct architectures, of any magnitude."""
        inside, outside = (math.prod(len(v) for _, v in choices) for choices in (self.ranks, self.shared_ranks))
        if self.blocks:  # only the depth, and ranks of adapters, vary
            if self.kind == "joint":
                kept = [self.most_important(depth) for depth in self.depth]
                return outside * count_uniform(kept, self.blocks, self.ranks)
            return outside * count_subsets(self.depth, self.blocks, self.ranks)
        shared = len(self.hidden) * len(self.head_dim)
        attention = len(self.kv_groups) * len(self.heads_per_group)
        if self.kind == "joint":
            # Two ratios may round to one width, so widths are counted for every residual width.
            widths = sum(len({self.ffn_width(ratio, hidden) for ratio in self.ffn}) for hidden in self.hidden)
            return widths * len(self.head_dim) * attention * len(self.depth) * inside * outside
        layer = attention * len(self.ffn) * inside
        return shared * outside * sum(math.comb(len(self.layer_order), depth) * layer**depth for depth in self.depth)

    def __len__(self) -> int:
        size = self.size
        if size > sys.maxsize:
            raise OverflowError(f"the space has {size:.3e} architectures, more than len() can say; use space.size")
        return size

    # ---------------------------------------------------------------- values

    def to_dict(self) -> dict[str, Any]:
        """``ranks`` and ``shared_ranks`` stand in it where there are adapters alone, ``blocks`` where layers differ."""
        plain: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.__dict__.items()
            if name in self.__dataclass_fields__
        }
        for name in _RANKS:
            choices = plain.pop(name)
            plain |= {name: {group: list(values) for group, values in choices}} if choices else {}
        blocks = plain.pop("blocks")
        return plain | ({"blocks": Architecture(self.hidden[-1], tuple(blocks)).to_dict()["layers"]} if blocks else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSpace:
        """Inverse of ``to_dict``. Raises ValueError where a field is missing or unknown."""
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            for name in _RANKS:
                fields[name] = tuple((group, tuple(values)) for group, values in data.get(name, {}).items())
            blocks = {"hidden": 1, "layers": data.get("blocks", [])}
            fields["blocks"] = Architecture.from_dict(blocks).layers
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a search space: {error}") from error

    def with_layer_order(self, layer_order: Iterable[int]) -> SearchSpace:
        """The same choices with another order in which the joint space keeps layers."""
        return replace(self, layer_order=tuple(layer_order))

    # ---------------------------------------------------------------- what choices stand for

    def most_important(self, depth: int) -> tuple[int, ...]:
        """The layers that the joint space keeps of so many, ascending."""
        return tuple(sorted(self.layer_order[:depth]))

    def ffn_width(self, choice: float, hidden: int) -> int:
        """The FFN's width that a choice of it stands for, in a sub-network of that residual width."""
        if self.kind == "per_layer":
            return int(choice)
        if choice * hidden >= self.ffn_max - 0.5:
            return self.ffn_max
        width = max(1, round(choice * hidden / self.multiple_of)) * self.multiple_of
        if hidden == self.hidden[-1] and choice == self.ffn[-1]:
            width = round(choice * hidden)  # the full width need not be a multiple
        return min(width, self.ffn_max)

    def made_of(self, hidden: int, layers: Sequence[LayerChoice], ranks: Ranks) -> Architecture:
        """The architecture of these choices; where layers differ, each has its own shape and its own adapters."""
        own = with_own_shapes(layers, self.blocks) if self.blocks else layers
        return Architecture(hidden, tuple(own), ranks)

    def as_chosen(self, architecture: Architecture) -> Architecture:
        """The choices that an architecture was made of. Raises ValueError where a layer that is kept whole is cut."""
        if not self.blocks:
            return architecture
        shape = (self.kv_groups[-1], self.heads_per_group[-1], self.head_dim[-1], self.ffn_max)
        return as_chosen(architecture, self.blocks, shape, self.ranks, uniform=self.kind == "joint")


def _draw(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _draw_ranks(rng: np.random.Generator, choices: RankChoices) -> Ranks:
    return tuple((group, _draw(rng, values)) for group, values in choices)
