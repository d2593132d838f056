"""Peak memory of a model and a pass: on a GPU what its tensors take, on a CPU of a process that does this alone.

Run as a program with threads and jobs, it prints `held_mib` of each job.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from nas_llm.benchmarks.latency_rows import Workload
from nas_llm.benchmarks.latency_subjects import MEBI, Subject, load
from nas_llm.benchmarks.processes import peak_mib, resident_mib
from nas_llm.lightning.quiet import quiet

SMALLEST = "microworld_llama"  # of the embedded models


def allocated_mib(workload: Workload, subject: Subject, device: torch.device) -> float:
    """Peak memory of a model at a workload, on a GPU."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    forward = workload.on(subject.model)
    forward.run(forward.prepare())
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MEBI + subject.weights_mib


@torch.inference_mode()
def held_mib(count: int, path: str, dtype: str, workload: Workload) -> float:
    """What this process holds at most for a model and a pass, above what the libraries do once they have run one."""
    torch.set_num_threads(count)
    with quiet():
        for warm in (True, False):
            before = resident_mib()
            model = load(SMALLEST if warm else path, dtype)
            forward = Workload("prefill", 1, 8).on(model) if warm else workload.on(model)
            forward.run(forward.prepare())
    return peak_mib() - before


def main(count: int, jobs: Sequence[Mapping[str, Any]]) -> None:
    """Prints `held_mib` of each job, measured in a process of its own that begins where this one is: with the libraries
    loaded and nothing else done."""
    found = []
    for job in jobs:
        workload = Workload(job["measure"], job["batch"], job["prompt"], job["new_tokens"])
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as process:
            found.append(process.submit(held_mib, count, job["path"], job["dtype"], workload).result())
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
