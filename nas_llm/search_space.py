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
from nas_llm.axis_choices import AxisChoices, AxisGrid, Elastic, RankChoices

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
        ranks = {_rank_key(name): len(values) for name, values in self.ranks + self.shared_ranks}
        return {name: len(values) for name, values in zip(names, choices, strict=True)} | ranks

    def uniform(self, positions: Mapping[str, int]) -> Architecture:
        """The same choice in every layer, the most important layers; ``positions`` index every axis's choices."""
        hidden = self.hidden[positions["hidden"]]
        shape = (
            self.kv_groups[positions["kv_groups"]],
            self.heads_per_group[positions["heads_per_group"]],
            self.head_dim[positions["head_dim"]],
            self._ffn_width(self.ffn[positions["ffn"]], hidden),
        )
        kept = self._most_important(self.depth[positions["depth"]])
        inside, outside = (
            tuple((name, values[positions[_rank_key(name)]]) for name, values in choices)
            for choices in (self.ranks, self.shared_ranks)
        )
        return self._made(hidden, [LayerChoice(index, *shape, inside) for index in kept], outside)

    def sample(self, rng: np.random.Generator) -> Architecture:
        """Uniform over the choices of every axis (paper 1, section 3.2: theta ~ Theta)."""
        hidden = _draw(rng, self.hidden)
        head_dim = _draw(rng, self.head_dim)
        depth = _draw(rng, self.depth)
        if self.kind == "joint":
            shape = (_draw(rng, self.kv_groups), _draw(rng, self.heads_per_group), head_dim)
            width = self._ffn_width(_draw(rng, self.ffn), hidden)
            ranks = _draw_ranks(rng, self.ranks)
            layers = [LayerChoice(i, *shape, width, ranks) for i in self._most_important(depth)]
            return self._made(hidden, layers, _draw_ranks(rng, self.shared_ranks))
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
        return self._made(hidden, layers, _draw_ranks(rng, self.shared_ranks))

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
        """Number of choices of every gene.

        Joint: hidden, head_dim, kv_groups, heads_per_group, ffn, depth, the ranks of a block. Per layer: hidden,
        head_dim, then for every layer of the super-network kv_groups, heads_per_group, ffn, kept (2 choices) and its
        ranks. Last, in both, the ranks outside of the blocks.
        """
        shared = (len(self.hidden), len(self.head_dim))
        attention_and_ffn = (len(self.kv_groups), len(self.heads_per_group), len(self.ffn))
        inside, outside = (tuple(len(values) for _, values in choices) for choices in (self.ranks, self.shared_ranks))
        if self.kind == "joint":
            return (*shared, *attention_and_ffn, len(self.depth), *inside, *outside)
        return shared + (*attention_and_ffn, 2, *inside) * len(self.layer_order) + outside

    def encode(self, architecture: Architecture) -> np.ndarray:
        """Indices into the choices, int64 of shape (len(gene_sizes),); dropped layers carry the largest choices.

        Raises:
            ValueError: the architecture is not a point of this space.
        """
        if not architecture.layers or architecture.num_layers not in self.depth:
            raise ValueError(
                f"{architecture.num_layers} layers are not in the space: depth is one of {list(self.depth)}"
            )
        architecture = self._as_uniform(architecture)
        first = architecture.layers[0]
        shared = [_index("hidden", self.hidden, architecture.hidden), _index("head_dim", self.head_dim, first.head_dim)]
        if any(layer.head_dim != first.head_dim for layer in architecture.layers):
            raise ValueError("an architecture of this space has one head_dim for all layers")
        widths = [self._ffn_width(choice, architecture.hidden) for choice in self.ffn]
        outside = _rank_genes(self.shared_ranks, architecture.ranks)
        if self.kind == "joint":
            kept = tuple(layer.index for layer in architecture.layers)
            if len({(layer.shape, layer.ranks) for layer in architecture.layers}) > 1 or kept != self._most_important(
                len(kept)
            ):
                raise ValueError(
                    f"not in the joint space (uniform, most important layers): {architecture.summary()}, layers {kept}"
                )
            inside = _rank_genes(self.ranks, first.ranks)
            genes = [*shared, *self._layer_genes(first, widths), self.depth.index(len(kept)), *inside, *outside]
            return np.array(genes, dtype=np.int64)
        largest = [len(values) - 1 for _, values in self.ranks]
        dropped = [len(self.kv_groups) - 1, len(self.heads_per_group) - 1, len(self.ffn) - 1, 0, *largest]
        by_index = {layer.index: layer for layer in architecture.layers}
        genes = [
            gene
            for index in range(len(self.layer_order))
            for gene in (
                [*self._layer_genes(by_index[index], widths), 1, *_rank_genes(self.ranks, by_index[index].ranks)]
                if index in by_index
                else dropped
            )
        ]
        return np.array(shared + genes + outside, dtype=np.int64)

    def decode(self, genome: np.ndarray | Sequence[int]) -> Architecture:
        """Inverse of :meth:`encode`; an impossible number of layers is mended by the order of their importance.

        Raises:
            ValueError: wrong length or an index out of range.
        """
        genes = [int(gene) for gene in genome]
        if len(genes) != len(self.gene_sizes) or any(
            not 0 <= g < n for g, n in zip(genes, self.gene_sizes, strict=False)
        ):
            raise ValueError(
                f"a genome of this space has {len(self.gene_sizes)} indices below {self.gene_sizes}, got {genes}"
            )
        hidden, head_dim = self.hidden[genes[0]], self.head_dim[genes[1]]
        outside = _ranks_of(self.shared_ranks, genes[len(genes) - len(self.shared_ranks) :])
        if self.kind == "joint":
            g, h, f, d = genes[2:6]
            shape = (self.kv_groups[g], self.heads_per_group[h], head_dim, self._ffn_width(self.ffn[f], hidden))
            ranks = _ranks_of(self.ranks, genes[6 : 6 + len(self.ranks)])
            kept = self._most_important(self.depth[d])
            return self._made(hidden, [LayerChoice(i, *shape, ranks) for i in kept], outside)
        width = 4 + len(self.ranks)  # genes of a layer
        rows = [genes[2 + width * i : 2 + width * (i + 1)] for i in range(len(self.layer_order))]
        layers = []
        for index in self._mended([i for i, row in enumerate(rows) if row[3]]):
            g, h, f, _, *r = rows[index]
            sizes = (self.kv_groups[g], self.heads_per_group[h], head_dim, int(self.ffn[f]))
            layers.append(LayerChoice(index, *sizes, _ranks_of(self.ranks, r)))
        return self._made(hidden, layers, outside)

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
        widths = {self._ffn_width(choice, hidden) for choice in self.ffn for hidden in self.hidden}
        return {axis: getattr(self, axis) for axis in _AXES} | {"ffn": tuple(sorted(widths))}

    @property
    def size(self) -> int:
        """Exact number of distinct architectures, of any magnitude."""
        if self.blocks:
            return self._number_of_depths()
        shared = len(self.hidden) * len(self.head_dim)
        attention = len(self.kv_groups) * len(self.heads_per_group)
        inside, outside = (math.prod(len(v) for _, v in choices) for choices in (self.ranks, self.shared_ranks))
        if self.kind == "joint":
            # Two ratios may round to one width, so widths are counted for every residual width.
            widths = sum(len({self._ffn_width(ratio, hidden) for ratio in self.ffn}) for hidden in self.hidden)
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

    # ---------------------------------------------------------------- inner

    def _made(self, hidden: int, layers: Sequence[LayerChoice], ranks: Ranks) -> Architecture:
        """The architecture of these choices; where layers differ, each has its own shape and its own adapters."""
        if self.blocks:
            layers = [
                replace(self.blocks[layer.index], ranks=_of_groups(layer.ranks, self.blocks[layer.index]))
                for layer in layers
            ]
        return Architecture(hidden, tuple(layers), ranks)

    def _as_uniform(self, architecture: Architecture) -> Architecture:
        """Where layers differ, the choices that the architecture was made of: those of adapters that a layer, or every
        kept layer of the joint space, has not are the largest. Raises ValueError where a layer is cut."""
        if not self.blocks:
            return architecture
        if any(
            not 0 <= c.index < len(self.blocks) or c.shape != self.blocks[c.index].shape for c in architecture.layers
        ):
            raise ValueError(f"not in the space, which keeps every layer whole: {architecture.summary()}")
        whole = {group: values[-1] for group, values in self.ranks}
        if self.kind == "joint":
            for layer in architecture.layers:
                whole |= dict(layer.ranks)
        shape = (self.kv_groups[-1], self.heads_per_group[-1], self.head_dim[-1], self.ffn_max)
        layers = []
        for layer in architecture.layers:
            if layer.ranks != _of_groups(tuple((whole | dict(layer.ranks)).items()), self.blocks[layer.index]):
                raise ValueError(f"adapters {dict(layer.ranks)} are not those of layer {layer.index} of the space")
            ranks = tuple((whole | dict(layer.ranks)).items())
            layers.append(LayerChoice(layer.index, *shape, ranks))
        return Architecture(architecture.hidden, tuple(layers), architecture.ranks)

    def _number_of_depths(self) -> int:
        """Architectures of a space in which only the depth, and ranks of adapters, vary."""
        choices = {group: len(values) for group, values in self.ranks}
        outside = math.prod(len(values) for _, values in self.shared_ranks)
        groups = [{group for group, _ in layer.ranks} for layer in self.blocks]
        if self.kind == "joint":
            kept = (set().union(*(groups[i] for i in self._most_important(depth))) for depth in self.depth)
            return outside * sum(math.prod(choices[group] for group in found) for found in kept)
        by_depth = [1]  # number of ways to keep so many of the layers so far
        for found in groups:
            ways = math.prod(choices[group] for group in found)
            padded = [*by_depth, 0]
            by_depth = [padded[d] + (ways * padded[d - 1] if d else 0) for d in range(len(padded))]
        return outside * sum(by_depth[depth] for depth in self.depth)

    def _most_important(self, depth: int) -> tuple[int, ...]:
        return tuple(sorted(self.layer_order[:depth]))

    def _mended(self, kept: list[int]) -> list[int]:
        if len(kept) in self.depth:
            return kept
        target = min(self.depth, key=lambda depth: (abs(depth - len(kept)), -depth))
        ranked = sorted(
            range(len(self.layer_order)), key=lambda index: (index not in kept, self.layer_order.index(index))
        )
        return sorted(ranked[:target])

    def _ffn_width(self, choice: float, hidden: int) -> int:
        if self.kind == "per_layer":
            return int(choice)
        if choice * hidden >= self.ffn_max - 0.5:
            return self.ffn_max
        width = max(1, round(choice * hidden / self.multiple_of)) * self.multiple_of
        if hidden == self.hidden[-1] and choice == self.ffn[-1]:
            width = round(choice * hidden)  # the full width need not be a multiple
        return min(width, self.ffn_max)

    def _layer_genes(self, layer: LayerChoice, widths: Sequence[int]) -> list[int]:
        return [
            _index("kv_groups", self.kv_groups, layer.kv_groups),
            _index("heads_per_group", self.heads_per_group, layer.heads_per_group),
            _index("ffn", widths, layer.ffn),
        ]


