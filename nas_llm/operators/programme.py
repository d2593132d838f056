"""UNAST's integer programme (equations 3 and 4): which operator each sublayer gets, under budgets, in K diverse ways.

    min sum_i a_i . z_i    with    sum_i c_m,i . z_i <= budget_m for every constraint m,

z_i one-hot over the operators of sublayer i, and for the k-th solution
sum_i z_i^k . z_i^j <= overlap * sublayers for all j < k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from nas_llm.operators.diverse import Found, diverse
from nas_llm.operators.milp import Milp
from nas_llm.operators.problem import TOLERANCE, Problem, Solver, relative_gap

Table = tuple[tuple[float, ...], ...]
"""One row per sublayer, one column per operator of it."""


@dataclass(frozen=True)
class Programme:
    """Scores, costs and budgets of the operators of every sublayer; rows may differ in length.

    Args:
        scores: lower is better; the sum over the sublayers is minimised.
        costs: by constraint, in the shape of `scores`; those without a budget constrain nothing.
        budgets: by constraint, the largest sum allowed, in the costs' unit.

    Raises:
        ValueError: no sublayer, one without operators, a number that is not finite, costs of another shape, or a budget
            without costs.
    """

    scores: Table
    costs: Mapping[str, Table]
    budgets: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.scores:
            raise ValueError("scores=(): allowed is one row of operators' scores per sublayer, at least one")
        _refuse_not_finite("scores", self.scores)
        for row, scores in enumerate(self.scores):
            if not len(scores):
                raise ValueError(f"scores: sublayer {row} has no operator; each needs one, its teacher's or another")
        lengths = [len(row) for row in self.scores]
        for name, table in self.costs.items():
            found = [len(row) for row in table]
            if len(found) != len(lengths):
                raise ValueError(f"costs.{name}: {len(found)} sublayers, the scores have {len(lengths)}")
            for row, (got, wanted) in enumerate(zip(found, lengths, strict=True)):
                if got != wanted:
                    raise ValueError(f"costs.{name}: sublayer {row} has {got} operators, its scores are of {wanted}")
            _refuse_not_finite(f"costs.{name}", table)
        for name, budget in self.budgets.items():
            if name not in self.costs:
                known = ", ".join(sorted(self.costs)) or "none"
                raise ValueError(f"budget.{name}={budget}: there are no costs of that name; allowed are {known}")
            if not math.isfinite(budget):
                raise ValueError(f"budget.{name}={budget}: allowed is a finite number; leave it out for no limit")

    def objective(self, choice: Sequence[int]) -> float:
        """Sum of the scores of one operator per sublayer."""
        return _sum(self.scores, choice)

    def used(self, choice: Sequence[int]) -> dict[str, float]:
        """Sum of the costs by constraint, those without a budget too."""
        return {name: _sum(table, choice) for name, table in self.costs.items()}

    def problem(self, *, shared: int) -> Problem:
        """As arrays, with at most `shared` sublayers as in any earlier solution; absent operators cost 0, and score
        infinity."""
        scores = _padded(self.scores, math.inf)
        costs, limits = [], []
        for name, budget in self.budgets.items():
            table = _padded(self.costs[name], 0.0)
            scale = max(float(np.abs(table).max(axis=1).sum()), abs(budget)) or 1.0
            costs.append(table / scale)
            limits.append(budget / scale)
        shape = (len(costs), *scores.shape)
        none = np.zeros((0, len(scores)), dtype=np.int64)
        return Problem(scores, np.array(costs).reshape(shape), np.array(limits), none, shared)


@dataclass(frozen=True)
class Solution:
    """One operator per sublayer.

    Args:
        choice: the operators' indices.
        objective: sum of their scores.
        bound: a proven lower bound of the optimum of the problem that this solution was sought for: the budgets, and
            the overlap with the solutions before it.
        gap: (objective - bound) / abs(bound).
        status: "optimal" (the gap is at most the one asked for) or "feasible", and the method: "optimal, milp".
        seconds: it took, in wall-clock time.
    """

    choice: tuple[int, ...]
    objective: float
    bound: float
    gap: float
    status: str
    seconds: float


@dataclass(frozen=True)
class Solutions(Sequence[Solution]):
    """In the order in which they were found; `shortfall` says why they are fewer than asked for, "" if they are not."""

    found: tuple[Solution, ...]
    shortfall: str = ""

    def __len__(self) -> int:
        return len(self.found)

    @overload
    def __getitem__(self, index: int) -> Solution: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Solution, ...]: ...

    def __getitem__(self, index: int | slice) -> Solution | tuple[Solution, ...]:
        return self.found[index]

    def __iter__(self) -> Iterator[Solution]:
        return iter(self.found)

    def gap_to_first(self, index: int) -> float:
        """How far a solution is above the proven lower bound of the whole programme's optimum, relative to that."""
        return relative_gap(self.found[index].objective, self.found[0].bound)


