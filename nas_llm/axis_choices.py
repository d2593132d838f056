"""The choices of the axes of a search space: which axes vary, equally spaced defaults, the refusal of impossible ones.

An axis that is not elastic stays whole, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nas_llm.architecture import Architecture, LayerChoice, Ranks

AXES = ("hidden", "kv_groups", "heads_per_group", "head_dim", "ffn", "depth")
DEPTH = "depth"
RANK = "rank"  # of low-rank adapters: an axis of networks that have some
UNSTATED = ("hidden", "kv_groups", "ffn", "depth")  # vary where `elastic` is not given
_EVEN = 2  # rotary pairs of a head stay together


RankChoices = tuple[tuple[str, tuple[int, ...]], ...]
"""Ascending ranks by the name of the group."""


class Elastic(Protocol):
    """What a space needs to know of a super-network."""

    @property
    def layer_order(self) -> tuple[int, ...]: ...  # most important first

    @property
    def elastic_axes(self) -> frozenset[str]: ...  # that the family can slice

    def largest(self) -> Architecture: ...


@dataclass(frozen=True)
class AxisGrid:
    """Equally spaced default choices of an axis."""

    min_fraction: float
    steps: int
    multiple_of: int

    def __post_init__(self) -> None:
        if not 0 < self.min_fraction <= 1:
            raise ValueError(f"search_space.min_fraction={self.min_fraction}: allowed is above 0 and at most 1")
        for key, value in (("steps", self.steps), ("multiple_of", self.multiple_of)):
            if value < 1:
                raise ValueError(f"search_space.{key}={value}: allowed is at least 1")

    def choices(self, full: int, multiple_of: int) -> list[int]:
        """Ascending sizes in multiples of ``multiple_of``; the last is ``full`` itself."""
        wanted = np.linspace(self.min_fraction * full, full, self.steps)[:-1]
        rounded = (max(1, round(float(size) / multiple_of)) * multiple_of for size in wanted)
        return sorted({size for size in rounded if size < full} | {full})


@dataclass(frozen=True)
class AxisChoices:
    """The choices of every axis of a super-network; ``elastic`` names those that vary, None the usual ones and those
    that choices are given for.

    Where the layers differ in shape, or are operators (:mod:`nas_llm.operator_network`), only the depth varies.

    Raises:
        ValueError: no layers, or ``elastic`` is empty, repeats an axis, or names one that is unknown or that the
            network cannot slice.
    """

    supernet: Elastic
    grid: AxisGrid
    elastic: Sequence[str] | None = None

    def __post_init__(self) -> None:
        full = self.supernet.largest()
        if not full.layers:
            raise ValueError("a search space needs a super-network that has layers")
        if self.elastic is None:
            return
        has_ranks = bool(full.ranks or any(layer.ranks for layer in full.layers))
        allowed = [axis for axis in AXES if self._can_slice(axis)] + ([RANK] if has_ranks else [])
        if RANK in self.elastic and not has_ranks:
            raise ValueError(
                f"search_space.elastic=[{','.join(self.elastic)}]: the network has no low-rank adapters whose rank "
                "could vary; add them, peft=lora, or leave rank out"
            )
        words = ", ".join(allowed) or "none: set search_space=whole"
        named = f"search_space.elastic=[{','.join(self.elastic)}]"
        if unknown := [axis for axis in self.elastic if axis not in (*AXES, RANK)]:
            raise ValueError(f"{named}: there is no axis {unknown[0]}; allowed are {', '.join(allowed)}")
        if rigid := [axis for axis in self.elastic if axis not in allowed]:
            raise ValueError(f"{named}: {self._whose} cannot slice {rigid[0]}; allowed are {words}")
        if not self.elastic or len(set(self.elastic)) < len(self.elastic):
            raise ValueError(f"{named}: name each axis that is to vary once, at least one; allowed are {allowed}")

    @property
    def full(self) -> dict[str, int]:
        """The whole size of every axis, of the largest layer where they differ."""
        whole = self.supernet.largest()
        sizes = (whole.hidden, *map(max, zip(*(layer.shape for layer in whole.layers), strict=True)), whole.num_layers)
        return dict(zip(AXES, sizes, strict=True))

    @property
    def blocks(self) -> tuple[LayerChoice, ...]:
        """The whole layers of a network that only varies in depth, where they are not all the same; empty otherwise."""
        layers = self.supernet.largest().layers
        if not self._is_rigid or len({(layer.shape, layer.ranks) for layer in layers}) == 1:
            return ()
        return layers

    def sizes(self, axis: str, given: Sequence[int] | None) -> tuple[int, ...]:
        """Ascending sizes of an axis: those given, the defaults, or only the whole size.

        Raises:
            ValueError: impossible sizes, or sizes of an axis that does not vary.
        """
        full = self.full[axis]
        if not self._varies(axis, axis, given):
            return (full,)
        multiple_of = {"hidden": self.grid.multiple_of, "ffn": self.grid.multiple_of, "head_dim": _EVEN}.get(axis, 1)
        choices = checked(axis, given, full, self.grid.choices(full, multiple_of))
        if not self._can_slice(axis) and choices != (full,):
            raise ValueError(
                f"search_space.{axis}={list(choices)}: {self._whose} cannot slice {axis}; allowed is [{full}] "
                f"(leave it out: search_space.{axis}=null)"
            )
        if axis == "head_dim" and any(size % _EVEN for size in choices):
            raise ValueError(
                f"search_space.head_dim={list(choices)}: head sizes must be even (rotary pairs stay together)"
            )
        return choices

    def ffn_ratios(self, given: Sequence[float] | None, hidden: Sequence[int]) -> tuple[float, ...]:
        """Ascending ratios of the FFN to the residual width, of which ``hidden`` are the choices.

        Where the FFN does not vary, the one ratio gives its whole width at the smallest residual width already.

        Raises:
            ValueError: impossible ratios, or ratios of an FFN that does not vary.
        """
        width, full = self.full["ffn"], self.full["hidden"]
        if not self._varies("ffn", "ffn_ratio", given):
            return (width / hidden[0],)
        if not self._can_slice("ffn"):
            raise ValueError(
                f"search_space.ffn_ratio={given}: {self._whose} cannot slice ffn; leave it out, "
                "search_space.ffn_ratio=null"
            )
        if given is not None:
            return checked_ratios(given, width / full)
        return tuple(choice / full for choice in self.grid.choices(width, self.grid.multiple_of))

    def ranks(self, given: Sequence[int] | Mapping[str, Sequence[int]] | None) -> tuple[RankChoices, RankChoices]:
        """Ascending ranks of every group of adapters, in the blocks and outside of them: those given (for all groups,
        or by name), the defaults where ``elastic`` names the axis, or only the whole rank.

        Raises:
            ValueError: impossible ranks, an unknown group, or ranks that do not vary.
        """
        full = self.supernet.largest()
        inside, outside = tuple(sorted({pair for layer in full.layers for pair in layer.ranks})), full.ranks
        if not self.blocks and any(layer.ranks != inside for layer in full.layers):
            raise ValueError("a search space needs adapters that are the same in every layer")
        names = [name for name, _ in inside + outside]
        if given is not None and not names:
            raise ValueError(
                f"search_space.ranks={given} cannot take effect: the network has no low-rank adapters; add them, "
                "peft=lora, or leave the ranks out, search_space.ranks=null"
            )
        if isinstance(given, Mapping) and (unknown := [name for name in given if name not in names]):
            raise ValueError(
                f"search_space.ranks: there is no group of adapters {unknown[0]!r}; there are {', '.join(names)}"
            )
        if given is not None and self.elastic is not None and RANK not in self.elastic:
            raise ValueError(
                f"search_space.ranks={given} cannot take effect: the rank stays whole in this space; let it vary, "
                f"search_space.elastic=[{','.join([*self.elastic, RANK])}], or set search_space.ranks=null"
            )
        return self._rank_choices(inside, given), self._rank_choices(outside, given)

    def _rank_choices(self, whole: Ranks, given: Sequence[int] | Mapping[str, Sequence[int]] | None) -> RankChoices:
        varies = self.elastic is not None and RANK in self.elastic
        found = []
        for name, rank in whole:
            wanted = given.get(name) if isinstance(given, Mapping) else given
            default = self.grid.choices(rank, max(1, rank // self.grid.steps)) if varies else [rank]
            if isinstance(given, Mapping) and wanted is None:
                default = [rank]
            found.append((name, checked(f"ranks.{name}", wanted, rank, default)))
        return tuple(found)

    def _varies(self, axis: str, key: str, given: Sequence[float] | None) -> bool:
        if self.elastic is None:
            return given is not None or (axis in UNSTATED and self._can_slice(axis))
        if given is not None and axis not in self.elastic:
            both = ",".join([*self.elastic, axis])
            raise ValueError(
                f"search_space.{key}={list(given)} cannot take effect: {axis} stays whole in this space; let it vary, "
                f"search_space.elastic=[{both}], or leave it out, search_space.{key}=null"
            )
        return axis in self.elastic

    def _can_slice(self, axis: str) -> bool:
        if axis == DEPTH:
            return bool(self.supernet.elastic_axes)
        return not self._is_rigid and (axis == "ffn" or axis in self.supernet.elastic_axes)

    @property
    def _is_rigid(self) -> bool:
        """Whether every layer is kept whole or not at all; where no axis is elastic, all of them."""
        return self.supernet.elastic_axes <= {"layers"} or not self.supernet.largest().is_uniform

    @property
    def _whose(self) -> str:
        if not self.supernet.elastic_axes:
            return "this network, whose residual stream is rotated by sublayer (SliceGPT),"
        return "this network, whose layers differ or are operators," if self._is_rigid else "this model family"


def rank_key(group: str) -> str:
    """The name of the axis of the ranks of a group of adapters."""
    return f"rank.{group}"


def checked(axis: str, given: Sequence[int] | None, full: int, default: Sequence[int]) -> tuple[int, ...]:
    """Ascending distinct sizes. Raises ValueError where one is no whole number from 1 to ``full``, or none is given."""
    values = list(default if given is None else given)
    if not values:
        raise ValueError(
            f"search_space.{axis}=[]: the list of choices is empty; allowed are sizes between 1 and {full}"
        )
    if any(isinstance(value, bool) or int(value) != value for value in values):
        raise ValueError(f"search_space.{axis}={values}: allowed are whole numbers between 1 and {full}")
    if min(values) < 1 or max(values) > full:
        raise ValueError(f"search_space.{axis}={values}: the model has {full}; allowed are sizes between 1 and {full}")
    return tuple(sorted({int(value) for value in values}))


def checked_ratios(given: Sequence[float], full: float) -> tuple[float, ...]:
    """Ascending distinct ratios. Raises ValueError where one is not above 0 and at most ``full``, or none is given."""
    values = sorted({float(value) for value in given})
    if not values:
        raise ValueError(
            f"search_space.ffn_ratio=[]: the list of choices is empty; allowed are ratios above 0 and at most {full:g}"
        )
    if values[0] <= 0 or values[-1] > full + 1e-9:
        raise ValueError(
            f"search_space.ffn_ratio={values}: the model has {full:g}; allowed are ratios above 0 and at most {full:g}"
        )
    return tuple(values)
