"""K diverse solutions of UNAST's integer programme, one after the other (equations 3 and 4).

Small problems, and the first of any size, are solved exactly. With k earlier solutions a large problem has k dense
constraints more, and branch and cut takes seconds to minutes for each; here its Lagrangian relaxation, from the linear
one's multipliers, gives a proven bound and choices that nearly satisfy the constraints. Tabu walks from these, among
the operators of small reduced costs alone, and exchanges of pairs make them feasible and better, until one is within
the gap of the bound or the rounds are over. Only where the walks find nothing is the exact solver asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from nas_llm.operators import linear
from nas_llm.operators.exchange import Exchange
from nas_llm.operators.lagrangian import Relaxation, reduced_costs, relax
from nas_llm.operators.problem import Minimum, Problem, Solver, relative_gap
from nas_llm.operators.walk import walk

EXACT_SIZE = 2000  # variables times constraints up to which the solver itself solves a problem
WALKS, ROUNDS, STEPS = 16, 5, 50
EXCHANGED = 6  # walks of a round whose best choices exchanges improve
CHANGED = 6  # sublayers of a good choice that the next round's walks start with at random
RELAXATION_STEPS = 200
WIDTH, MARGIN, FEWEST = 10.0, 0.03, 3  # of the operators that are kept: see `_core`
BUDGET_PENALTY, OVERLAP_PENALTY = (
    0.1,
    0.05,
)  # of a whole budget, and of one sublayer, in units of what an exchange changes


@dataclass(frozen=True)
class Found:
    """A feasible `choice` (n,), its objective, and a proven lower bound of its own problem's optimum."""

    choice: np.ndarray
    objective: float
    bound: float
    method: str
    seconds: float


@dataclass(frozen=True)
class Sequence:
    """What was found, and why there is no more: "complete", "infeasible" (proven) or "time"."""

    found: tuple[Found, ...]
    end: str


def diverse(
    problem: Problem,
    *,
    number: int,
    solver: Solver,
    gap: float,
    time_limit_s: float,
    rng: np.random.Generator,
    tell: Callable[[int], None] | None = None,
) -> Sequence:
    """Up to `number` solutions; `tell` is called with how many there are.

    Args:
        problem: without earlier solutions.
        gap: relative to its own bound, at which a solution is good enough.
        time_limit_s: of all of them; what a solution takes that has begun may exceed it a little.
    """
    start = time.perf_counter()
    found: list[Found] = []
    while len(found) < number:
        begun = time.perf_counter()
        left = time_limit_s - (begun - start)
        if left <= 0:
            return Sequence(tuple(found), "time")
        current = problem.after([one.choice for one in found])
        minimum = _minimum(current, found, solver, gap, left, rng)
        if minimum.choice is None:
            return Sequence(tuple(found), "infeasible" if minimum.status == "infeasible" else "time")
        before = [one.bound for one in found[-1:]]  # of a problem with fewer constraints: a bound of this one too
        bound = max([minimum.bound, *before])
        objective, seconds = current.objective(minimum.choice), time.perf_counter() - begun
        assert current.is_feasible(minimum.choice)
        found.append(Found(minimum.choice, objective, min(bound, objective), minimum.method, seconds))
        if tell is not None:
            tell(len(found))
    return Sequence(tuple(found), "complete")


def _minimum(
    problem: Problem,
    found: list[Found],
    solver: Solver,
    gap: float,
    time_limit_s: float,
    rng: np.random.Generator,
) -> Minimum:
    """The next solution."""
    start = time.perf_counter()
    exact = None
    if not found or problem.size <= EXACT_SIZE:
        exact = solver(problem, gap=gap, time_limit_s=time_limit_s)
        if exact.status in ("optimal", "infeasible"):
            return exact
    target = found[-1].objective if found else _cheap(problem)
    multipliers = linear.multipliers(problem, time_limit_s=time_limit_s)
    if multipliers is None:
        multipliers = np.zeros(len(problem.limits) + len(problem.earlier))
    relaxation = relax(problem, multipliers=multipliers, target=target, steps=RELAXATION_STEPS)
    known = [one.bound for one in found[-1:]] + ([exact.bound] if exact is not None else [])
    bound = max([relaxation.bound, *known])
    worst = max([target, *(one.objective for one in found)])
    order, kept = _core(problem, relaxation, bound, worst)
    choice = _walked(problem, relaxation, order, kept, bound, gap, rng)
    if choice is None:
        whole = np.argsort(reduced_costs(problem, relaxation.multipliers), axis=1, kind="stable")
        allowed = np.take_along_axis(problem.allowed, whole, axis=1)
        choice = _walked(problem, relaxation, whole, allowed, bound, gap, rng)
    choices = [one for one in (choice, None if exact is None else exact.choice) if one is not None]
    if choices:
        best = min(choices, key=problem.objective)
        method = "walk" if exact is None or best is choice else exact.method
        return Minimum(best, bound, "feasible", method)
    left = max(time_limit_s - (time.perf_counter() - start), 0.0)
    if exact is None and left > 0:
        exact = solver(problem, gap=gap, time_limit_s=left)
        return replace(exact, bound=max(bound, exact.bound))
    return Minimum(None, bound, "unknown", "walk")


