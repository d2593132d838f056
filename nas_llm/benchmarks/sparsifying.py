"""One way of making the benchmark's network sparse, in a process of its own: how much memory it takes.

Run as a program, it makes the network of ``steps`` in super-network form, makes a small one sparse (libraries hold more
from their first call on), and prints the resident MiB before, the peak in MiB and the seconds of making the large one
sparse. ``walk`` collects nothing: the hidden states of the calibration set alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nas_llm.benchmarks.processes import peak_mib, resident_mib
from nas_llm.benchmarks.steps import llama, random_batch
from nas_llm.models.block_walk import walk
from nas_llm.models.supernet import Supernet
from nas_llm.sparsity import Batches
from nas_llm.sparsity.magnitude import Magnitude
from nas_llm.sparsity.sparsegpt import SparseGPT
from nas_llm.sparsity.wanda import Wanda


def _walk(supernet: Supernet, batches: Batches) -> None:
    for _ in walk(supernet, batches):
        pass


WAYS: dict[str, Callable[[Supernet, Batches], Any]] = {
    "walk": _walk,
    "magnitude": Magnitude(0.5),
    "wanda": Wanda(0.5),
    "sparsegpt": SparseGPT(0.5),
}


def main(way: str, threads: int, batches: int, batch_size: int, sequence_length: int) -> None:
    torch.set_num_threads(threads)
    small: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    WAYS[way](Supernet(LlamaForCausalLM(LlamaConfig(vocab_size=32_000, **small))), [random_batch(1, 8)])
    supernet = Supernet(llama())
    calibration = [random_batch(batch_size, sequence_length, seed) for seed in range(batches)]
    before, start = resident_mib(), time.perf_counter()
    WAYS[way](supernet, calibration)
    seconds = time.perf_counter() - start
    print(json.dumps({"peak_mib": peak_mib(), "before_mib": before, "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
