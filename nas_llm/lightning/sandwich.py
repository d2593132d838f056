"""The forward and backward passes of a sandwich step (paper 1, equation 1; paper 4's in-place distillation).

    delta = grad L(w_largest) + sum_i grad L(w_theta_i) + grad L(w_smallest)

The largest network learns from the labels; its logits, detached, teach the sub-networks of the same micro-batch. Every
network runs forward and backward inside its own ``activate`` before the next starts, so a step holds one network's
activations and the teacher's logits (counted tokens, vocabulary). Losses are sums over counted tokens: ranks and
micro-batches add up, and the division by the number of tokens comes once, before the optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nas_llm.architecture import Architecture
from nas_llm.distillation import Distillation
from nas_llm.distillation.mix import hard_loss
from nas_llm.lightning.output import Targets, output_loss

if TYPE_CHECKING:
    from nas_llm.models.supernet import Supernet

Backward = Callable[[Tensor], None]


@dataclass(frozen=True)
class Passes:
    """``losses``: (architectures,) sums over ``tokens`` counted tokens, detached."""

    losses: Tensor
    tokens: int


def sandwich_passes(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    batch: Mapping[str, Tensor],
    *,
    teacher: Architecture,
    distillation: Distillation | None,
    backward: Backward,
    gradient_scale: float = 1.0,
) -> Passes:
    """Run every architecture forward and backward on one micro-batch.

    ``teacher`` learns from the labels where it is among ``architectures`` as the first, and runs once without gradient
    where the others need it all the same. ``backward`` receives each loss; ``gradient_scale`` is the factor that it
    puts on it.
    """
    targets = Targets.of(batch)
    leads = architectures[0] == teacher
    students = architectures[1:] if leads else architectures
    recorder = _Recorder(targets) if distillation is not None and distillation.uses_teacher and students else None
    losses: list[Tensor] = []
    if leads:
        with supernet.activate(teacher) as model:
            losses.append(_label_loss(model, batch, targets, recorder, backward, gradient_scale))
    elif recorder is not None:
        with torch.no_grad(), supernet.activate(teacher) as model:
            _label_loss(model, batch, targets, recorder, None, gradient_scale)
    for student in students:
        with supernet.activate(student) as model:
            losses.append(_student_loss(model, batch, targets, recorder, distillation, backward, gradient_scale))
    return Passes(torch.stack(losses), len(targets))


class _Recorder:
    """Keeps the teacher's logits (tokens, vocabulary) of one micro-batch, in the type in which they were computed."""

    def __init__(self, targets: Targets) -> None:
        self.tokens = len(targets)
        self.logits: Tensor | None = None

    def record(self, logits: Tensor, start: int, stop: int) -> None:
        if self.logits is None:
            self.logits = torch.empty((self.tokens, logits.shape[-1]), dtype=logits.dtype, device=logits.device)
        self.logits[start:stop] = logits.detach()


def _label_loss(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    targets: Targets,
    recorder: _Recorder | None,
    backward: Backward | None,
    gradient_scale: float,
) -> Tensor:
    def loss(logits: Tensor, start: int, stop: int) -> Tensor:
        if recorder is not None:
            recorder.record(logits, start, stop)
        return hard_loss(logits, targets.labels[start:stop])

    total = output_loss(model, batch, targets, loss, gradient_scale=gradient_scale)
    if backward is not None:
        backward(total)
    return total.detach()


def _student_loss(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    targets: Targets,
    recorder: _Recorder | None,
    distillation: Distillation | None,
    backward: Backward,
    gradient_scale: float,
) -> Tensor:
    def loss(logits: Tensor, start: int, stop: int) -> Tensor:
        labels = targets.labels[start:stop]
        if distillation is None:
            return hard_loss(logits, labels)
        taught = recorder.logits if recorder is not None else None
        return distillation(logits, None if taught is None else taught[start:stop], labels)

    total = output_loss(model, batch, targets, loss, gradient_scale=gradient_scale)
    backward(total)
    return total.detach()
