"""The distillation loss of an output layer, forward and backward, in the ways that its benchmark compares.

- ``plain``: teacher's and student's logits of all tokens, ``log_softmax`` of both, ``kl_div``, autograd: nothing of
  this package;
- ``recorded``: the student's logits in chunks, the teacher's of all tokens held (``training.teacher_logits=recorded``);
- ``recomputed``: both in chunks (``training.teacher_logits=recomputed``).

Teacher and student share the layer's weight (vocabulary, hidden), of which the student reads the first columns, as
sub-networks do. Run as a program, it takes one way once and prints the peak memory of its process, what there was
before, the seconds and the loss.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nas_llm.benchmarks.processes import peak_mib, resident_mib
from nas_llm.distillation import ForwardKL
from nas_llm.distillation.chunked import OutputLayer, chunked_loss
from nas_llm.lightning.output import chunk_tokens

WAYS = ("plain", "recorded", "recomputed")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Problem:
    """``weight`` (vocabulary, hidden), ``teacher`` (tokens, hidden), ``student`` (tokens, hidden of the student)."""

    weight: Tensor
    teacher: Tensor
    student: Tensor

    @classmethod
    def random(
        cls, vocabulary: int, tokens: int, hidden: int, student_hidden: int, dtype: torch.dtype, seed: int = 0
    ) -> Problem:
        generator = torch.Generator().manual_seed(seed)

        def normal(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator, dtype=dtype)

        weight, teacher = normal(vocabulary, hidden).mul_(hidden**-0.5), normal(tokens, hidden)
        return cls(weight.requires_grad_(), teacher, normal(tokens, student_hidden).requires_grad_())

    @property
    def student_weight(self) -> Tensor:
        return self.weight[:, : self.student.shape[1]]


def plain(problem: Problem) -> Tensor:
    """KL(teacher || student), summed over tokens, as one would write it."""
    with torch.no_grad():
        teacher = F.log_softmax(F.linear(problem.teacher, problem.weight).float(), -1)
    student = F.log_softmax(F.linear(problem.student, problem.student_weight).float(), -1)
    return F.kl_div(student, teacher, reduction="sum", log_target=True)


def recorded(problem: Problem) -> Tensor:
    """The same in chunks; the teacher's logits are made in chunks too, and held."""
    layer, tokens = OutputLayer(problem.weight.detach()), len(problem.teacher)
    held = torch.empty(tokens, len(problem.weight), dtype=problem.teacher.dtype)
    step = _chunk(problem)
    for start in range(0, tokens, step):
        held[start : start + step] = layer.logits(problem.teacher[start : start + step])
    return _in_chunks(problem, lambda start, stop: held[start:stop])


def recomputed(problem: Problem) -> Tensor:
    """The same in chunks; the teacher's logits of a chunk are made where they are read."""
    layer = OutputLayer(problem.weight.detach())
    return _in_chunks(problem, lambda start, stop: layer.logits(problem.teacher[start:stop]))


def _in_chunks(problem: Problem, teacher_logits: Callable[[int, int], Tensor]) -> Tensor:
    loss, labels = ForwardKL(alpha=0.0, beta=1.0), torch.zeros(len(problem.student), dtype=torch.long)
    return chunked_loss(
        problem.student,
        OutputLayer(problem.student_weight),
        lambda logits, start, stop: loss(logits, teacher_logits(start, stop), labels[start:stop]),
        chunk_tokens=_chunk(problem),
    )


def _chunk(problem: Problem) -> int:
    return chunk_tokens(len(problem.weight), "cpu")


def main(way: str, dtype: str, threads: int, vocabulary: int, tokens: int, hidden: int, student_hidden: int) -> None:
    """One forward and backward pass in this process."""
    torch.set_num_threads(threads)
    loss = {"plain": plain, "recorded": recorded, "recomputed": recomputed}[way]
    loss(Problem.random(64, 4, 8, 4, DTYPES[dtype])).backward()  # libraries hold more from their first call on
    problem = Problem.random(vocabulary, tokens, hidden, student_hidden, DTYPES[dtype])
    before, start = resident_mib(), time.perf_counter()
    value = loss(problem)
    value.backward()
    seconds = time.perf_counter() - start
    print(json.dumps({"peak_mib": peak_mib(), "before_mib": before, "seconds": seconds, "loss": value.item()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(argument) for argument in sys.argv[3:]))
