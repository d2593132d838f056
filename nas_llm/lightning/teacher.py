"""What a teacher leaves for the students of one micro-batch: logits, or what makes them again, and block outputs.

The teacher runs once; every student of the micro-batch reads the same record. Held are, of counted tokens alone, either
the logits (tokens, vocabulary) or, with ``recomputed``, the hidden states (tokens, hidden) from which every student's
pass makes the logits of a chunk again (``hidden @ weight.T`` once more per student, and no vocabulary-sized tensor
beyond a chunk); and the outputs (tokens, hidden) of the blocks that are compared.

Recomputing is exact for both kinds of teacher: a frozen one never changes, and the weights of the one that trains in
place change between steps alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nas_llm.distillation.chunked import OutputLayer
from nas_llm.lightning.output import Targets, output_layer

if TYPE_CHECKING:
    from nas_llm.models.supernet import Supernet

TeacherLogits = Literal["recorded", "recomputed"]


@dataclass
class TeacherRecord:
    """Of one micro-batch. ``logits`` None records none; ``blocks`` are those whose outputs are kept."""

    targets: Targets
    logits: TeacherLogits | None
    blocks: frozenset[int]
    outputs: Mapping[int, Tensor] = field(default_factory=dict)  # (tokens, hidden) by block
    hidden: Tensor | None = None  # (tokens, hidden) before the output layer
    _logits: Tensor | None = None  # (tokens, vocabulary), in the type in which they were computed

    def keep_logits(self, logits: Tensor, start: int, stop: int) -> None:
        """Of the tokens start..stop: (stop - start, vocabulary)."""
        if self.logits != "recorded":
            return
        if self._logits is None:
            shape = (len(self.targets), logits.shape[-1])
            self._logits = torch.empty(shape, dtype=logits.dtype, device=logits.device)
        self._logits[start:stop] = logits.detach()

    def keep_hidden(self, hidden: Tensor) -> None:
        if self.logits == "recomputed":
            self.hidden = hidden.detach()

    def reader(self, model: PreTrainedModel) -> Callable[[int, int, torch.dtype], Tensor | None]:
        """(start, stop, type of the products) -> the logits of these tokens; ``model`` is the teacher's."""
        if self.logits is None:
            return lambda start, stop, dtype: None
        if self.logits == "recorded":
            recorded = self._logits
            return lambda start, stop, dtype: None if recorded is None else recorded[start:stop]
        hidden, layers = self.hidden, dict[torch.dtype, OutputLayer]()
        assert hidden is not None

        @torch.no_grad()
        def read(start: int, stop: int, dtype: torch.dtype) -> Tensor:
            if dtype not in layers:  # read at the first chunk: there is the weight whole where it is sharded elsewhere
                layers[dtype] = output_layer(model, hidden.shape[-1], dtype)
            return layers[dtype].logits(hidden[start:stop].to(dtype))

        return read


@contextmanager
def block_outputs(supernet: Supernet, blocks: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """The outputs (batch, sequence, hidden) of the blocks with these indices, of a forward pass inside the block.

    The backward pass belongs outside: checkpointed blocks run again there, and what they return then is no output.
    The hooks compute nothing, so that a checkpoint that includes them saves the same tensors without them.
    """
    outputs: dict[int, Tensor] = {}

    def hook_of(index: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            outputs[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [supernet.blocks[index].register_forward_hook(hook_of(index)) for index in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def of_counted(states: Tensor, targets: Targets) -> Tensor:
    """(batch, sequence, hidden) -> (tokens, hidden)."""
    return states.flatten(0, 1).index_select(0, targets.positions)
