"""What a sandwich step, an active sub-network and the search cost, beside the limits that arithmetic sets.

Times are medians of wall-clock seconds of steps taken in turns, with a fixed number of threads; FLOPs are twice the
multiply-accumulates of ``Supernet.macs``, three times that for a forward and a backward pass (in-place distillation
adds none: the teacher's pass is the largest network's own). Peak memory is the largest resident set of a process that
does nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from nas_llm.architecture import Architecture
from nas_llm.benchmarks.figures import Figure
from nas_llm.benchmarks.processes import printed_by
from nas_llm.benchmarks.settings import refuse_below_one
from nas_llm.benchmarks.steps import ARCHITECTURES, KINDS, llama, plain_step, random_batch, supernet_step
from nas_llm.models.supernet import Supernet
from nas_llm.models.timing import threads
from nas_llm.objectives import Loss, Objective, Params, directions, measure
from nas_llm.search import Archive, run_search
from nas_llm.search.nsga2 import NSGA2
from nas_llm.search_space import SearchSpace

TIME_LIMIT, MEMORY_LIMIT, FORWARD_LIMIT, SEARCH_LIMIT = 1.15, 1.25, 1.10, 0.03


@dataclass(frozen=True)
class SandwichBenchmark:
    """``repeats`` of each timed step after one that is not counted; ``evaluations`` of a search; ``threads`` None is
    one per core.

    Raises:
        ValueError: a number below 1.
    """

    repeats: int = 5
    threads: int | None = None
    batch_size: int = 4
    sequence_length: int = 256
    evaluations: int = 24

    def __post_init__(self) -> None:
        refuse_below_one(self)

    def __call__(self, say: Callable[[str], None] = print) -> list[Figure]:
        tokens = f"{self.batch_size} x {self.sequence_length} tokens"
        with threads(self.threads):
            say(f"{torch.get_num_threads()} threads, {tokens}, medians of {self.repeats}")
            return [*self.step_times(), *self.peak_memory(), *self.forward_times(), self.search_time()]

    def step_times(self) -> list[Figure]:
        """A sandwich step over a plain one, and over a step of the full network through this package's loss."""
        supernet, batch = Supernet(llama()), random_batch(self.batch_size, self.sequence_length)
        macs = [self._macs(supernet, architecture) for architecture in ARCHITECTURES]
        arithmetic = sum(macs) / macs[0]
        plain = plain_step(llama(), batch)
        steps = {"plain": plain, "standard": supernet_step(supernet, batch, ARCHITECTURES[:1])}
        steps["sandwich"] = supernet_step(supernet, batch, ARCHITECTURES)
        seconds = medians(steps, self.repeats)
        shown = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        return [
            Figure(
                f"sandwich step / {name} step, over the ratio of FLOPs",
                seconds["sandwich"] / seconds[name] / arithmetic,
                TIME_LIMIT,
                f"times {seconds['sandwich'] / seconds[name]:.2f}, FLOPs {arithmetic:.2f}; {shown}",
            )
            for name in ("plain", "standard")
        ]

    def peak_memory(self) -> list[Figure]:
        """Of processes that take three steps of one kind each."""
        numbers = (self.batch_size, self.sequence_length, torch.get_num_threads())
        peaks = {kind: printed_by("nas_llm.benchmarks.steps", kind, *numbers) for kind in KINDS}
        return [
            Figure(
                f"peak memory of a sandwich step / {name} step",
                peaks["sandwich"]["peak_mib"] / peaks[name]["peak_mib"],
                MEMORY_LIMIT,
                f"{peaks['sandwich']['peak_mib']:.0f} / {peaks[name]['peak_mib']:.0f} MiB resident "
                f"({peaks[name]['interpreter_mib']:.0f} of them before the network is made)",
            )
            for name in ("plain", "standard")
        ]

    def forward_times(self) -> list[Figure]:
        """Forward passes inside the super-network over those of the extracted network."""
        supernet, batch = Supernet(llama()).eval(), random_batch(self.batch_size, self.sequence_length)
        figures = []
        for architecture in ARCHITECTURES[1:]:
            small = supernet.extract(architecture)

            def active(architecture: Architecture = architecture) -> None:
                with torch.inference_mode(), supernet.activate(architecture) as model:
                    model(**batch, use_cache=False)

            def extracted(small: PreTrainedModel = small) -> None:
                with torch.inference_mode():
                    small(**batch, use_cache=False)

            seconds = medians({"active": active, "extracted": extracted}, 3 * self.repeats)
            figures.append(
                Figure(
                    f"forward, active / extracted, hidden {architecture.hidden}, {architecture.num_layers} layers",
                    seconds["active"] / seconds["extracted"],
                    FORWARD_LIMIT,
                    f"{1000 * seconds['active']:.0f} / {1000 * seconds['extracted']:.0f} ms",
                )
            )
        return figures

    def search_time(self) -> Figure:
        """NSGA-II's own seconds over those of the evaluations, here of one batch each: with more data the ratio
        falls."""
        supernet = Supernet(llama()).eval()
        objectives: list[Objective] = [Params(), Loss([random_batch(self.batch_size, self.sequence_length)])]
        search = NSGA2(SearchSpace.joint(supernet), directions(objectives), self.evaluations, min(16, self.evaluations))
        evaluate = partial(measure, objectives, supernet)
        result = run_search(search, evaluate, Archive(None), progress=False)
        return Figure(
            "NSGA-II's own time / its evaluations'",
            result.search_overhead,
            SEARCH_LIMIT,
            f"{result.search_seconds:.3f} / {result.evaluation_seconds:.1f} s for {result.measured} evaluations",
        )

    def _macs(self, supernet: Supernet, architecture: Architecture) -> int:
        return supernet.macs(architecture, batch_size=self.batch_size, sequence_length=self.sequence_length)


def medians(steps: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median wall-clock seconds of each, taken in turns after one uncounted round, so that a busy moment meets all of
    them."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in found.items()}
