"""What distilling an operator takes, by arithmetic on shapes: a teacher on the meta device will do.

An operator in training holds float32 weights w and Adam's two moments, 12 bytes a parameter; its gradient (4 bytes)
and activations exist while it is its turn, so that of those only the largest counts. Operators that are not trained
(identity, 2:4, integers) hold their weights alone, and the statistics of their calibration before training begins.
Activations are estimated: what every projection reads and writes, twice, and with eager attention the scores.
A forward and a backward pass take 6 FLOPs for each multiply-accumulate of a forward pass, no more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from nas_llm.models.operator_modules import build_sublayer, sublayer_of
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import BlockOperators, Identity, Linear, Operator, Teacher
from nas_llm.operators import Place
from nas_llm.operators.initial import is_trained

Operators = Mapping[Place, Sequence[Operator]]
TRAINING_BYTES = 4
ADAM_BYTES = 8


@dataclass(frozen=True)
class Need:
    """Of one operator: parameters, multiply-accumulates of a token's forward pass, and bytes.

    ``held_bytes`` are there as long as its group is in work, ``turn_bytes`` while it is its turn.
    """

    params: int
    macs: int
    held_bytes: int
    turn_bytes: int
    is_trained: bool

    @property
    def step_flops(self) -> int:
        """Of a token in a training step."""
        return 6 * self.macs if self.is_trained else 0


Members = Sequence[tuple[Place, Operator, Need]]


@dataclass(frozen=True)
class Needs:
    """What operators of a teacher need at batches of (``batch_size``, ``sequence_length``) tokens.

    ``accumulates``: gradients of all operators are held over several batches.
    """

    supernet: Supernet
    batch_size: int
    sequence_length: int
    accumulates: bool = False

    @property
    def tokens(self) -> int:
        return self.batch_size * self.sequence_length

    @cached_property
    def teacher_bytes(self) -> int:
        """The teacher's weights and its activations in the widest block."""
        full = self.supernet.largest()
        widest = max(self._activations(self._meta.blocks[layer.index], layer.heads) for layer in full.layers)
        return self.supernet.weight_bytes(full) + (4 * full.hidden * self.tokens + widest) * self._itemsize

    @cached_property
    def layer_macs(self) -> tuple[int, ...]:
        """Multiply-accumulates of a token in every block of the teacher."""
        return tuple(
            sum(part.weight.numel() for part in _projections(self._meta.blocks[layer.index]))
            + 2 * self.sequence_length * layer.heads * layer.head_dim
            for layer in self.supernet.largest().layers
        )

    def macs(self, place: Place, operator: Operator) -> int:
        """Multiply-accumulates of a token's forward pass; attention's with all tokens of its sequence."""
        return self._macs(place, operator, self._module(place, operator))

    def of(self, place: Place, operator: Operator) -> Need:
        module = self._module(place, operator)
        params = sum(parameter.numel() for parameter in module.parameters())
        trained = is_trained(operator)
        masters = max(TRAINING_BYTES, self._itemsize)
        held = params * (masters + ADAM_BYTES if trained else self._itemsize)
        heads = BlockOperators(**{place[1]: operator}).sizes(self.supernet.largest().layers[place[0]]).heads
        hidden = self.supernet.largest().hidden
        activations = (
            self._activations(module, heads if place[1] == "attention" else 0) + 6 * hidden * self.tokens
        ) * masters
        gradient = params * masters if trained else 0
        return Need(
            params=params,
            macs=self._macs(place, operator, module),
            held_bytes=held + (gradient if self.accumulates else 0),
            turn_bytes=activations + (0 if self.accumulates else gradient),
            is_trained=trained,
        )

    def group_bytes(self, members: Members) -> int:
        """The most that a process holds while it works on a group, the teacher included, the interpreter not."""
        held = sum(need.held_bytes for _, _, need in members)
        turn = max(need.turn_bytes for _, _, need in members)
        by_place: dict[Place, list[Operator]] = {}
        for place, operator, _ in members:
            by_place.setdefault(place, []).append(operator)
        start = sum(self._statistics(place, found) for place, found in by_place.items())
        start += sum(need.params for _, _, need in members) * self._itemsize
        return self.teacher_bytes + max(held + turn, start)

    # ---------------------------------------------------------------- inner

    @property
    def _itemsize(self) -> int:
        return self.supernet.model.dtype.itemsize

    @cached_property
    def _meta(self) -> Supernet:
        """The teacher without memory for its weights, of which operators are cut to see their shapes."""
        empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in self.supernet.parameters()}
        return copy.deepcopy(self.supernet, empty)

    def _module(self, place: Place, operator: Operator) -> nn.Module:
        return (
            sublayer_of(self._meta, *place)
            if isinstance(operator, Teacher)
            else build_sublayer(self._meta, *place, operator)
        )

    def _macs(self, place: Place, operator: Operator, module: nn.Module) -> int:
        weights = sum(part.weight.numel() for part in _projections(module))
        choice = BlockOperators(**{place[1]: operator}).sizes(self.supernet.largest().layers[place[0]])
        attends = place[1] == "attention"
        return weights + (2 * self.sequence_length * choice.heads * choice.head_dim if attends else 0)

    def _activations(self, module: nn.Module, heads: int) -> int:
        """Numbers that a batch's forward pass leaves for its backward pass."""
        per_token = 2 * sum(sum(part.weight.shape) for part in _projections(module))
        if self.supernet.config._attn_implementation == "eager":
            per_token += 3 * heads * self.sequence_length
        return per_token * self.tokens

    def _statistics(self, place: Place, operators: Sequence[Operator]) -> int:
        """Bytes of what first weights are made from (operators/initial.py): second moments of the sublayer's reads and
        of its last projection's, the least squares of linear, and two working copies."""
        hidden = self.supernet.largest().hidden
        widths = [
            part.weight.shape[0 if isinstance(part, Conv1D) else 1]
            for part in _projections(self._module(place, Teacher()))
        ]
        reads = 2 * hidden**2 if any(isinstance(o, Linear) for o in operators) else hidden**2
        if all(isinstance(operator, Identity) for operator in operators):
            return 0
        return 4 * (reads + 3 * max(widths) ** 2)


def _projections(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, nn.Linear | Conv1D)]
