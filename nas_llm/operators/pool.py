"""The pool of candidates: which operators may stand in the place of every sublayer (UNAST, paper 3, section 4.1).

The paper has "15 candidates" for attention and for the FFN and never lists them. It names, for GPT-8B's 32 heads of 128
channels, the teacher, identity, linear N x N, 32 x 64, 16 x 128 and 16 x 48; for the FFN the teacher, identity, linear
and expansions 3 and 2 of 4; in appendix H 2:4 sparsity and integers of 4 or 8 bits, each in the first projections, the
last, or both. ``conf/pool/paper.yaml`` has those of 4 bits and infers the rest: 24 x 128, 16 x 64, 8 x 128, and
expansions 2.5, 1.5, 1 and 0.5. Table 2's partitions are pools of their own.

An operator is listed by its name (``nas_llm/operator_network.py``), in which a number with a point is a fraction of
the teacher's size, so that a pool fits every model: ``ffn-0.75``; ``heads-0.5x1.0x0.375``, half of the KV groups with
all of their query heads, three eighths of the channels (multi-head attention: half of the heads). ``int4-both`` has
groups of the largest power of two up to 128 that divides the widths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal, get_args

from torch import nn

from nas_llm.models.operator_modules import refuse_operator
from nas_llm.models.quantized_linear import quantized_modules
from nas_llm.models.quantized_weight import refuse_bits
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import SUBLAYERS, Ffn, Heads, Operator, Quantized, Sparse, Sublayer, Teacher, operator_of
from nas_llm.operators import Place
from nas_llm.operators.decilm import decilm_misfit, refuse_layout
from nas_llm.operators.projections import sublayer_projections

Layout = Literal["decilm"]
LARGEST_GROUP = 128
SMALLEST_GROUP = 8
_HEADS = re.compile(r"heads-([\d.]+)x([\d.]+)x([\d.]+)")
_FFN = re.compile(r"ffn-([\d.]+)")
_QUANTIZED = re.compile(r"int(\d+)-(in|out|both)")


@dataclass(frozen=True)
class Pool:
    """``attention`` and ``mlp`` list names of operators; the teacher is a candidate whether it is listed or not.

    ``layout``: keeps what checkpoints of that layout can hold, alone (``nas_llm/operators/decilm.py``).

    Raises:
        ValueError: an empty list, an unknown name, a fraction that is not above 0 and at most 1, an unknown layout.
    """

    attention: Sequence[str]
    mlp: Sequence[str]
    layout: Layout | None = None

    def __post_init__(self) -> None:
        for sublayer in SUBLAYERS:
            object.__setattr__(self, sublayer, tuple(self.names(sublayer)))
            if not self.names(sublayer):
                raise ValueError(
                    f"pool.{sublayer}=[]: the list of candidates is empty; set pool.{sublayer}=[teacher,identity], or "
                    f"pool.{sublayer}=[teacher] to keep these sublayers as they are"
                )
            for name in self.names(sublayer):
                _check(sublayer, name)
        if self.layout is not None and self.layout not in get_args(Layout):
            raise ValueError(f"pool.layout={self.layout}: allowed are null, {', '.join(get_args(Layout))}")

    def names(self, sublayer: Sublayer) -> Sequence[str]:
        return self.attention if sublayer == "attention" else self.mlp

    def __call__(self, supernet: Supernet) -> dict[Place, tuple[Operator, ...]]:
        """The candidates of every sublayer in the order in which they run: the teacher first, then as they are listed;
        what comes out as another one, or as the teacher, is dropped.

        Raises:
            ValueError: a listed size is impossible, a sublayer's candidates are all the teacher, or none is left in the
                whole network; the network is one of operators or quantised already.
        """
        candidates, reasons = self._resolved(supernet)
        for sublayer in SUBLAYERS:
            left = any(len(found) > 1 for (_, place), found in candidates.items() if place == sublayer)
            lists_others = set(self.names(sublayer)) != {"teacher"}
            if lists_others and not left and not any(key == sublayer for key, _, _ in reasons):
                raise ValueError(
                    f"pool.{sublayer}=[{','.join(self.names(sublayer))}]: all of them are the teacher in a model of "
                    f"these sizes ({supernet.largest().summary()}): list others, as pool.{sublayer}=[teacher,identity]"
                )
        if all(len(found) == 1 for found in candidates.values()):
            said = "; ".join(_said(supernet, reasons)) or "the teacher alone is listed"
            raise ValueError(f"pool: there is no candidate but the teacher ({said}): choose another, as pool=full")
        return candidates

    def left_out(self, supernet: Supernet) -> list[str]:
        """What is listed and does not fit this family or the layout, a line each; duplicates are not among them."""
        return _said(supernet, self._resolved(supernet)[1])

    def _resolved(
        self, supernet: Supernet
    ) -> tuple[dict[Place, tuple[Operator, ...]], dict[tuple[Sublayer, str, str], list[int]]]:
        """The candidates, and the layers by what is left out there: (sublayer, name, why)."""
        _refuse_network(supernet, self.layout)
        candidates: dict[Place, tuple[Operator, ...]] = {}
        reasons: dict[tuple[Sublayer, str, str], list[int]] = {}
        for layer in range(supernet.largest().num_layers):
            for sublayer in SUBLAYERS:
                found: dict[Operator, None] = {Teacher(): None}
                for name in self.names(sublayer):
                    if name == "teacher":
                        continue
                    operator = self._fitting(supernet, layer, sublayer, name)
                    if isinstance(operator, str):
                        reasons.setdefault((sublayer, name, operator), []).append(layer)
                    else:
                        found[operator] = None
                candidates[layer, sublayer] = tuple(found)
        return candidates, reasons

    def _fitting(self, supernet: Supernet, layer: int, sublayer: Sublayer, name: str) -> Operator | str:
        """The operator of a name in this place, or why there is none."""
        if supernet.sublayers[sublayer] is None:
            return f"family {supernet.family!r} has no module of its own for its feed-forward network"
        operator = _operator(supernet, layer, sublayer, name)
        if isinstance(operator, str):
            return operator
        try:
            refuse_operator(supernet, layer, sublayer, operator)
        except ValueError as error:
            if isinstance(operator, Heads | Ffn) and "." not in name:
                raise ValueError(f"pool.{sublayer}: {error}") from error
            return str(error).partition(f"operator {operator.name}")[2].lstrip(": ") or str(error)
        why = _dividing(supernet, layer, sublayer, operator)
        if why is None and self.layout == "decilm":
            why = decilm_misfit(supernet, layer, sublayer, operator)
        return operator if why is None else why


def _check(sublayer: Sublayer, name: str) -> None:
    """Refuses what is no name of an operator, whichever the model."""
    relative = {"attention": _HEADS, "mlp": _FFN}[sublayer].fullmatch(name)
    if relative and "." in name:
        for size in relative.groups():
            if "." in size and not 0 < _number(size) <= 1:
                raise ValueError(
                    f"pool.{sublayer}: {name}: {size} is a fraction of the teacher's size, above 0 and at most 1.0; "
                    f"a number of units has no point"
                )
        return
    grouped = name.replace("-", f"-g{SMALLEST_GROUP}-", 1) if _QUANTIZED.fullmatch(name) else name
    try:
        operator = operator_of(grouped)
    except ValueError as error:
        raise ValueError(
            f"pool.{sublayer}: {error}; a size with a point is a fraction of the teacher's, as heads-0.5x1.0x1.0 and "
            "ffn-0.75"
        ) from error
    if isinstance(operator, Quantized):
        refuse_bits(operator.bits, f"pool.{sublayer}: {name}: bits")
    if isinstance(operator, Sparse) and not 0 < int(operator.pattern.split(":")[0]) < int(
        operator.pattern.split(":")[1]
    ):
        raise ValueError(f"pool.{sublayer}: {name}: N of every M weights stay, 0 < N < M, as sparse-2:4-in")
    if {Heads: "mlp", Ffn: "attention"}.get(type(operator)) == sublayer:
        raise ValueError(f"pool.{sublayer}: {name} is an operator of the other sublayer")


def _number(size: str) -> float:
    try:
        return float(size)
    except ValueError:
        return 0.0


def _operator(supernet: Supernet, layer: int, sublayer: Sublayer, name: str) -> Operator | str:
    """The operator of a name in this place, or why there is none; Teacher where it would be the whole sublayer."""
    full = supernet.largest().layers[layer]
    if found := _HEADS.fullmatch(name):
        groups, heads, channels = found.groups()
        head_dim = _size(channels, full.head_dim, _multiple(full.head_dim, 8, 2, 8))
        made = Heads(_size(groups, full.kv_groups), _size(heads, full.heads_per_group), head_dim)
        return Teacher() if made == Heads(*full.shape[:3]) else made
    if found := _FFN.fullmatch(name):
        width = _size(found[1], full.ffn, _multiple(full.ffn, 32, 4, 256))
        return Teacher() if width == full.ffn else Ffn(width)
    if found := _QUANTIZED.fullmatch(name):
        widths = _widths(supernet, layer, sublayer, Quantized(int(found[1]), 1, found[2]))  # type: ignore[arg-type]
        group = gcd(LARGEST_GROUP, *widths)
        if group < SMALLEST_GROUP:
            return f"no group of at least {SMALLEST_GROUP} weights divides the widths {', '.join(map(str, widths))}"
        return Quantized(int(found[1]), group, found[2])  # type: ignore[arg-type]
    return operator_of(name)


def _size(given: str, full: int, multiple: int = 1) -> int:
    """A number of units: as it is, or the fraction of ``full`` rounded to a multiple, at least one of them."""
    if "." not in given:
        return int(given)
    fraction = float(given)
    return full if fraction == 1 else min(full, max(multiple, int(fraction * full / multiple + 0.5) * multiple))


def _multiple(full: int, parts: int, least: int, most: int) -> int:
    """The largest power of two that is at most a ``parts``-th of ``full``, from ``least`` to ``most``."""
    return int(min(most, max(least, 2 ** max(0, (full // parts).bit_length() - 1))))


def _dividing(supernet: Supernet, layer: int, sublayer: Sublayer, operator: Operator) -> str | None:
    """Why a sparse or quantised sublayer cannot be made: its widths do not divide, or it holds no nn.Linear."""
    if not isinstance(operator, Sparse | Quantized):
        return None
    widths = _widths(supernet, layer, sublayer, operator)
    if isinstance(operator, Quantized):
        every = sublayer_projections(supernet, layer, sublayer).of(operator.projections).values()
        if not all(isinstance(projection.module, nn.Linear) for projection in every):
            return f"family {supernet.family!r} has no linear layers (nn.Linear) to quantise"
        size = operator.group_size
    else:
        size = int(operator.pattern.partition(":")[2])
    misfits = [width for width in widths if width % size]
    return f"groups of {size} do not divide the width {misfits[0]}" if misfits else None


def _widths(supernet: Supernet, layer: int, sublayer: Sublayer, operator: Sparse | Quantized) -> tuple[int, ...]:
    """Input widths of the projections that the operator changes, each once."""
    every = sublayer_projections(supernet, layer, sublayer).of(operator.projections).values()
    return tuple(dict.fromkeys(projection.weight.shape[1] for projection in every))


def _refuse_network(supernet: Supernet, layout: Layout | None) -> None:
    if layout == "decilm":
        refuse_layout(supernet)
    if supernet.operators is not None:
        raise ValueError(
            "the model is a network of operators already: set model.path to the network it was made from, or choose "
            "among its layers alone, search_space=depth_only"
        )
    if supernet.is_rotated:
        raise ValueError(
            "the residual stream of the model is rotated by its sublayers (SliceGPT), whose place no operator can "
            "take: set model.path to the network it was made from"
        )
    if quantized_modules(supernet.model):
        raise ValueError("the model is quantised already: set model.path to the network before it was quantised")


def _said(supernet: Supernet, reasons: dict[tuple[Sublayer, str, str], list[int]]) -> list[str]:
    names: dict[tuple[Sublayer, str, tuple[int, ...]], list[str]] = {}
    for (sublayer, name, why), layers in reasons.items():
        names.setdefault((sublayer, why, tuple(layers)), []).append(name)
    lines = []
    for (sublayer, reason, where), listed in names.items():
        everywhere = len(where) == supernet.largest().num_layers
        place = "" if everywhere else f" in layer {', '.join(map(str, where))}"
        lines.append(f"{sublayer}: {', '.join(listed)} left out{place}: {reason}")
    return lines