def solve(
    programme: Programme,
    *,
    number: int,
    rng: np.random.Generator,
    overlap: float = 0.7,
    solver: Solver | None = None,
    gap: float = 0.01,
    time_limit_s: float = 60.0,
    tell: Callable[[int], None] | None = None,
) -> Solutions:
    """`number` diverse solutions, or as many as there are and the time allows.

    Args:
        programme: scores, costs and budgets.
        number: K; 1 gives the optimum.
        rng: of the walks that large problems are solved by after the first solution.
        overlap: largest share of the sublayers that two solutions may have in common.
        solver: of the first solution and of small problems; None is `Milp()`.
        gap: relative to its proven bound, at which a solution is good enough.
        time_limit_s: of all solutions, wall clock.
        tell: called with the number of solutions found so far.

    Raises:
        ValueError: a number out of its range, budgets that no choice keeps (says the smallest that can be reached), or
            the time ran out before the first solution.
    """
    if number < 1:
        raise ValueError(f"number={number}: allowed is 1 or more")
    if not 0 <= overlap < 1:
        raise ValueError(
            f"overlap={overlap}: allowed is from 0 to below 1, a share of the sublayers; 0.7 is the paper's"
        )
    if not 0 <= gap < 1:
        raise ValueError(f"gap={gap}: allowed is from 0 to below 1; 0.01 is one per cent")
    if not time_limit_s > 0:
        raise ValueError(f"time_limit_s={time_limit_s}: allowed is more than 0")
    _refuse_unreachable(programme)
    solver = Milp() if solver is None else solver
    sublayers = len(programme.scores)
    shared = math.floor(overlap * sublayers + TOLERANCE)
    problem = programme.problem(shared=shared)
    sequence = diverse(problem, number=number, solver=solver, gap=gap, time_limit_s=time_limit_s, rng=rng, tell=tell)
    if sequence.end == "infeasible" and not sequence.found:
        raise ValueError(_together(programme, problem, solver, time_limit_s))
    count = len(sequence.found)
    if count == 0:
        raise ValueError(
            f"search.time_limit_s={time_limit_s:g}: no network was found in that time, whether there is one within the "
            "budgets is open: allow more, as search.time_limit_s=60"
        )
    shortfall = {
        "complete": "",
        "infeasible": f"{count} of {number} solutions: search.overlap={overlap} admits no more under these budgets "
        f"(proven: no other choice shares at most {shared} of {sublayers} sublayers with each of them); a larger "
        "overlap may",
        "time": f"{count} of {number} solutions: search.time_limit_s={time_limit_s:g} ran out, whether there are more "
        "is open",
    }[sequence.end]
    return Solutions(tuple(_solution(found, gap) for found in sequence.found), shortfall)


def _solution(found: Found, gap: float) -> Solution:
    above = relative_gap(found.objective, found.bound)
    status = f"{'optimal' if above <= gap else 'feasible'}, {found.method}"
    choice = tuple(int(operator) for operator in found.choice)
    return Solution(choice, found.objective, found.bound, above, status, found.seconds)


def _sum(table: Table, choice: Sequence[int]) -> float:
    return math.fsum(row[operator] for row, operator in zip(table, choice, strict=True))


def _padded(table: Table, fill: float) -> np.ndarray:
    padded = np.full((len(table), max(map(len, table))), fill)
    for row, values in zip(padded, table, strict=True):
        row[: len(values)] = values
    return padded


def _refuse_not_finite(name: str, table: Table) -> None:
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            if not math.isfinite(value):
                raise ValueError(
                    f"{name}: operator {column} of sublayer {row} has {value}; allowed are finite numbers: leave the "
                    "operator out, or measure it again"
                )


def _refuse_unreachable(programme: Programme) -> None:
    """Budgets that not even every sublayer's cheapest operator keeps."""
    violated = []
    for name, budget in programme.budgets.items():
        table = programme.costs[name]
        smallest = math.fsum(min(row) for row in table)
        scale = max(math.fsum(max(map(abs, row)) for row in table), abs(budget))
        if smallest > budget + TOLERANCE * scale:
            violated.append(f"budget.{name}={budget:g}: the smallest reachable is {smallest:g}")
    if violated:
        raise ValueError("; ".join(violated) + " (every sublayer its cheapest operator)")


def _together(programme: Programme, problem: Problem, solver: Solver, time_limit_s: float) -> str:
    """Each budget can be kept, but not all: what each could be if the others stay."""
    said = []
    for m, (name, budget) in enumerate(programme.budgets.items()):
        others = [other for other in range(len(problem.limits)) if other != m]
        costs = np.where(problem.allowed, problem.costs[m], np.inf)
        least = replace(problem, scores=costs, costs=problem.costs[others], limits=problem.limits[others])
        minimum = solver(least, gap=1e-4, time_limit_s=time_limit_s)
        if minimum.choice is None:
            said.append(f"budget.{name}={budget:g}: the other budgets cannot be kept whatever it is")
        else:
            smallest = programme.used([int(operator) for operator in minimum.choice])[name]
            said.append(f"budget.{name}={budget:g}: {smallest:.6g} can be reached if the others stay")
    return f"each budget can be kept alone, but not all together: {'; '.join(said)}"
