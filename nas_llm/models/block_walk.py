"""The walk over the blocks of a network that layer-wise methods share (Wanda, SparseGPT, GPTQ).

For each transformer block in turn: the caller collects statistics of what the block's projections read on calibration
data, changes the block, and goes on to the next one, which sees what the changed blocks before it write. So the inputs
of every projection are those of the network that will run (Frantar et al., "GPTQ", 2023, section 4).

    for block in walk(supernet, batches):
        hessians = block.collect(Hessian)                    # {name of a projection: Hessian}
        for projection in block.projections:
            change(projection.weight, hessians[projection.name].matrix)

A pass runs the model's own code with the one block active, so that masks, rotary embeddings and sliding windows are
made as in the whole network; they are made again for every block and batch instead of being kept. Held above the
model's own memory are the statistics of one block, one batch's activations in it, and the hidden states of the
calibration set, once, as far as they are no larger than a block; more of them lie in a temporary file. Statistics are
made by ``models/input_statistics.py``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nas_llm.models.hidden_states import HiddenStates
from nas_llm.models.modes import evaluating
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet

Batch = Mapping[str, Tensor]
"""``input_ids`` and ``attention_mask``, (batch, sequence); what else there is (``labels``) is not read."""


class Statistic(Protocol):
    """A running statistic of what a projection reads."""

    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, in), float32, without padding tokens."""

    def is_finite(self) -> bool:
        """Whether the statistic holds neither NaN nor infinity."""


S = TypeVar("S", bound=Statistic)


@dataclass(frozen=True)
class Projection:
    """A linear module of a block, under its name in the model (``model.layers.0.self_attn.q_proj``)."""

    name: str
    module: nn.Module

    @property
    def parameter(self) -> nn.Parameter:
        """The weight as the module stores it: (out, in); a Conv1D's is (in, out).

        Raises:
            ValueError: it is quantised.
        """
        if isinstance(self.module, QuantizedLinear):
            raise ValueError(
                f"{self.name} is quantised, so that its weights are no longer changed: set model.path to the network "
                "before it was quantised, or sparsity=none"
            )
        weight = self.module._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def weight(self) -> Tensor:
        """(out, in), whichever way the module stores it: a view of the parameter, detached, to be written in place."""
        weight = self.parameter.detach()
        return weight.T if isinstance(self.module, Conv1D) else weight


@dataclass(frozen=True)
class Block:
    """The block in work; ``projections`` are its linear modules in the order of the model."""

    index: int
    projections: tuple[Projection, ...]
    calibration: _Calibration

    def collect(self, make: Callable[[int, torch.device], S], names: Iterable[str] | None = None) -> dict[str, S]:
        """Statistics of what the projections read now, by name, over all calibration batches.

        Projections that read the same tensor (queries, keys and values) share one statistic: take it as read-only.

        Args:
            make: a fresh statistic of (in-features, device), as :class:`~nas_llm.models.input_statistics.Hessian`.
            names: of the projections that are looked at; None: all.

        Raises:
            ValueError: a statistic is not finite; its projection is named.
            RuntimeError: the walk has gone on to another block.
        """
        self._refuse_left()
        wanted = None if names is None else set(names)
        chosen = [projection for projection in self.projections if wanted is None or projection.name in wanted]
        found: dict[str, S] = {}
        for number in range(len(self.calibration.batches)):
            reads = _Reads(self.calibration.mask(number), make, found)
            with _hooked(chosen, reads):
                self.calibration.run(number)
        for name, statistic in found.items():
            if not statistic.is_finite():
                raise _not_finite(f"what {name} reads", self.calibration.supernet.model.dtype)
        return found

    def collect_stream(self, make: Callable[[int, torch.device], S], norm: nn.Module | None) -> S:
        """A statistic of the residual stream over all calibration batches, as it is now: of what ``norm``, a module of
        this block, reads; None: of what the block writes.

        Raises:
            ValueError: the statistic is not finite.
            RuntimeError: the walk has gone on to another block.
        """
        self._refuse_left()
        found: list[S] = []
        read: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
            read[:] = [args[0]]

        handles = [] if norm is None else [norm.register_forward_pre_hook(keep)]
        try:
            for number in range(len(self.calibration.batches)):
                mask, written = self.calibration.mask(number), self.calibration.run(number)
                stream = written if norm is None else read[0]
                tokens = stream.reshape(*mask.shape, stream.shape[-1])  # some families flatten the first two
                found = found or [make(stream.shape[-1], stream.device)]
                found[0].add(tokens[mask.bool()].float())
        finally:
            for handle in handles:
                handle.remove()
        if not found[0].is_finite():
            raise _not_finite(f"the residual stream of block {self.index}", self.calibration.supernet.model.dtype)
        return found[0]

    def _refuse_left(self) -> None:
        if self.calibration.index != self.index:
            raise RuntimeError(f"block {self.index} is left behind: the walk is at block {self.calibration.index}")


