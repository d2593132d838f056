"""Measures the latency of every distinct operator on the target device (UNAST, paper 3, section 3.3).

An operator is timed where it will run: in a whole model of ``depth`` blocks with weights of their own, so that what a
cache holds, and what the code around a block costs, are as in the network. In a stack with the operator in every block
beside the teacher's other sublayer, n blocks,

    T(attention operator a, mlp operator m) = fixed + n (t_a + t_m),

and without a block T = fixed (of every kind of attention by itself, and of all together). One least-squares solution
gives all t; the two identities of a block are made equal, for only the sum of a block's two is seen. All stacks are
timed once in each round, in another order every time, and a round's times are divided by how slow that round was as a
whole: what slows the machine for a while falls on all alike. The spread is half of the range of the middle half of the
solutions of the rounds.
"""

from __future__ import annotations

import copy
import datetime
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from nas_llm.architecture import Architecture
from nas_llm.models.operator_assembly import Make, assemble
from nas_llm.models.operator_modules import build_sublayer, sublayer_path
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet
from nas_llm.models.timing import (
    PHASES,
    Pass,
    Phase,
    interleaved,
    refuse_absent,
    refuse_too_long,
    threads,
    tokens_to_time,
)
from nas_llm.operator_network import (
    SUBLAYERS,
    BlockOperators,
    Identity,
    Linear,
    Operator,
    OperatorNetwork,
    Quantized,
    Sublayer,
)
from nas_llm.operators import Place
from nas_llm.operators.latency_table import Conditions, LatencyTable, Milliseconds, key_of, teacher_keys
from nas_llm.operators.projections import sublayer_projections

Say = Callable[[str], None]
FIXED = "fixed"


