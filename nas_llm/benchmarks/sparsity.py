"""What making a network sparse block by block holds above the network itself, beside what it has to hold.

Peak memory is the largest resident set of a process that makes the network of ``steps`` sparse (Llama, 8 layers, hidden
512, FFN 1408), less what it held before; a median over processes. It has to hold one block in float32, SparseGPT's
Hessians, and the hidden states of the calibration set as long as they are no larger than a block (more of them lie in a
file); the activations of one batch and working copies come on top.
Times are shown, and have no limit.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nas_llm.benchmarks.figures import Figure
from nas_llm.benchmarks.processes import printed_by
from nas_llm.benchmarks.settings import refuse_below_one
from nas_llm.benchmarks.sparsifying import WAYS
from nas_llm.benchmarks.steps import ARCHITECTURES

MEMORY_LIMIT = 2.5


@dataclass(frozen=True)
class SparsityBenchmark:
    """``repeats`` processes of each method on ``batches`` batches; ``threads`` None is one per core.

    Raises:
        ValueError: a number below 1.
    """

    repeats: int = 1
    threads: int | None = None
    batches: int = 32
    batch_size: int = 1
    sequence_length: int = 256

    def __post_init__(self) -> None:
        refuse_below_one(self)

    def __call__(self, say: Callable[[str], None] = print) -> list[Figure]:
        tokens = f"{self.batches} x {self.batch_size} x {self.sequence_length} tokens"
        say(f"{self._threads} threads, calibrated on {tokens}, medians of {self.repeats} processes")
        return [self.figure(way) for way in WAYS]

    def figure(self, way: str) -> Figure:
        """Peak memory above the network's own over what has to be held."""
        measured = [self._measure(way) for _ in range(self.repeats)]
        peak = statistics.median(one["peak_mib"] - one["before_mib"] for one in measured)
        seconds = statistics.median(one["seconds"] for one in measured)
        parts = self.needed_mib(way)
        shown = " + ".join(f"{name} {mib:.1f}" for name, mib in parts.items())
        needed = sum(parts.values())
        return Figure(
            f"peak memory above the network's own, {way} / what is needed",
            peak / needed,
            MEMORY_LIMIT,
            f"{peak:.0f} / {needed:.0f} MiB ({shown}); {seconds:.1f} s",
        )

    def needed_mib(self, way: str) -> dict[str, float]:
        """By arithmetic, in MiB of float32."""
        full, shape = ARCHITECTURES[0], ARCHITECTURES[0].layers[0]
        attention = 2 * full.hidden * (shape.heads + shape.kv_groups) * shape.head_dim
        numbers = {"block": attention + 3 * full.hidden * shape.ffn}
        states = self.batches * self.batch_size * self.sequence_length * full.hidden
        if way != "magnitude" and states <= numbers["block"]:  # magnitude looks at no data
            numbers["hidden states"] = states
        if way == "sparsegpt":  # queries, keys and values share one Hessian, gate and up projection another
            numbers["Hessians"] = 3 * full.hidden**2 + shape.ffn**2
        return {name: 4 * number / 2**20 for name, number in numbers.items()}

    @property
    def _threads(self) -> int:
        return self.threads or torch.get_num_threads()

    def _measure(self, way: str) -> dict[str, float]:
        numbers = (self._threads, self.batches, self.batch_size, self.sequence_length)
        return printed_by("nas_llm.benchmarks.sparsifying", way, *numbers)