def walk(supernet: Supernet, batches: Iterable[Batch]) -> Iterator[Block]:
    """The blocks of the whole network, from the first to the last; each one's inputs are made when it is reached.

    ``batches`` is gone through once. Between two blocks nothing of the model is changed but what the caller changes: no
    hook is left, also by an error, and modules have their own mode.

    Raises:
        ValueError: there is no batch.
    """
    calibration = _Calibration(supernet, [dict(batch) for batch in batches])
    if not calibration.batches:
        raise ValueError("there is no calibration batch: set data.calibration_size above 0")
    every = projections(supernet)
    for index, of_block in enumerate(every):
        if index:
            calibration.advance()
        yield Block(index, of_block, calibration)


def by_statistic(
    projections: Sequence[Projection], statistics: dict[str, S]
) -> Iterator[tuple[S, tuple[Projection, ...]]]:
    """Each statistic of :meth:`Block.collect` with the projections that share it, once.

    ``statistics`` is emptied on the way, so that a statistic's memory goes with the caller's last use of it.
    """
    remaining = [projection for projection in projections if projection.name in statistics]
    while remaining:
        statistic = statistics[remaining[0].name]
        sharing = tuple(projection for projection in remaining if statistics[projection.name] is statistic)
        remaining = [projection for projection in remaining if projection not in sharing]
        for projection in sharing:
            del statistics[projection.name]
        yield statistic, sharing
        del statistic


def projections(supernet: Supernet) -> tuple[tuple[Projection, ...], ...]:
    """The linear modules of every block; those outside of the blocks (the output head) are not among them."""
    with supernet.activate(supernet.largest()):  # whichever blocks are in the model's list now
        names = {module: name for name, module in supernet.model.named_modules()}
    return tuple(
        tuple(Projection(names[module], module) for module in modules if isinstance(module, nn.Linear | Conv1D))
        for modules in supernet.layer_modules
    )


def dense_projections(supernet: Supernet) -> tuple[Projection, ...]:
    """All of :func:`projections` whose weights are no integers."""
    every = (projection for of_block in projections(supernet) for projection in of_block)
    return tuple(projection for projection in every if not isinstance(projection.module, QuantizedLinear))


def _not_finite(what: str, dtype: torch.dtype) -> ValueError:
    mend = "set model.path to one whose weights are whole"
    if dtype != torch.float32:
        mend = "set model.dtype=float32"
    return ValueError(f"{what} on the calibration data is not finite: the network overflows there; {mend}")


class _Calibration:
    """The batches and, of each, the hidden states that the block in work reads (batch, sequence, hidden)."""

    def __init__(self, supernet: Supernet, batches: list[Batch]) -> None:
        self.supernet, self.batches, self.index = supernet, batches, 0
        sizes = [batch["input_ids"].numel() * supernet.largest().hidden for batch in batches]
        blocks = [sum(p.numel() for m in modules for p in m.parameters()) for modules in supernet.layer_modules]
        self.states = HiddenStates(sizes, in_memory=sum(sizes) <= max(blocks))  # none: what the embeddings give

    def mask(self, number: int) -> Tensor:
        return self.batches[number]["attention_mask"].to(self.supernet.model.device)

    def advance(self) -> None:
        """To the next block: what this one reads is replaced, batch by batch, by what it writes."""
        for number in range(len(self.batches)):
            self.states[number] = self.run(number)
        self.index += 1

    @torch.no_grad()
    def run(self, number: int) -> Tensor:
        """What the block in work writes for a batch, in evaluation mode; beside it embeddings and the last norm run."""
        model, state = self.supernet.model, self.states[number]
        tokens = self.batches[number]["input_ids"].to(model.device)
        written: list[Tensor] = []

        def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if state is None:
                return args, kwargs
            return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            written.append(output[0] if isinstance(output, tuple) else output)

        block = self.supernet.blocks[self.index]
        handles = [block.register_forward_pre_hook(give, with_kwargs=True), block.register_forward_hook(keep)]
        try:
            with evaluating(model), self.supernet.activate_block(self.index):
                model.base_model(input_ids=tokens, attention_mask=self.mask(number), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return written[0]


class _Reads:
    """Adds what projections read of one batch to their statistics, what several of them read only once."""

    def __init__(self, mask: Tensor, make: Callable[[int, torch.device], Any], found: dict[str, Any]) -> None:
        self.mask, self.make, self.found = mask, make, found
        self._seen: list[tuple[weakref.ref[Tensor], Any]] = []  # of this batch; they may go when the block is done

    def __call__(self, name: str, read: Tensor) -> None:
        for tensor, statistic in self._seen:
            if tensor() is read and self.found.setdefault(name, statistic) is statistic:
                return
        if name not in self.found:
            self.found[name] = self.make(read.shape[-1], read.device)
        self._seen.append((weakref.ref(read), self.found[name]))
        tokens = read.reshape(-1, read.shape[-1])  # some families flatten the first two
        counted = self.mask.bool().flatten()
        self.found[name].add((tokens if bool(counted.all()) else tokens[counted]).float())


@contextmanager
def _hooked(chosen: Sequence[Projection], reads: _Reads) -> Iterator[None]:
    def hook_of(name: str) -> Callable[..., None]:
        return lambda module, args: reads(name, args[0])

    handles = []
    try:
        for projection in chosen:
            handles.append(projection.module.register_forward_pre_hook(hook_of(projection.name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
