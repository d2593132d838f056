"""Scores of an operator by the whole network's output with that one sublayer swapped (UNAST, paper 3, section 3.2 and
appendix E).

    global:       MSE(h', h) / MSE(h, 0),  h what the output head reads of the teacher, h' with the operator in place
    loss_change:  L' - L, cross-entropies in nats per token (equation 2's e_ij)

Both over the tokens of held-out batches, without padding. Blocks before the swapped one are not run again: their output
is kept, of one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_llm.architecture import Architecture
from nas_llm.models.block_walk import walk
from nas_llm.models.modes import evaluating
from nas_llm.models.operator_assembly import swapped
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import SUBLAYERS, Operator, Teacher
from nas_llm.operators import Place

Batch = Mapping[str, Tensor]
IGNORED = -100


@dataclass(frozen=True)
class SwapScore:
    """``global_mse``: of the teacher's energy; ``loss_change``: nats per token. Lower is better."""

    global_mse: float
    loss_change: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def swap_scores(
    supernet: Supernet,
    operators: Mapping[Place, Sequence[Operator]],
    module_of: Callable[[Place, Operator], nn.Module],
    batches: Iterable[Batch],
) -> Iterator[tuple[Place, Operator, SwapScore]]:
    """The scores of every operator but the teacher's own, layer by layer, each as soon as it is known.

    Args:
        supernet: the teacher.
        operators: those to be scored.
        module_of: loads one; it is dropped behind its score.
        batches: ``input_ids``, ``attention_mask``, ``labels``, (batch, sequence).

    Raises:
        ValueError: no batch, or no labelled token in them.
    """
    held = [dict(batch) for batch in batches]
    references = [_output(supernet, 0, None, batch) for batch in held]
    labelled = sum(reference.tokens for reference in references)
    if labelled == 0:
        raise ValueError(
            f"there is no labelled token in {len(held)} batches to score operators on: set data.calibration_size"
        )
    energy = sum(float(reference.hidden.square().sum()) for reference in references)
    loss = sum(reference.loss for reference in references)
    for block in walk(supernet, held):
        for sublayer in SUBLAYERS:
            place: Place = (block.index, sublayer)
            for operator in operators.get(place, ()):
                if isinstance(operator, Teacher):
                    continue
                error = changed = 0.0
                module = module_of(place, operator)
                with swapped(supernet, {place: module}):
                    for number, (batch, reference) in enumerate(zip(held, references, strict=True)):
                        found = _output(supernet, block.index, block.calibration.states[number], batch)
                        error += float((found.hidden - reference.hidden).square().sum())
                        changed += found.loss
                yield place, operator, SwapScore(error / energy, (changed - loss) / labelled)


@dataclass(frozen=True)
class _Output:
    hidden: Tensor  # (tokens without padding, hidden), float32: what the output head reads
    loss: float  # sum over labelled tokens
    tokens: int


@torch.no_grad()
def _output(supernet: Supernet, layer: int, state: Tensor | None, batch: Batch) -> _Output:
    """Of a batch, from block ``layer`` on, which reads ``state`` (batch, sequence, hidden); None: what it reads."""
    full, model = supernet.largest(), supernet.model
    read: list[Tensor] = []

    def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if state is None:
            return args, kwargs
        return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})

    head = model.get_output_embeddings()
    handles = [
        supernet.blocks[layer].register_forward_pre_hook(give, with_kwargs=True),
        head.register_forward_pre_hook(lambda module, args: read.append(args[0])),
    ]
    tokens, mask, labels = (batch[key].to(model.device) for key in ("input_ids", "attention_mask", "labels"))
    try:
        with evaluating(model), supernet.activate(Architecture(full.hidden, full.layers[layer:])):
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    aligned = labels[:, 1:].flatten()
    loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), aligned, ignore_index=IGNORED, reduction="sum")
    return _Output(read[0][mask.bool()].float(), float(loss), int((aligned != IGNORED).sum()))
