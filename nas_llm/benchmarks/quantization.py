"""What GPTQ holds above the model's own memory, beside one block's weights and Hessians, and how long a block takes.

Memory is the largest resident set of a process that quantises a random Llama in float32, less what is resident when the
model is there. A block's own is its dense weights and the Hessians of what they read (queries, keys and values share
one, so do gate and up). Run as a program, it prints the figures of one process.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nas_llm.benchmarks.figures import Figure
from nas_llm.benchmarks.processes import peak_mib, printed_by, resident_mib
from nas_llm.benchmarks.settings import refuse_below_one
from nas_llm.models.supernet import Supernet
from nas_llm.quantization.gptq import GPTQ

MEMORY_LIMIT = 3.0
VOCABULARY = 1000  # of the random tokens; the embeddings are the model's own memory


@dataclass(frozen=True)
class QuantizationBenchmark:
    """``repeats`` processes; ``records`` of ``sequence_length`` tokens are calibrated on; ``threads`` None is one per
    core.

    Raises:
        ValueError: a number below 1.
    """

    repeats: int = 3
    threads: int | None = None
    layers: int = 4
    hidden: int = 1024
    ffn: int = 2816
    records: int = 16
    sequence_length: int = 256
    bits: int = 4
    group_size: int = 128

    def __post_init__(self) -> None:
        refuse_below_one(self, but=["bits", "group_size"])

    def __call__(self, say: Callable[[str], None] = print) -> list[Figure]:
        say(
            f"{self._threads} threads, {self.layers} blocks of hidden {self.hidden}, FFN {self.ffn}, "
            f"{self.records} x {self.sequence_length} tokens, {self.bits} bits in groups of {self.group_size}, "
            f"medians of {self.repeats} processes"
        )
        found = [self._measure() for _ in range(self.repeats)]
        above = statistics.median(one["peak_mib"] - one["before_mib"] for one in found)
        seconds = statistics.median(one["seconds"] for one in found) / self.layers
        block = self.block_mib
        details = f"{above:.0f} MiB above the model's {found[0]['model_mib']:.0f}; {block:.0f} MiB are one block's own"
        details += (
            f" ({self.weights_mib:.0f} weights, {block - self.weights_mib:.0f} Hessians); {seconds:.1f} s a block"
        )
        name = "GPTQ, peak memory above the model / weights and Hessians of one block"
        return [Figure(name, above / block, MEMORY_LIMIT, details)]

    @property
    def weights_mib(self) -> float:
        """Of one block, in float32."""
        return 4 * (4 * self.hidden**2 + 3 * self.hidden * self.ffn) / 2**20

    @property
    def block_mib(self) -> float:
        """Its weights and Hessians: of what queries, the attention's output, gate and the FFN's output read."""
        return self.weights_mib + 4 * (3 * self.hidden**2 + self.ffn**2) / 2**20

    @property
    def _threads(self) -> int:
        return self.threads or torch.get_num_threads()

    def _measure(self) -> dict[str, float]:
        sizes = [self._threads, self.layers, self.hidden, self.ffn, self.records, self.sequence_length]
        numbers = [*sizes, self.bits, self.group_size]
        return printed_by("nas_llm.benchmarks.quantization", *numbers)


def main(
    threads: int, layers: int, hidden: int, ffn: int, records: int, length: int, bits: int, group_size: int
) -> None:
    torch.set_num_threads(threads)
    heads = max(hidden // 64, 1)
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
    }
    config = LlamaConfig(**shape, num_attention_heads=heads, max_position_embeddings=length)
    supernet = Supernet(LlamaForCausalLM(config))
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(VOCABULARY, (1, length), generator=generator) for _ in range(records)]
    batches = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in tokens]
    before, start = resident_mib(), time.perf_counter()
    GPTQ(bits, group_size)(supernet, batches)
    figures = {"before_mib": before, "peak_mib": peak_mib(), "seconds": time.perf_counter() - start}
    print(json.dumps({**figures, "model_mib": supernet.num_parameters(supernet.largest()) * 4 / 2**20}))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
