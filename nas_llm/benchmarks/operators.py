"""What distilling a pool of operators costs beside what it cannot do without, and the memory it takes beside its limit.

Time: a step of the engine (one teacher pass, every candidate's forward pass, loss, backward pass and update), over one
teacher forward pass and each candidate's own forward and backward pass, alone, on inputs that lie there. Medians of
steps taken in turns, on a random Llama (hidden 512, FFN 1408). Memory: the largest resident set of a process that
distils the pool within a limit, less what the interpreter held before there was a teacher, over that limit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from nas_llm.benchmarks.figures import Figure
from nas_llm.benchmarks.processes import peak_mib, printed_by, resident_mib
from nas_llm.benchmarks.sandwich import medians
from nas_llm.benchmarks.settings import refuse_below_one
from nas_llm.benchmarks.steps import random_batch
from nas_llm.models.supernet import Supernet
from nas_llm.models.timing import threads
from nas_llm.operators import Place
from nas_llm.operators.distilling import Distilling, Job, Splits, Student
from nas_llm.operators.groups import groups_of
from nas_llm.operators.initial import initial_modules, is_trained
from nas_llm.operators.library import Library
from nas_llm.operators.local_losses import SquareHead
from nas_llm.operators.needs import Needs
from nas_llm.operators.pool import Pool
from nas_llm.operators.teacher_pass import Visit, teacher_pass

TIME_LIMIT, MEMORY_LIMIT = 1.15, 1.0
POOL = Pool(
    attention=[
        "identity",
        "linear",
        "heads-0.5x1.0x1.0",
        "heads-1.0x0.5x1.0",
        "heads-1.0x1.0x0.5",
        "heads-0.5x0.5x0.5",
    ],
    mlp=["identity", "linear", "ffn-0.75", "ffn-0.5", "ffn-0.25"],
)


@dataclass(frozen=True)
class OperatorsBenchmark:
    """``repeats`` steps of each kind after one that is not counted; ``threads`` None is one per core.

    Raises:
        ValueError: a number below 1.
    """

    repeats: int = 5
    threads: int | None = None
    layers: int = 2
    batch_size: int = 4
    sequence_length: int = 256

    def __post_init__(self) -> None:
        refuse_below_one(self)

    def __call__(self, say: Callable[[str], None] = print) -> list[Figure]:
        tokens = f"{self.batch_size} x {self.sequence_length} tokens"
        with threads(self.threads):
            say(f"{torch.get_num_threads()} threads, {self.layers} layers, {tokens}, medians of {self.repeats} steps")
            return [self.time(), *self.memory(torch.get_num_threads())]

    def time(self) -> Figure:
        """A step of the engine over its parts, each alone."""
        supernet, batch = Supernet(llama(self.layers)).eval(), random_batch(self.batch_size, self.sequence_length)
        operators = {place: [o for o in found if is_trained(o)] for place, found in POOL(supernet).items()}
        modules = initial_modules(supernet, operators, [batch])
        settings, loss = Distilling(steps=10**6), SquareHead()
        students = {
            place: [Student(place, operator, module, supernet, settings) for operator, module in found.items()]
            for place, found in modules.items()
        }
        visits: dict[Place, Visit] = {}
        with teacher_pass(supernet, students) as run:
            run(batch, visits.__setitem__)

            def serve(place: Place, visit: Visit) -> None:
                for student in students[place]:
                    student.learn(visit, loss, steps=True)

            steps = {"engine": lambda: run(batch, serve), "teacher": lambda: run_alone(supernet, batch)}
            steps |= {
                f"{place} {student.operator.name}": Alone(student.module, visits[place])
                for place, found in students.items()
                for student in found
            }
            seconds = medians(steps, self.repeats)
        parts = sum(value for name, value in seconds.items() if name != "engine")
        return Figure(
            "distillation step / teacher's forward + candidates' forward and backward",
            seconds["engine"] / parts,
            TIME_LIMIT,
            f"{seconds['engine']:.3f} / {parts:.3f} s, {seconds['teacher']:.3f} s of it the teacher, {len(steps) - 2} "
            "candidates",
        )

    def memory(self, threads: int) -> list[Figure]:
        """Of processes with a limit that the whole pool fits, and one that the largest sublayer fits."""
        supernet = Supernet(llama(self.layers))
        needs = Needs(supernet, self.batch_size, self.sequence_length)
        pool = POOL(supernet)
        (whole,) = groups_of(pool, needs, memory_gib=None)
        one = max(groups_of({place: found}, needs, memory_gib=None)[0].bytes for place, found in pool.items())
        figures = []
        for fitting in (whole.bytes, one):
            limit = (fitting // 2**20 + 1) / 2**10
            measured = self._measure(threads, limit)
            used = measured["peak_mib"] - measured["before_mib"]
            figures.append(
                Figure(
                    f"peak memory / limit of {limit * 1024:.0f} MiB",
                    used / (limit * 1024),
                    MEMORY_LIMIT,
                    f"{used:.0f} MiB resident above the interpreter's {measured['before_mib']:.0f}, "
                    f"{measured['groups']:.0f} groups",
                )
            )
        return figures

    def _measure(self, threads: int, limit: float) -> dict[str, float]:
        numbers = (threads, self.layers, self.batch_size, self.sequence_length, limit)
        return printed_by("nas_llm.benchmarks.operators", *numbers)


@dataclass(frozen=True)
class Alone:
    """A candidate's forward and backward pass on what its sublayer reads, and nothing else."""

    module: nn.Module
    visit: Visit

    def __call__(self) -> None:
        written = self.visit.run(self.module)
        written.backward(self.visit.written)
        self.module.zero_grad(set_to_none=True)


def run_alone(supernet: Supernet, batch: dict[str, Any]) -> None:
    """The teacher's blocks, as stock code runs them."""
    with torch.no_grad():
        supernet.model.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)


def llama(layers: int, hidden_size: int = 512, intermediate_size: int = 1408) -> LlamaForCausalLM:
    """The network of the benchmark, with random weights."""
    sizes: dict[str, Any] = {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "head_dim": 64}
    sizes["num_hidden_layers"] = layers
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=32_000, **sizes, **heads))


def main(threads: int, layers: int, batch_size: int, sequence_length: int, memory_gib: float) -> None:
    """Distils the pool for a few steps within a limit and prints what its process held."""
    torch.set_num_threads(threads)
    _distil(Supernet(llama(1, 64, 64)).eval(), random_batch(1, 8), 1.0)  # libraries load their code when it is run
    before = resident_mib()
    groups = _distil(Supernet(llama(layers)).eval(), random_batch(batch_size, sequence_length), memory_gib)
    print(json.dumps({"peak_mib": peak_mib(), "before_mib": before, "groups": groups}))


def _distil(supernet: Supernet, batch: dict[str, Tensor], memory_gib: float) -> int:
    """The pool for three steps; the number of groups."""
    settings = Distilling(steps=3, memory_gib=memory_gib)
    groups = groups_of(POOL(supernet), Needs(supernet, *batch["input_ids"].shape), memory_gib=memory_gib)
    with tempfile.TemporaryDirectory() as folder:
        library = Library(Path(folder))
        library.begin(supernet, settings={}, pool={})
        job = Job(library, Splits(repeat(batch), [batch], [batch]), settings, SquareHead(), initial_modules)
        job(supernet, groups, lambda flops, finished: None)
    return len(groups)


if __name__ == "__main__":
    tokens = (int(sys.argv[3]), int(sys.argv[4]))
    main(int(sys.argv[1]), int(sys.argv[2]), *tokens, memory_gib=float(sys.argv[5]))