def _cheap(problem: Problem) -> float:
    """What the first problem's optimum may be about: a quarter of the way from the best to the worst choice."""
    scores = np.where(problem.allowed, problem.scores, np.nan)
    return float(0.75 * np.nanmin(scores, axis=1).sum() + 0.25 * np.nanmax(scores, axis=1).sum())


def _walked(
    problem: Problem,
    relaxation: Relaxation,
    order: np.ndarray,
    kept: np.ndarray,
    bound: float,
    gap: float,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """The best feasible choice that walks and exchanges find among the operators `kept` of `order` (n, S'), or None."""
    core = problem.narrowed(order, kept)
    exchange, kinds = Exchange(core), len(problem.limits)
    largest = relaxation.multipliers[kinds:].max(initial=0.0)
    overlap_weight = 2 * largest + OVERLAP_PENALTY * problem.spread
    budget_weights = 2 * relaxation.multipliers[:kinds] + BUDGET_PENALTY * problem.spread
    starts = _positions(relaxation.choices[:WALKS], order, kept)
    starts = np.resize(starts, (WALKS, starts.shape[1]))
    best: np.ndarray | None = None
    for _ in range(ROUNDS):
        objectives, choices = walk(
            core, starts, budget_weights=budget_weights, overlap_weight=overlap_weight, steps=STEPS, rng=rng
        )
        nearest = [i for i in np.argsort(objectives, kind="stable")[:EXCHANGED] if np.isfinite(objectives[i])]
        better = sorted((exchange(choices[i]) for i in nearest), key=core.objective)
        if better and (best is None or core.objective(better[0]) < core.objective(best)):
            best = better[0]
        if best is not None and relative_gap(core.objective(best), bound) <= gap:
            break
        good = better[:4] + ([best] if best is not None else [])
        if good:
            starts = _shaken(np.resize(np.array(good), starts.shape), kept, rng)
    return None if best is None else order[core.sublayers, best]


def _core(problem: Problem, relaxation: Relaxation, bound: float, worst: float) -> tuple[np.ndarray, np.ndarray]:
    """Operators by reduced cost (n, S'), and which of them are kept (n, S').

    An operator whose reduced cost exceeds what separates objective and bound is in no better solution. As the sum over
    n sublayers has to stay below that, up to `WIDTH` / n of it is kept for each, and the `FEWEST` best in any case.
    """
    reduced = reduced_costs(problem, relaxation.multipliers)
    room = worst - bound + MARGIN * max(abs(bound), problem.spread)
    order = np.argsort(reduced, axis=1, kind="stable")
    ordered = np.take_along_axis(reduced, order, axis=1)
    kept = (ordered <= min(1.0, WIDTH / len(order)) * room) | (np.arange(order.shape[1]) < FEWEST)
    kept &= np.isfinite(ordered)
    width = int(kept.sum(axis=1).max())
    return order[:, :width], kept[:, :width]


def _positions(choices: np.ndarray, order: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Where `choices` (P, n) are among the operators kept; 0, the one of least reduced cost, for any other."""
    hit = (order[None] == choices[:, :, None]) & kept
    return hit.argmax(axis=2)


def _shaken(choices: np.ndarray, kept: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some sublayers of each choice (P, n) at random."""
    shaken = choices.copy()
    numbers = kept.sum(axis=1)
    for choice in shaken:
        changed = rng.choice(len(numbers), min(CHANGED, len(numbers)), replace=False)
        choice[changed] = rng.integers(0, numbers[changed])
    return shaken
