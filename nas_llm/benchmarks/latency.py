"""How fast models run, and what they take: prefill, decode with a cache, and throughput, side by side.

- ``prefill``: one pass over (batch_size, sequence_length) tokens, in ms (paper 1, table 1: 2 x 512);
- ``decode``: one token for each of batch_size sequences, after a cache of sequence_length, in ms per token;
- ``throughput``: prompt_tokens in, new_tokens out for generation_batch_size sequences, in generated tokens per second.

Models with 2:4 weights are timed a second time on torch's semi-structured kernels if asked.

Every round times each model once, in another order each time, so that a busy moment falls on all alike. Shown are the
median, the interquartile range, and the median over rounds of the ratio to the first model. Peak memory is on a GPU
what tensors of this model take (its weights too), on a CPU the largest resident set of a process that loads the model
and does this once, less what the interpreter and its libraries hold.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from transformers import PreTrainedModel

from nas_llm.benchmarks.energy import energy_counter
from nas_llm.benchmarks.latency_memory import allocated_mib
from nas_llm.benchmarks.latency_rows import LatencyRow, Measure, Workload
from nas_llm.benchmarks.latency_subjects import Subject, load, on_device, shown_names
from nas_llm.benchmarks.processes import printed_by
from nas_llm.benchmarks.settings import refuse_below_one
from nas_llm.models.model_directory import resolve
from nas_llm.models.saving import save_pretrained
from nas_llm.models.timing import interleaved, refuse_absent, threads
from nas_llm.sparsity.semi_structured import refuse_without_kernels, semi_structured, two_four_modules

Dtype = Literal["float32", "bfloat16", "float16"]
Extract = Callable[[str, Sequence[str]], Mapping[str, tuple[str, PreTrainedModel]]]


@dataclass(frozen=True)
class LatencyBenchmark:
    """Models, or sub-networks of a run, side by side; the first one is what ratios are to.

    Args:
        paths: directories, hub names or embedded models.
        run_dir: of a run whose sub-networks are measured behind them, extracted.
        architectures: which of them: ids of its archive, or largest, smallest, middle.
        measures: of prefill, decode, throughput.
        batch_size: sequences of prefill and decode.
        sequence_length: tokens of a prefill, and of the cache before a decode.
        generation_batch_size: sequences of throughput.
        prompt_tokens: in.
        new_tokens: out.
        warmup: rounds of prefill and decode that are not counted; of throughput one, where there is any.
        rounds: of prefill and decode.
        generation_rounds: of throughput.
        dtype: of the weights; None is that of the file.
        device: as torch names it; None is a GPU where there is one.
        semi_structured: models with 2:4 weights are measured once more, on the kernels of torch for them; needs a
            GPU that has these and half precision.
        threads: of a CPU; None leaves the process's.
        memory: whether peak memory is measured, on a CPU in a process for each figure.
        energy_s: seconds for which a pass is repeated to count its energy, where that can be; 0 leaves it out.
        seed: of the order in a round.
        extract: gives the sub-networks of a run by name, each with its id.

    Raises:
        ValueError: a field out of range, or a device that is not there.
    """

    paths: Sequence[str] = ()
    run_dir: str | None = None
    architectures: Sequence[str] = ()
    measures: Sequence[Measure] = get_args(Measure)
    batch_size: int = 2
    sequence_length: int = 512
    generation_batch_size: int = 32
    prompt_tokens: int = 16
    new_tokens: int = 512
    warmup: int = 2
    rounds: int = 20
    generation_rounds: int = 3
    dtype: Dtype | None = None
    device: str | None = None
    semi_structured: bool = False
    threads: int | None = None
    memory: bool = True
    energy_s: float = 2.0
    seed: int = 0
    extract: Extract | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        refuse_below_one(self, but=["warmup", "energy_s", "seed", "memory", "semi_structured"])
        for name in ("warmup", "energy_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"bench.{name}={getattr(self, name)}: allowed is 0 or more")
        if not self.measures or len(set(self.measures)) < len(self.measures):
            raise ValueError(
                f"bench.measures={list(self.measures)}: name some of {', '.join(get_args(Measure))}, each once"
            )
        if self.architectures and self.run_dir is None:
            raise ValueError(
                f"bench.architectures={list(self.architectures)} cannot take effect without the run that they are of: "
                "add bench.run_dir=DIR"
            )
        if self.run_dir is not None and not self.architectures:
            raise ValueError(
                f"bench.run_dir={self.run_dir}: which of its sub-networks? add bench.architectures=[largest,smallest]"
            )
        refuse_absent(self.device, "bench.device")

    def __call__(self, say: Callable[[str], None] = print) -> list[LatencyRow]:
        if not self.paths and not self.architectures:
            raise ValueError(
                "bench.paths=[]: there is nothing to measure; name models, bench.paths=[DIR,...], or sub-networks of a "
                "run, bench.run_dir=DIR bench.architectures=[largest,smallest]"
            )
        device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.semi_structured:
            refuse_without_kernels(device, "bench.semi_structured=true")
        counter = energy_counter(device) if self.energy_s else "energy is left out (bench.energy_s=0)"
        with torch.inference_mode(), threads(self.threads), self._subjects(device, say) as subjects:
            self._refuse_long(subjects)
            say(f"{_place(device)}, medians of {self.rounds} rounds, of throughput {self.generation_rounds}")
            if isinstance(counter, str):
                say(counter)
            if len(kinds := {str(subject.model.dtype).removeprefix("torch.") for subject in subjects}) > 1:
                say(
                    f"the models differ in precision ({', '.join(sorted(kinds))}); bench.dtype=float32 makes them alike"
                )
            held = self._held_mib(subjects, device, say)
            rng = np.random.default_rng(self.seed)
            rows = []
            for workload in self.workloads:
                for subject, row in zip(subjects, self._timed(workload, subjects, device, rng), strict=True):
                    peak = held.get((subject.name, workload.measure))
                    if self.memory and device.type == "cuda":
                        peak = allocated_mib(workload, subject, device)
                    joules = None
                    if not isinstance(counter, str):
                        forward = workload.on(subject.model)
                        joules = counter.joules_per_token(forward, workload.tokens, device, self.energy_s)
                    rows.append(replace(row, peak_mib=peak, joules_per_token=joules))
            return rows

    @property
    def workloads(self) -> list[Workload]:
        every = {
            "prefill": Workload("prefill", self.batch_size, self.sequence_length),
            "decode": Workload("decode", self.batch_size, self.sequence_length),
            "throughput": Workload("throughput", self.generation_batch_size, self.prompt_tokens, self.new_tokens),
        }
        return [every[measure] for measure in self.measures]

    def _timed(
        self, workload: Workload, subjects: Sequence[Subject], device: torch.device, rng: np.random.Generator
    ) -> Iterator[LatencyRow]:
        generates = workload.measure == "throughput"
        warmup, rounds = (min(self.warmup, 1), self.generation_rounds) if generates else (self.warmup, self.rounds)
        passes = [workload.on(subject.model) for subject in subjects]
        times = interleaved(passes, device, warmup=warmup, rounds=rounds, rng=rng)
        values = np.array([[time.wall_ms for time in of_pass] for of_pass in times])  # (models, rounds)
        if generates:
            values = 1000 * workload.tokens / values
        ratios = np.median(values / values[:1], axis=1)
        for subject, own, ratio in zip(subjects, values, ratios, strict=True):
            low, middle, high = (float(value) for value in np.percentile(own, [25, 50, 75]))
            conditions = _conditions(subject.model, device)
            yield LatencyRow(
                workload, subject.name, subject.identity, conditions, middle, high - low, float(ratio), rounds
            )

    def _held_mib(
        self, subjects: Sequence[Subject], device: torch.device, say: Callable[[str], None]
    ) -> dict[tuple[str, Measure], float]:
        """Peak memory of each model at each workload, on a CPU."""
        if not self.memory or device.type == "cuda":
            return {}
        jobs = [(workload, subject) for workload in self.workloads for subject in subjects if subject.path is not None]
        given = [
            {**vars(workload), "path": subject.path, "dtype": str(subject.model.dtype).removeprefix("torch.")}
            for workload, subject in jobs
        ]
        try:
            found = printed_by("nas_llm.benchmarks.latency_memory", torch.get_num_threads(), json.dumps(given))
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines() or [str(error)]
            say(f"peak memory is not measured: {said[-1]}")
            return {}
        names = [(subject.name, workload.measure) for workload, subject in jobs]
        return dict(zip(names, found, strict=True))

    @contextmanager
    def _subjects(self, device: torch.device, say: Callable[[str], None]) -> Iterator[list[Subject]]:
        """The models, where they are timed; sub-networks are written down for the processes that measure memory."""
        names = shown_names(self.paths)
        subjects = []
        for path in self.paths:
            resolved = resolve(path)
            local = str(Path(resolved).absolute()) if Path(resolved).is_dir() else resolved
            subjects.append(on_device(names[path], {"model": names[path]}, load(path, self.dtype), local, device))
        with tempfile.TemporaryDirectory() as folder:
            if self.run_dir is not None:
                assert self.extract is not None
                for name, (id, model) in self.extract(self.run_dir, self.architectures).items():
                    model = model.to(getattr(torch, self.dtype)) if self.dtype is not None else model
                    place: str | None = f"{folder}/{id}" if self.memory and device.type == "cpu" else None
                    if place is not None:
                        place = _saved(model, place, say)
                    shown = id if name == id else f"{name} ({id})"
                    subjects.append(on_device(shown, {"architecture": id}, model, place, device))
            if self.semi_structured:
                subjects += _on_kernels(subjects, device)
            yield subjects

    def _refuse_long(self, subjects: Sequence[Subject]) -> None:
        """One line for all that is too long, for the model that has the fewest positions."""
        known = {
            subject.name: positions
            for subject in subjects
            if (positions := getattr(subject.model.config, "max_position_embeddings", None)) is not None
        }
        if not known:
            return
        name = min(known, key=known.__getitem__)
        long = [workload for workload in self.workloads if workload.positions > known[name]]
        if not long:
            return
        mend = {}
        for workload in long:
            if workload.measure == "throughput":
                room = known[name] - self.prompt_tokens + 1
                mend["new_tokens"] = max(room, 1)
                if room < 1:
                    mend["prompt_tokens"] = known[name]
            else:
                mend["sequence_length"] = known[name] - int("decode" in self.measures)
        needed = ", ".join(f"{workload.text}, needs {workload.positions}" for workload in long)
        raise ValueError(
            f"{name} has {known[name]} positions; {needed}: add "
            + " ".join(f"bench.{key}={value}" for key, value in mend.items())
        )


def _on_kernels(subjects: Sequence[Subject], device: torch.device) -> list[Subject]:
    """Those that have 2:4 weights, a second time: on the kernels.

    Raises:
        ValueError: none has any that the kernels take, or such a one is not in half precision.
    """
    found, without = [], ValueError()
    for subject in subjects:
        try:
            two_four_modules(subject.model)
        except ValueError as error:
            without = error
            continue
        identity = {**subject.identity, "kernels": "semi_structured"}
        name = f"{subject.name}, 2:4 kernels"
        found.append(on_device(name, identity, deepcopy(subject.model), None, device, change=semi_structured))
    if not found:
        raise ValueError(f"bench.semi_structured=true: {without}") from without
    return found


def _saved(model: PreTrainedModel, place: str, say: Callable[[str], None]) -> str | None:
    try:
        save_pretrained(model, place)
    except ValueError as error:
        say(f"peak memory is not measured: {error}")
        return None
    return place


def _conditions(model: PreTrainedModel, device: torch.device) -> dict[str, Any]:
    dtype = str(model.dtype).removeprefix("torch.")
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "dtype": dtype}
    return {"device": device.type, "dtype": dtype, "threads": torch.get_num_threads()}


def _place(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
