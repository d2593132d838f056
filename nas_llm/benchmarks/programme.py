"""How fast and how well the integer programme's diverse solutions are found: 100 of 64 sublayers x 15 operators.

The instances are made up, of a teacher's shape: attention and MLP sublayers in turn, scores that grow with depth and
have heavy tails, the teacher's 0 and identity's about 1, latencies about proportional to size. With ties, several
operators of a sublayer cost and score nearly the same, which is what branch and cut is slow at. Shown are the medians
over seeds of the first solution's gap, the last one's gaps (above its own problem's proven bound, and above the first
problem's), and the wall-clock seconds of all, of a process whose threads are fixed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_llm.benchmarks.figures import Figure
from nas_llm.benchmarks.processes import printed_by
from nas_llm.benchmarks.settings import refuse_below_one
from nas_llm.operators.programme import Programme, Table, solve

FIRST_LIMIT, LAST_LIMIT, SECONDS_LIMIT = 0.01, 0.06, 60.0
ATTENTION = (1, 0.92, 0.84, 0.75, 0.75, 0.67, 0.62, 0.52, 0.5, 0.5, 0.4, 0.36, 0.27, 0.18, 0)  # share of the teacher
MLP = (1, 0.9, 0.83, 0.75, 0.67, 0.66, 0.58, 0.5, 0.5, 0.42, 0.34, 0.33, 0.25, 0.12, 0)
KV_CACHE = (1, 1, 0.75, 0.75, 0.5, 0.5, 0.5, 0.5, 0.25, 0.5, 0.25, 0.25, 0.25, 0, 0)
ATTENTION_MS, MLP_MS = 0.9, 1.6  # of the teacher's sublayer
CASES: Mapping[str, Mapping[str, float]] = {
    "latency 0.5": {"latency": 0.5},
    "latency 0.33": {"latency": 0.33},
    "latency 0.8": {"latency": 0.8},
    "latency 0.5, params 0.52, KV cache 0.45": {"latency": 0.5, "params": 0.52, "kv_cache": 0.45},
}


def instance(seed: int, budgets: Mapping[str, float], *, ties: bool, sublayers: int = 64) -> Programme:
    """A made-up programme; `budgets` are shares of the teacher's latency, params and kv_cache."""
    rng = np.random.default_rng(seed)
    scores, latency, params, kv_cache = [], [], [], []
    for i in range(sublayers):
        attention = i % 2 == 0
        size = np.array(ATTENTION if attention else MLP)
        depth = (i // 2) / max(sublayers // 2 - 1, 1)
        sensitivity = np.exp(rng.normal(depth - 0.9, 0.6))
        score = sensitivity * (1 - size) ** 1.4 * np.exp(rng.normal(0, 0.05 if ties else 0.35, len(size)))
        score = np.minimum(score, 1.2)
        score[0], score[-1] = 0.0, rng.normal(1, 0.03)
        ms = (ATTENTION_MS if attention else MLP_MS) * (0.06 + 0.94 * size) * np.exp(rng.normal(0, 0.01, len(size)))
        number = (1.0 if attention else 2.0) * size * np.exp(rng.normal(0, 0.15, len(size)))
        ms[-1] = number[-1] = 0.0
        scores.append(np.round(score, 2) if ties else score)
        latency.append(np.round(ms, 2) if ties else ms)
        params.append(number)
        kv_cache.append(np.array(KV_CACHE, dtype=float) * attention)
    costs = {"latency": _table(latency), "params": _table(params), "kv_cache": _table(kv_cache)}
    limits = {name: share * sum(row[0] for row in costs[name]) for name, share in budgets.items()}
    return Programme(_table(scores), costs, limits)


def _table(rows: Sequence[np.ndarray]) -> Table:
    return tuple(tuple(float(value) for value in row) for row in rows)


@dataclass(frozen=True)
class ProgrammeBenchmark:
    """`number` solutions of `sublayers` in each case, for `seeds` instances with near ties and as many without.

    Raises:
        ValueError: a number below 1.
    """

    seeds: int = 1
    threads: int = 1
    number: int = 100
    sublayers: int = 64
    time_limit_s: float = 600.0

    def __post_init__(self) -> None:
        refuse_below_one(self)

    def __call__(self, say: Callable[[str], None] = print) -> list[Figure]:
        say(
            f"{self.threads} threads, {self.number} solutions of {self.sublayers} sublayers x {len(MLP)} operators, "
            f"overlap 0.7, medians of {self.seeds} instances"
        )
        return [figure for case in CASES for ties in (True, False) for figure in self.figures(case, ties)]

    def figures(self, case: str, ties: bool) -> list[Figure]:
        """Gaps and seconds of one case."""
        runs = [self._measure(case, ties, seed) for seed in range(self.seeds)]

        def median(name: str) -> float:
            return statistics.median(run[name] for run in runs)

        name = f"{case}, {'near ties' if ties else 'no ties'}"
        own = f"{median('proven_rise'):.3f} of it proven for any choice after the ones before"
        return [
            Figure(f"{name}: first gap", median("first"), FIRST_LIMIT, f"objective {median('objective'):.3f}"),
            Figure(
                f"{name}: last gap", median("last"), LAST_LIMIT, f"{median('number'):.0f} solutions, to its own bound"
            ),
            Figure(f"{name}: last gap to the first bound", median("to_first"), LAST_LIMIT, own),
            Figure(f"{name}: seconds", median("seconds"), SECONDS_LIMIT, f"{median('cpu'):.1f} s of processor time"),
        ]

    def _measure(self, case: str, ties: bool, seed: int) -> dict[str, float]:
        numbers = (seed, self.number, self.sublayers, self.time_limit_s)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        return printed_by("nas_llm.benchmarks.programme", case, int(ties), *numbers, environment=threads)


def measure(programme: Programme, number: int, time_limit_s: float) -> dict[str, Any]:
    """What `figures` shows of one instance."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = solve(programme, number=number, time_limit_s=time_limit_s, rng=np.random.default_rng(0))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    first, last = found[0], found[-1]
    return {
        "objective": first.objective,
        "first": first.gap,
        "last": last.gap,
        "to_first": found.gap_to_first(-1),
        "proven_rise": (last.bound - first.bound) / abs(first.bound) if first.bound else 0.0,
        "number": len(found),
        "seconds": wall,
        "cpu": cpu,
    }


if __name__ == "__main__":
    case, ties, seed, number, sublayers, limit = sys.argv[1:]
    made = instance(int(seed), CASES[case], ties=ties == "1", sublayers=int(sublayers))
    print(json.dumps(measure(made, int(number), float(limit))))