@dataclass(frozen=True)
class LatencyMeasurement:
    """How latencies are measured.

    Args:
        batch_size: sequences.
        sequence_length: tokens of the prompt.
        phase: "prefill", or "decode": one token with a cache of ``sequence_length``.
        depth: blocks of a stack, at most those of the network.
        warmup: rounds that are not counted.
        rounds: that are.
        device: as torch names it; None measures where the super-network lies.
        threads: of a CPU; None leaves the process's.

    Raises:
        ValueError: a field out of range, or a device that is not there.
    """

    batch_size: int = 1
    sequence_length: int = 256
    phase: Phase = "prefill"
    depth: int = 8
    warmup: int = 2
    rounds: int = 20
    device: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "sequence_length": 1, "depth": 1, "warmup": 0, "rounds": 1, "threads": 1}
        for key, low in least.items():
            value = getattr(self, key)
            if value is not None and value < low:
                raise ValueError(f"latency.{key}={value}: it must be at least {low}")
        if self.phase not in PHASES:
            raise ValueError(f"latency.phase={self.phase}: allowed are {', '.join(PHASES)}")
        refuse_absent(self.device, "latency.device")

    def conditions(self, supernet: Supernet) -> Conditions:
        """What a table measured here and now holds for."""
        model = supernet.model
        device = self.device_of(supernet)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
        return Conditions(
            device=name,
            threads=None if device.type == "cuda" else self.threads or torch.get_num_threads(),
            dtype=str(model.dtype).removeprefix("torch."),
            attention=str(model.config._attn_implementation),
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            phase=self.phase,
        )

    def __call__(
        self,
        supernet: Supernet,
        operators: Mapping[Place, Sequence[Operator]],
        rng: np.random.Generator,
        say: Say = lambda line: None,
    ) -> LatencyTable:
        """The table of a pool; the teacher's sublayers and identity are measured whether or not they are in it.

        ``rng`` draws the order in which a round goes through the stacks.

        Raises:
            ValueError: an operator that does not fit into its place, or a sequence beyond the model's positions.
        """
        refuse_too_long(supernet.model, self.sequence_length, self.phase, "latency")
        device = self.device_of(supernet)
        with torch.inference_mode(), threads(self.threads):
            stacks = list(_stacks(supernet, operators, self.depth, device))
            say(f"{len(stacks)} stacks of at most {self.depth} blocks, {self.rounds} rounds")
            passes = [self._pass(stack) for stack in stacks]
            times = self.timed(passes, device, rng)
        return LatencyTable(
            conditions=self.conditions(supernet),
            **_solved(stacks, times),
            teacher=teacher_keys(supernet),
            depth=max(stack.blocks for stack in stacks),
            rounds=self.rounds,
            torch=torch.__version__,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def timed(self, passes: Sequence[Pass], device: torch.device, rng: np.random.Generator) -> np.ndarray:
        """Milliseconds (clock, rounds, passes): on the wall, and of this process; every round in its own order."""
        times = interleaved(passes, device, warmup=self.warmup, rounds=self.rounds, rng=rng)
        clocks = [[[time.wall_ms, time.process_ms] for time in of_pass] for of_pass in times]
        return np.array(clocks).transpose(2, 1, 0)

    def whole_pass(self, model: PreTrainedModel) -> Pass:
        """The forward pass of a whole model."""
        return self._pass(_Stack(model, model.config.num_hidden_layers, ()))

    def _pass(self, stack: _Stack) -> Pass:
        tokens = tokens_to_time(stack.model, self.batch_size, self.sequence_length)
        cache = None
        if self.phase == "decode" and stack.cached is not None:
            cache = stack.cached(input_ids=tokens, use_cache=True).past_key_values
        return Pass.of(stack.model, tokens, self.phase, cache)

    def device_of(self, supernet: Supernet) -> torch.device:
        """Where it measures."""
        return supernet.model.device if self.device is None else torch.device(self.device)


@dataclass(frozen=True)
class _Stack:
    """A model of ``blocks`` equal blocks; ``keys`` of what runs in each; ``cached``: the model that has the cache,
    where this one has no attention; ``fixed``: key of what runs outside of the blocks."""

    model: PreTrainedModel
    blocks: int
    keys: tuple[str, ...]
    cached: PreTrainedModel | None = None
    fixed: str = FIXED


def _stacks(
    supernet: Supernet, operators: Mapping[Place, Sequence[Operator]], depth: int, device: torch.device
) -> Iterator[_Stack]:
    groups: dict[tuple[str, ...], list[int]] = {}  # blocks of equal sublayers
    kinds: dict[str, list[int]] = {}  # of attention: each has masks and rotary angles of its own
    for layer, keys in enumerate(teacher_keys(supernet)):
        groups.setdefault(tuple(keys[sublayer] for sublayer in SUBLAYERS), []).append(layer)
        kinds.setdefault(keys["attention"].partition("@")[2], []).append(layer)
    if len(kinds) > 1:
        small, teacher = _teacher(supernet, sorted(layers[0] for layers in kinds.values()), device)
        yield _Stack(_emptied(teacher, small), 0, (), teacher)
    measured = {key for group in groups for key in group}
    empty: set[str] = set()
    for group, layers in groups.items():
        kept, kind = layers[:depth], group[0].partition("@")[2]
        small, teacher = _teacher(supernet, kept, device)
        fixed = f"{FIXED}@{kind}" if len(kinds) > 1 else FIXED
        if fixed not in empty:
            empty.add(fixed)
            yield _Stack(_emptied(teacher, small), 0, (), teacher, fixed)
        yield _Stack(teacher, len(kept), group, None, fixed)
        for place, sublayer in enumerate(SUBLAYERS):
            for operator in _wanted(small, operators, layers, sublayer):
                key = key_of(group[place], sublayer, operator)
                if key in measured and not isinstance(operator, Identity):
                    continue
                measured.add(key)
                block = BlockOperators(**{sublayer: operator})
                model = assemble(small, OperatorNetwork((block,) * len(kept)), untrained(small)).eval()
                _share(model, teacher, f".{sublayer_path(small, sublayer)}.")
                no_cache = sublayer == "attention" and isinstance(operator, Identity | Linear)
                run = tuple(key if i == place else other for i, other in enumerate(group))
                yield _Stack(model, len(kept), run, teacher if no_cache else None, fixed)


def _teacher(supernet: Supernet, layers: Sequence[int], device: torch.device) -> tuple[Supernet, PreTrainedModel]:
    """The teacher with these layers alone, to assemble operators in, and as a plain model."""
    full = supernet.largest().without_ranks
    small = Supernet(supernet.extract(Architecture(full.hidden, tuple(full.layers[i] for i in layers))))
    small.to(device).eval()
    return small, assemble(small, OperatorNetwork.teacher(len(layers))).eval()


def _wanted(
    small: Supernet, operators: Mapping[Place, Sequence[Operator]], layers: Sequence[int], sublayer: Sublayer
) -> list[Operator]:
    """Identity first: it ties what the two sublayers of a block take to one another."""
    if small.sublayers[sublayer] is None:
        return []
    pools = (operators.get((layer, sublayer), ()) for layer in layers)
    return list(dict.fromkeys((Identity(), *(operator for pool in pools for operator in pool))))


def untrained(small: Supernet) -> Make:
    """Makes modules whose latency is that of the operator, whatever their weights are."""

    def make(layer: int, sublayer: Sublayer, operator: Operator) -> nn.Module:
        module = build_sublayer(small, layer, sublayer, operator)
        if isinstance(operator, Quantized):
            for name in sublayer_projections(small, layer, sublayer).dense(operator.projections):
                dense = module.get_submodule(name)
                assert isinstance(dense, nn.Linear)
                weight = dense.weight
                packed = QuantizedLinear(
                    dense.in_features,
                    dense.out_features,
                    bits=operator.bits,
                    group_size=operator.group_size,
                    bias=dense.bias,
                    dtype=weight.dtype,
                    device=weight.device,
                )
                parent, _, child = name.rpartition(".")
                setattr(module.get_submodule(parent), child, packed)
        return module

    return make


def _emptied(model: PreTrainedModel, small: Supernet) -> PreTrainedModel:
    """The same model without a block, with the same weights."""
    blocks = model.get_submodule(small.layers_path)
    memo = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, {id(blocks): nn.ModuleList(), **memo})


