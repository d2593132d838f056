"""What the distillation loss of a large vocabulary costs in chunks, beside the plain one that holds all logits.

Peak memory is the largest resident set of a process that takes one forward and backward pass, less what it held
before (weight and hidden states), in float32 and bfloat16; time is the wall clock of that pass. Both are medians over
processes, taken in turns. The plain way and those of this package are in ``losses``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nas_llm.benchmarks.figures import Figure
from nas_llm.benchmarks.losses import DTYPES, WAYS
from nas_llm.benchmarks.processes import printed_by
from nas_llm.benchmarks.settings import refuse_below_one

MEMORY_LIMIT, TIME_LIMIT = 0.5, 1.15


@dataclass(frozen=True)
class DistillationBenchmark:
    """``repeats`` processes of each way; ``threads`` None is one per core; ``student_hidden`` of the ``hidden`` columns
    of the output layer are the student's.

    Raises:
        ValueError: a number below 1, or a student wider than the teacher.
    """

    repeats: int = 3
    threads: int | None = None
    vocabulary: int = 128_000
    batch_size: int = 4
    sequence_length: int = 512
    hidden: int = 1024
    student_hidden: int = 512

    def __post_init__(self) -> None:
        refuse_below_one(self)
        if self.student_hidden > self.hidden:
            raise ValueError(
                f"bench.student_hidden={self.student_hidden}: allowed are at most bench.hidden={self.hidden} columns"
            )

    def __call__(self, say: Callable[[str], None] = print) -> list[Figure]:
        tokens = f"{self.batch_size} x {self.sequence_length} tokens"
        say(
            f"{self._threads} threads, vocabulary {self.vocabulary}, {tokens}, "
            f"hidden {self.hidden} (student {self.student_hidden}), medians of {self.repeats} processes"
        )
        return [figure for dtype in DTYPES for figure in self.figures(dtype)]

    def figures(self, dtype: str) -> list[Figure]:
        """Memory and time of the two ways of this package over the plain one."""
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(self.repeats):
            for way in WAYS:
                found[way].append(self._measure(way, dtype))
        memory = {way: statistics.median(one["peak_mib"] - one["before_mib"] for one in found[way]) for way in WAYS}
        seconds = {way: statistics.median(one["seconds"] for one in found[way]) for way in WAYS}
        figures = []
        for way in WAYS[1:]:
            name = f"{dtype}, teacher's logits {way}, loss forward and backward / plain"
            mebibytes = f"{memory[way]:.0f} / {memory['plain']:.0f} MiB resident, beside what there was before"
            figures.append(Figure(f"peak memory, {name}", memory[way] / memory["plain"], MEMORY_LIMIT, mebibytes))
            shown = f"{seconds[way]:.2f} / {seconds['plain']:.2f} s"
            figures.append(Figure(f"time, {name}", seconds[way] / seconds["plain"], TIME_LIMIT, shown))
        return figures

    @property
    def _threads(self) -> int:
        return self.threads or torch.get_num_threads()

    def _measure(self, way: str, dtype: str) -> dict[str, float]:
        tokens = self.batch_size * self.sequence_length
        numbers = (self._threads, self.vocabulary, tokens, self.hidden, self.student_hidden)
        return printed_by("nas_llm.benchmarks.losses", way, dtype, *numbers)
