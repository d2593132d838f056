"""The forward and backward passes of a sandwich step (paper 1, equation 1; paper 4's in-place distillation).

    delta = grad L(w_largest) + sum_i grad L(w_theta_i) + grad L(w_smallest)

With a teacher that trains in place, the largest network learns from the labels; its logits, detached, teach the
sub-networks of the same micro-batch. With a frozen teacher every network is a student, the largest too: the original
is not in training, and what it knows is to be kept in all of them.

Every network runs forward and backward inside its own ``activate`` before the next starts, so a step holds one
network's activations and what the teacher left (``teacher.TeacherRecord``). Losses are sums over counted tokens: ranks
and micro-batches add up, and the division by the number of tokens comes once, before the optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nas_llm.architecture import Architecture
from nas_llm.distillation import Distillation, HiddenMatching
from nas_llm.distillation.mix import hard_loss
from nas_llm.lightning.output import Targets, output_hidden, output_loss
from nas_llm.lightning.teacher import TeacherLogits, TeacherRecord, block_outputs, of_counted

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
    frozen: Supernet | None = None,
    hidden_matching: HiddenMatching | None = None,
    teacher_logits: TeacherLogits = "recorded",
) -> Passes:
    """Run every architecture forward and backward on one micro-batch.

    Args:
        supernet: whose gradients are summed.
        architectures: what runs, in this order.
        batch: input_ids, attention_mask, labels, (batch, sequence) each.
        teacher: learns from the labels where it is among ``architectures`` as the first, and runs once without
            gradient where the others need it all the same. Not read with ``frozen``.
        distillation: loss of the students' logits; None is the labels' cross-entropy.
        backward: receives each loss. gradient_scale: the factor that it puts on it.
        frozen: another super-network, the whole of which teaches every architecture.
        hidden_matching: added to the students' losses.
        teacher_logits: what is held of the teacher, its logits or what makes them again.
    """
    targets = Targets.of(batch)
    leads = frozen is None and architectures[0] == teacher
    students = architectures[1:] if leads else architectures
    record = _empty_record(targets, students, distillation, hidden_matching, teacher_logits)
    losses: list[Tensor] = []
    if leads:
        with supernet.activate(teacher):
            losses.append(_leader_loss(supernet, batch, record, backward, gradient_scale))
    elif record.logits is not None or record.blocks:
        source, architecture = (supernet, teacher) if frozen is None else (frozen, frozen.largest())
        with torch.no_grad(), source.activate(architecture):
            _record_teacher(source, batch, record)
    lesson = _Lesson(record, frozen or supernet, distillation, hidden_matching)
    for student in students:
        with supernet.activate(student):
            losses.append(_student_loss(supernet, student, batch, lesson, backward, gradient_scale))
    return Passes(torch.stack(losses), len(targets))


@dataclass(frozen=True)
class _Lesson:
    """What the students of a micro-batch have in common; ``teacher`` holds the weights of the output layer."""

    record: TeacherRecord
    teacher: Supernet
    distillation: Distillation | None
    hidden_matching: HiddenMatching | None


def _empty_record(
    targets: Targets,
    students: Sequence[Architecture],
    distillation: Distillation | None,
    hidden_matching: HiddenMatching | None,
    teacher_logits: TeacherLogits,
) -> TeacherRecord:
    taught = distillation is not None and distillation.uses_teacher and bool(students)
    matched = [_compared(hidden_matching, student) for student in students] if hidden_matching is not None else []
    return TeacherRecord(targets, teacher_logits if taught else None, frozenset().union(*matched))


def _compared(hidden_matching: HiddenMatching, student: Architecture) -> tuple[int, ...]:
    return hidden_matching.blocks([layer.index for layer in student.layers])


def _leader_loss(
    supernet: Supernet, batch: Mapping[str, Tensor], record: TeacherRecord, backward: Backward, gradient_scale: float
) -> Tensor:
    """The teacher in training: it learns from the labels and leaves its record."""
    targets = record.targets

    def loss(logits: Tensor, start: int, stop: int) -> Tensor:
        record.keep_logits(logits, start, stop)
        return hard_loss(logits, targets.labels[start:stop])

    with block_outputs(supernet, record.blocks) as outputs:
        total = output_loss(
            supernet.model, batch, targets, loss, gradient_scale=gradient_scale, keep_hidden=record.keep_hidden
        )
    record.outputs = {index: of_counted(states.detach(), targets) for index, states in outputs.items()}
    del outputs
    backward(total)
    return total.detach()


def _record_teacher(supernet: Supernet, batch: Mapping[str, Tensor], record: TeacherRecord) -> None:
    """The teacher without gradient, for its record alone."""
    targets = record.targets

    def loss(logits: Tensor, start: int, stop: int) -> Tensor:
        record.keep_logits(logits, start, stop)
        return logits.new_zeros(())

    with block_outputs(supernet, record.blocks) as outputs:
        if record.logits == "recorded":
            output_loss(supernet.model, batch, targets, loss)
        else:
            record.keep_hidden(output_hidden(supernet.model, batch, targets))
    record.outputs = {index: of_counted(states, targets) for index, states in outputs.items()}


def _student_loss(
    supernet: Supernet,
    student: Architecture,
    batch: Mapping[str, Tensor],
    lesson: _Lesson,
    backward: Backward,
    gradient_scale: float,
) -> Tensor:
    targets, distillation, matching = lesson.record.targets, lesson.distillation, lesson.hidden_matching
    teacher_logits = lesson.record.reader(lesson.teacher.model)

    def loss(logits: Tensor, start: int, stop: int) -> Tensor:
        labels = targets.labels[start:stop]
        if distillation is None:
            return hard_loss(logits, labels)
        return distillation(logits, teacher_logits(start, stop, logits.dtype), labels)

    blocks = () if matching is None else _compared(matching, student)
    with block_outputs(supernet, blocks) as outputs:
        total = output_loss(supernet.model, batch, targets, loss, gradient_scale=gradient_scale)
    if matching is not None:
        own = [of_counted(outputs[index], targets) for index in blocks]
        total = total + matching(own, [lesson.record.outputs[index] for index in blocks])
    del outputs
    backward(total)
    return total.detach()
