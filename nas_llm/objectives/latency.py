"""Latency of the extracted sub-network in milliseconds: the median of repeated runs after warm-up, with their spread.

Prefill is one forward pass over (batch_size, sequence_length) tokens; decode is one forward pass over (batch_size, 1)
tokens after a key/value cache of sequence_length. Measured on the copy that would be shipped, never inside the super-
network. CUDA events on a GPU, a monotonic clock on a CPU, with as many threads as the process has.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from nas_llm.architecture import Architecture
from nas_llm.models.supernet import Supernet
from nas_llm.models.timing import (
    PHASES,
    Pass,
    Phase,
    Timings,
    interleaved,
    refuse_absent,
    refuse_too_long,
    threads,
    tokens_to_time,
)
from nas_llm.objectives.protocol import Direction, beside


@dataclass(frozen=True)
class Latency:
    """Median latency of the extracted sub-network.

    Args:
        batch_size: sequences.
        sequence_length: tokens of the prompt.
        warmup: runs that are not timed.
        repeats: runs that are.
        mode: "prefill" or "decode".
        device: as torch names it; None measures where the super-network lies.
        threads: of a CPU; None leaves the process's.
        adapters: low-rank adapters run beside the weights, as they are trained; False merges them first, None where
            an export does.

    Raises:
        ValueError: a field out of range, a device that is not there, or a sequence longer than the model's positions.
    """

    name: ClassVar[str] = "latency"
    unit: ClassVar[str] = "ms"
    direction: ClassVar[Direction] = "min"

    batch_size: int = 1
    sequence_length: int = 128
    warmup: int = 3
    repeats: int = 10
    mode: Phase = "prefill"
    device: str | None = None
    threads: int | None = None
    adapters: bool | None = None

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "sequence_length": 1, "warmup": 0, "repeats": 1}
        for key, low in least.items():
            if getattr(self, key) < low:
                raise ValueError(f"objectives.latency.{key}={getattr(self, key)}: it must be at least {low}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"objectives.latency.threads={self.threads}: it must be at least 1, or null")
        if self.mode not in PHASES:
            raise ValueError(f"objectives.latency.mode={self.mode}: it must be prefill or decode")
        refuse_absent(self.device, "objectives.latency.device")

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        small = supernet.extract(architecture)
        if supernet.attached and not beside(supernet, self.adapters):
            from nas_llm.peft.merging import merge

            merge(small, tolerances=None)
        return self.time(small).median_ms

    @torch.inference_mode()
    def time(self, model: PreTrainedModel) -> Timings:
        """Time a plain model, which is moved to the device and put into evaluation mode."""
        device = torch.device(self.device) if self.device is not None else model.device
        refuse_too_long(model, self.sequence_length, self.mode, "objectives.latency")
        model = model.to(device).eval()  # type: ignore[arg-type]
        forward = Pass.of(model, tokens_to_time(model, self.batch_size, self.sequence_length), self.mode)
        with threads(self.threads):
            (times,) = interleaved([forward], device, warmup=self.warmup, rounds=self.repeats)
        return Timings(tuple(time.wall_ms for time in times))
