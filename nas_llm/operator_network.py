"""Operators, which stand in the place of a transformer block's attention or feed-forward network, and networks of them
(UNAST, paper 3, section 3).

All are values. An operator has one canonical name, from which it can be read again; the name is what files, tables and
configurations hold:

    teacher             the sublayer as it is
    identity            nothing: the residual connection alone
    linear              one matrix (hidden, hidden)
    heads-4x2x16        attention of 4 KV groups of 2 query heads of 16 channels
    ffn-96              a feed-forward network of 96 neurons
    sparse-2:4-in       the sublayer with 2 zeros in every 4 weights of its first projections (in), last (out), or both
    int4-g32-both       the sublayer with weights of 4 bits in groups of 32
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from nas_llm.architecture import LayerChoice

Sublayer = Literal["attention", "mlp"]
SUBLAYERS: tuple[Sublayer, ...] = get_args(Sublayer)
Projections = Literal["in", "out", "both"]


@dataclass(frozen=True, order=True)
class Teacher:
    """The sublayer as it is."""

    @property
    def name(self) -> str:
        return "teacher"


@dataclass(frozen=True, order=True)
class Identity:
    """Writes nothing into the residual stream."""

    @property
    def name(self) -> str:
        return "identity"


@dataclass(frozen=True, order=True)
class Linear:
    """One matrix (hidden, hidden) and a bias."""

    @property
    def name(self) -> str:
        return "linear"


@dataclass(frozen=True, order=True)
class Heads:
    """Attention of fewer KV groups, fewer query heads in each, or fewer channels of a head."""

    kv_groups: int
    heads_per_group: int
    head_dim: int

    @property
    def name(self) -> str:
        return f"heads-{self.kv_groups}x{self.heads_per_group}x{self.head_dim}"


@dataclass(frozen=True, order=True)
class Ffn:
    """A feed-forward network of fewer neurons."""

    ffn: int

    @property
    def name(self) -> str:
        return f"ffn-{self.ffn}"


@dataclass(frozen=True, order=True)
class Sparse:
    """The sublayer with N of every M weights along the inputs, the others zero."""

    pattern: str
    projections: Projections

    @property
    def name(self) -> str:
        return f"sparse-{self.pattern}-{self.projections}"


@dataclass(frozen=True, order=True)
class Quantized:
    """The sublayer with integer weights, a scale and a zero point for every ``group_size`` of them along the inputs."""

    bits: int
    group_size: int
    projections: Projections

    @property
    def name(self) -> str:
        return f"int{self.bits}-g{self.group_size}-{self.projections}"


Operator = Teacher | Identity | Linear | Heads | Ffn | Sparse | Quantized

_PLAIN: dict[str, Operator] = {"teacher": Teacher(), "identity": Identity(), "linear": Linear()}
_HEADS = re.compile(r"heads-(\d+)x(\d+)x(\d+)")
_FFN = re.compile(r"ffn-(\d+)")
_SPARSE = re.compile(r"sparse-(\d+:\d+)-(in|out|both)")
_QUANTIZED = re.compile(r"int(\d+)-g(\d+)-(in|out|both)")


def operator_of(name: str) -> Operator:
    """The operator of a name.

    Raises:
        ValueError: it is none.
    """
    if name in _PLAIN:
        return _PLAIN[name]
    if found := _HEADS.fullmatch(name):
        return Heads(*map(int, found.groups()))
    if found := _FFN.fullmatch(name):
        return Ffn(int(found[1]))
    if found := _SPARSE.fullmatch(name):
        return Sparse(found[1], found[2])  # type: ignore[arg-type]
    if found := _QUANTIZED.fullmatch(name):
        return Quantized(int(found[1]), int(found[2]), found[3])  # type: ignore[arg-type]
    raise ValueError(
        f"operator {name!r} is not known: allowed are {', '.join(_PLAIN)}, heads-<KV groups>x<heads of a group>x"
        "<channels>, ffn-<neurons>, sparse-<N>:<M>-<in|out|both>, int<bits>-g<group size>-<in|out|both>"
    )


@dataclass(frozen=True, order=True)
class BlockOperators:
    """The two operators of one transformer block."""

    attention: Operator = Teacher()
    mlp: Operator = Teacher()

    def of(self, sublayer: Sublayer) -> Operator:
        return self.attention if sublayer == "attention" else self.mlp

    def sizes(self, full: LayerChoice) -> LayerChoice:
        """Sizes of the teacher's block ``full`` with these operators; a place without attention, or without a
        feed-forward network, has zeros."""
        attention, ffn = full.shape[:3], full.ffn
        if isinstance(self.attention, Heads):
            attention = (self.attention.kv_groups, self.attention.heads_per_group, self.attention.head_dim)
        elif isinstance(self.attention, Identity | Linear):
            attention = (0, 0, 0)
        if isinstance(self.mlp, Ffn):
            ffn = self.mlp.ffn
        elif isinstance(self.mlp, Identity | Linear):
            ffn = 0
        return LayerChoice(full.index, *attention, ffn)


@dataclass(frozen=True)
class OperatorNetwork:
    """One operator for every sublayer of a teacher. Immutable, hashable, JSON-able."""

    blocks: tuple[BlockOperators, ...]

    @classmethod
    def teacher(cls, num_layers: int) -> OperatorNetwork:
        """The network in which every sublayer is as it was."""
        return cls((BlockOperators(),) * num_layers)

    @classmethod
    def of(cls, operators: Mapping[tuple[int, Sublayer], Operator], num_layers: int) -> OperatorNetwork:
        """The network of these operators by layer and sublayer; all others are the teacher's."""
        return cls(
            tuple(
                BlockOperators(*(operators.get((layer, sublayer), Teacher()) for sublayer in SUBLAYERS))
                for layer in range(num_layers)
            )
        )

    @cached_property
    def id(self) -> str:
        """12 hexadecimal digits, the same on every machine and in every run."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def operators(self) -> dict[tuple[int, Sublayer], Operator]:
        """By layer and sublayer, in the order in which they run."""
        return {(i, sublayer): block.of(sublayer) for i, block in enumerate(self.blocks) for sublayer in SUBLAYERS}

    def overlap(self, other: OperatorNetwork) -> int:
        """Number of sublayers with the same operator in both."""
        theirs = other.operators
        return sum(operator == theirs[place] for place, operator in self.operators.items())

    def to_dict(self) -> dict[str, Any]:
        return {"blocks": [{sublayer: block.of(sublayer).name for sublayer in SUBLAYERS} for block in self.blocks]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OperatorNetwork:
        """Inverse of ``to_dict``. Raises ValueError where it is not of that form."""
        try:
            return cls(tuple(BlockOperators(*(operator_of(block[s]) for s in SUBLAYERS)) for block in data["blocks"]))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"not a network of operators: {error}; needed is 'blocks', a list of {{attention: name, mlp: name}}"
            ) from error