def _index(axis: str, choices: Sequence[int], value: int) -> int:
    if value not in choices:
        raise ValueError(f"{axis}={value} is not in the space: it is one of {list(choices)}")
    return list(choices).index(value)


def _draw(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _rank_key(group: str) -> str:
    return f"rank.{group}"


def _draw_ranks(rng: np.random.Generator, choices: RankChoices) -> Ranks:
    return tuple((group, _draw(rng, values)) for group, values in choices)


def _of_groups(ranks: Ranks, layer: LayerChoice) -> Ranks:
    """Of these ranks those whose groups the layer has."""
    there = {group for group, _ in layer.ranks}
    return tuple(sorted((group, rank) for group, rank in ranks if group in there))


def _ranks_of(choices: RankChoices, genes: Sequence[int]) -> Ranks:
    return tuple((group, values[gene]) for (group, values), gene in zip(choices, genes, strict=True))


def _rank_genes(choices: RankChoices, ranks: Ranks) -> list[int]:
    """Indices into the choices. Raises ValueError where a rank is not among them, or a group is unknown or missing."""
    if tuple(group for group, _ in choices) != tuple(group for group, _ in ranks):
        there = ", ".join(group for group, _ in choices) or "none"
        raise ValueError(f"adapters {[group for group, _ in ranks]} are not those of the space: {there}")
    return [_index(_rank_key(group), values, rank) for (group, values), (_, rank) in zip(choices, ranks, strict=True)]