def _share(model: PreTrainedModel, teacher: PreTrainedModel, inside: str) -> None:
    """Lets ``model`` hold the teacher's weights, except in modules whose names have ``inside`` in them."""
    held = dict(teacher.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        for own in list(module._parameters):
            if f"{name}.{own}" in held and inside not in f"{name}.":
                module._parameters[own] = held[f"{name}.{own}"]


def even(times: np.ndarray) -> np.ndarray:
    """(..., rounds, passes): each round divided by how much slower than usual it was, the median over its passes."""
    usual = np.median(times, axis=-2, keepdims=True)
    return times / np.median(times / usual, axis=-1, keepdims=True)


def _solved(stacks: Sequence[_Stack], times: np.ndarray) -> dict[str, Any]:
    """``fixed`` and ``operators`` of a table from times (clock, rounds, stacks)."""
    keys = list(dict.fromkeys(key for stack in stacks for key in (stack.fixed, *stack.keys)))
    column = {key: i for i, key in enumerate(keys)}
    design = np.zeros((len(stacks) + 1, len(keys)))
    for row, stack in enumerate(stacks):
        design[row, column[stack.fixed]] = 1
        for key in stack.keys:
            design[row, column[key]] += stack.blocks
    for sign, sublayer in zip((1, -1), SUBLAYERS, strict=True):
        if (key := f"{sublayer}.{Identity().name}") in column:
            design[-1, column[key]] = sign
    found = []
    for clock in even(times):
        usual = np.median(clock, axis=0)
        weights = np.append(1 / usual, 1.0)[:, None]
        inverse = np.linalg.pinv(design * weights) * weights.T  # relative errors count the same in all stacks
        padded = np.hstack([clock, np.zeros((len(clock), 1))])
        low, high = np.percentile(padded @ inverse.T, [25, 75], axis=0)
        found.append((inverse @ np.append(usual, 0.0), (high - low) / 2))
    (wall, wall_spread), (process, process_spread) = found
    values = {
        key: Milliseconds(*(float(values[i]) for values in (wall, wall_spread, process, process_spread)))
        for key, i in column.items()
    }
    operators = {key: value for key, value in values.items() if not key.startswith(FIXED)}
    return {"fixed": values[FIXED], "operators": operators}


def _processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
