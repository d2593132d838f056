"""How operators begin, before they are distilled (UNAST, paper 3, leaves it open; appendix H for sparse and quantised).

    identity            nothing to set
    linear              ridge least squares of the sublayer's writes on its reads (operators/least_squares.py)
    heads, ffn          the first units of the sorted teacher; of narrower heads the rotary pairs and values of
                        operators/rotary_pairs.py and operators/narrow_values.py. The output projection is then fitted
                        to the teacher's writes from the units that stay
    sparse, quantised   SparseGPT and GPTQ of single projections, on what they read in the teacher

One pass over the calibration data runs the teacher up to the last layer concerned. Held beside the modules, per
sublayer and only where an operator needs it, float32: reads of the sublayer (hidden, hidden), once more with its writes
for linear, and reads of its output projection, (ffn, ffn) or the square of the heads' width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nas_llm.architecture import Architecture
from nas_llm.importance.recording import observe, per_token
from nas_llm.models.block_walk import Projection
from nas_llm.models.input_statistics import Hessian
from nas_llm.models.operator_modules import LinearSublayer, build_sublayer, sublayer_of
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.quantized_weight import QuantizedWeight
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Ffn, Heads, Linear, Operator, Quantized, Sparse, Teacher
from nas_llm.operators import Place
from nas_llm.operators.attention_parts import projection_of
from nas_llm.operators.least_squares import Regression, refitted
from nas_llm.operators.narrow_values import project_values, value_projections
from nas_llm.operators.projections import SublayerProjections, sublayer_projections
from nas_llm.operators.rotary_pairs import LogitPairs, orders_of, scale_queries
from nas_llm.quantization.gptq import GPTQ
from nas_llm.sparsity.amount import Amount
from nas_llm.sparsity.sparsegpt import SparseGPT, inverse_factor, prune

Take = Callable[[Tensor, Tensor, Tensor], None]
"""What a module read, what it wrote, both as it has them, and the mask (batch, sequence)."""
Batches = Iterable[Mapping[str, Tensor]]
DAMPING = 1e-3  # of least squares; SparseGPT and GPTQ have their own


def is_trained(operator: Operator) -> bool:
    """Whether an operator is distilled: the teacher and identity have nothing to learn, sparse and quantised sublayers
    stay as they were made (UNAST, appendix H)."""
    return isinstance(operator, Linear | Heads | Ffn)


@torch.no_grad()
def initial_modules(
    supernet: Supernet, operators: Mapping[Place, Sequence[Operator]], batches: Batches
) -> dict[Place, dict[Operator, nn.Module]]:
    """The modules of a group of places, ready to be distilled; they share nothing with the teacher, which stays as it
    is. Teachers among the operators are passed over.

    Args:
        supernet: the teacher, sorted.
        operators: by (layer, sublayer).
        batches: ``input_ids`` and ``attention_mask``, (batch, sequence), gone through once; padding does not count.

    Raises:
        ValueError: an operator does not fit, there is no batch, what the teacher computes is not finite.
    """
    wanted = {place: [one for one in listed if not isinstance(one, Teacher)] for place, listed in operators.items()}
    seen = {place: _Seen(supernet, place, listed) for place, listed in wanted.items() if listed}
    _observe(supernet, seen, batches)
    return {place: seen[place].modules(supernet) if place in seen else {} for place in operators}


class _Seen:
    """What the operators of one place need of the teacher's pass."""

    def __init__(self, supernet: Supernet, place: Place, operators: Sequence[Operator]) -> None:
        self.place, self.operators = place, operators
        self.module = sublayer_of(supernet, *place)
        self.projections: SublayerProjections = sublayer_projections(supernet, *place)
        shape = supernet.largest().layers[place[0]]
        self.full = Heads(*shape.shape[:3])
        (self.output,) = self.projections.last.values()
        compressed = {o.projections for o in self.operators if isinstance(o, Sparse | Quantized)}
        linear = any(isinstance(o, Linear) for o in self.operators)
        device, hidden = self.output.weight.device, supernet.largest().hidden
        self.reads = Hessian(hidden, device) if linear or compressed & {"in", "both"} else None
        self.regression = Regression(self.reads, hidden) if linear and self.reads is not None else None
        cut = any(isinstance(o, Heads | Ffn) for o in self.operators)
        width = self.output.weight.shape[1]
        self.last = Hessian(width, device) if cut or compressed & {"out", "both"} else None
        narrow = any(isinstance(o, Heads) and o.head_dim != self.full.head_dim for o in self.operators)
        self.pairs = LogitPairs(self.module, self.full, supernet.is_rotary) if narrow else None
        self._embeddings: tuple[Tensor, Tensor] | None = None
        self._queries: Tensor | None = None

    def watched(self) -> list[tuple[nn.Module, Take]]:
        """Modules, and what takes their reads and writes of a batch."""
        found: list[tuple[nn.Module, Take]] = []
        if self.reads is not None:
            found.append((self.module, self._add_reads))
        if self.last is not None:
            last = self.last
            found.append((self.output.module, lambda read, written, mask: last.add(_tokens(read, mask))))
        if self.pairs is not None:
            found.append((projection_of(self.module, "q"), self._keep_queries))
            found.append((projection_of(self.module, "k"), self._add_pairs))
        return found

    def keep_embeddings(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """A hook before the attention module: the rotary embeddings of the batch."""
        self._embeddings = kwargs["position_embeddings"]

    def _add_reads(self, read: Tensor, written: Tensor, mask: Tensor) -> None:
        assert self.reads is not None
        tokens = _tokens(read, mask)
        self.reads.add(tokens)
        if self.regression is not None:
            self.regression.add(tokens, _tokens(written, mask))

    def _keep_queries(self, read: Tensor, written: Tensor, mask: Tensor) -> None:
        self._queries = written

    def _add_pairs(self, read: Tensor, written: Tensor, mask: Tensor) -> None:
        assert self.pairs is not None
        assert self._queries is not None
        self.pairs.add(self._queries, written, mask, self._embeddings)

    def modules(self, supernet: Supernet) -> dict[Operator, nn.Module]:
        for statistic in (self.reads, self.last):
            if statistic is not None and not statistic.is_finite():
                raise ValueError(
                    f"layer {self.place[0]}, {self.place[1]}: what it reads on the calibration data is not finite: the "
                    "network overflows there; set model.dtype=float32, or model.path to one whose weights are whole"
                )
        compressed = _Compressed(self.projections, self.reads, self.last)
        return {operator: self._made(supernet, operator, compressed) for operator in self.operators}

    def _made(self, supernet: Supernet, operator: Operator, compressed: _Compressed) -> nn.Module:
        if isinstance(operator, Heads):
            return self._heads(supernet, operator)
        made = build_sublayer(supernet, *self.place, operator)
        if isinstance(operator, Linear):
            assert isinstance(made, LinearSublayer)
            assert self.regression is not None
            weight, bias = self.regression.solve(DAMPING)
            made.linear.weight.copy_(weight)
            made.linear.bias.copy_(bias)
        elif isinstance(operator, Ffn):
            self._refit(made, torch.arange(operator.ffn, device=self.output.weight.device))
        elif isinstance(operator, Sparse):
            compressed.make_sparse(made, operator)
        elif isinstance(operator, Quantized):
            compressed.quantize(made, operator)
        return made

    def _heads(self, supernet: Supernet, operator: Heads) -> nn.Module:
        full = self.full
        shape = (full.kv_groups, full.heads_per_group, full.head_dim)
        if operator.head_dim == full.head_dim:
            made = build_sublayer(supernet, *self.place, operator)
            units = torch.arange(self.output.weight.shape[1], device=self.output.weight.device).view(shape)
            self._refit(made, units[: operator.kv_groups, : operator.heads_per_group].flatten())
            return made
        assert self.pairs is not None
        assert self.last is not None
        made = build_sublayer(supernet, *self.place, operator, orders=orders_of(self.pairs, operator))
        scale_queries(made, supernet, self.place[0], operator, self.pairs)
        rows = value_projections(self.output.weight, self.last.matrix, operator, full)
        project_values(made, self.module, operator, full, rows)
        kept = rows.new_zeros(operator.kv_groups, operator.heads_per_group, operator.head_dim, *shape)
        for group in range(operator.kv_groups):
            for head in range(operator.heads_per_group):
                kept[group, head, :, group, head] = rows[group]
        self._refit(made, kept.flatten(3).flatten(0, 2))
        return made

    def _refit(self, made: nn.Module, kept: Tensor) -> None:
        assert self.last is not None
        (name,) = self.projections.last
        output = Projection(name, made.get_submodule(name))
        output.weight.copy_(refitted(self.output.weight, self.last.matrix, kept, DAMPING))


class _Compressed:
    """Sparse and quantised projections of one sublayer, each made once for the operators that share it."""

    def __init__(self, projections: SublayerProjections, reads: Hessian | None, last: Hessian | None) -> None:
        self.projections, self.reads, self.last = projections, reads, last
        self._factors: dict[int, Tensor] = {}
        self._sparse: dict[tuple[str, str], Tensor] = {}
        self._quantized: dict[tuple[str, int, int], QuantizedWeight] = {}

    def make_sparse(self, module: nn.Module, operator: Sparse) -> None:
        """2:4 and the like, in place. The pattern is that of :class:`SparseGPT`, whose settings are its defaults."""
        method = SparseGPT(pattern=operator.pattern)
        amount = Amount.of(None, operator.pattern)
        for name, dense in self.projections.of(operator.projections).items():
            key = (name, operator.pattern)
            if key not in self._sparse:
                amount.refuse_width(dense)
                hessian = self._hessian(name)
                if id(hessian) not in self._factors:
                    self._factors[id(hessian)] = inverse_factor(hessian, method.damping, dense.name)
                self._sparse[key] = prune(dense.weight, self._factors[id(hessian)], amount, method.block_size)
            Projection(name, module.get_submodule(name)).weight.copy_(self._sparse[key])

    def quantize(self, module: nn.Module, operator: Quantized) -> None:
        """Puts :class:`QuantizedLinear` in the place of linear layers of the module."""
        method = GPTQ(bits=operator.bits, group_size=operator.group_size)
        for name, dense in self.projections.of(operator.projections).items():
            parent, _, child = name.rpartition(".")
            plain = module.get_submodule(name)
            if not isinstance(plain, nn.Linear):
                raise ValueError(f"{dense.name} is no linear layer (nn.Linear), which alone can be quantised")
            key = (name, operator.bits, operator.group_size)
            if key not in self._quantized:
                self._quantized[key] = method.quantize(dense.weight, self._hessian(name))
            quantized = self._quantized[key]
            layer = QuantizedLinear.of(replace(quantized, scales=quantized.scales.clone()), plain.bias)
            layer.train(plain.training)
            setattr(module.get_submodule(parent), child, layer)

    def _hessian(self, name: str) -> Tensor:
        statistic = self.reads if name in self.projections.first else self.last
        assert statistic is not None
        return statistic.matrix


def _observe(supernet: Supernet, seen: Mapping[Place, _Seen], batches: Batches) -> None:
    watched = {f"{number}": pair for number, pair in enumerate(p for one in seen.values() for p in one.watched())}
    if not watched:
        return

    def record(key: str, read: Tensor, written: Tensor, mask: Tensor) -> None:
        watched[key][1](read, written, mask)

    full = supernet.largest()
    deepest = max(layer for layer, _ in seen)
    with ExitStack() as stack:
        for one in seen.values():
            if one.pairs is not None and one.pairs.rotary:
                hook = one.module.register_forward_pre_hook(one.keep_embeddings, with_kwargs=True)
                stack.callback(hook.remove)
        stack.enter_context(supernet.activate(Architecture(full.hidden, full.layers[: deepest + 1], full.ranks)))
        observe(supernet, batches, {key: module for key, (module, _) in watched.items()}, record)


def _tokens(values: Tensor, mask: Tensor) -> Tensor:
    """(tokens, channels), float32, without padding."""
    return per_token(values, mask)[mask.bool()]
