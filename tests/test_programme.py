"""UNAST's integer programme against brute force and HiGHS, its diverse solutions, and what is refused."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from nas_llm.benchmarks.programme import instance
from nas_llm.operators.cbc import Cbc
from nas_llm.operators.exchange import Exchange
from nas_llm.operators.lagrangian import reduced_costs, relax
from nas_llm.operators.milp import Milp
from nas_llm.operators.problem import Minimum, Problem, relative_gap
from nas_llm.operators.programme import Programme, Solutions, solve
from nas_llm.operators.walk import walk


def random_programme(seed: int, *, budgets: int = 1, share: float = 0.5) -> Programme:
    """5 sublayers of 2 to 5 operators, one row with negative scores; budgets between the least and the most."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 6, size=5)
    scores = tuple(tuple(rng.normal(0.5, 1, length).tolist()) for length in lengths)
    costs = {f"cost{m}": tuple(tuple(rng.uniform(0, 2, n).tolist()) for n in lengths) for m in range(budgets)}
    limits = {}
    for name, table in costs.items():
        low, high = sum(map(min, table)), sum(map(max, table))
        limits[name] = low + share * (high - low)
    return Programme(scores, costs, limits)


def feasible(programme: Programme) -> list[tuple[int, ...]]:
    choices = itertools.product(*(range(len(row)) for row in programme.scores))
    return [
        choice
        for choice in choices
        if all(programme.used(choice)[name] <= budget for name, budget in programme.budgets.items())
    ]


def shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def brute_force(programme: Programme, earlier: list[tuple[int, ...]], most: int) -> float | None:
    """The least objective among choices that share at most `most` sublayers with each of `earlier`."""
    left = [c for c in feasible(programme) if all(shared(c, before) <= most for before in earlier)]
    return min((programme.objective(choice) for choice in left), default=None)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def check(programme: Programme, found: Solutions, most: int) -> None:
    for k, solution in enumerate(found):
        assert solution.objective == pytest.approx(programme.objective(solution.choice))
        used = programme.used(solution.choice)
        assert all(used[name] <= budget * (1 + 1e-6) for name, budget in programme.budgets.items())
        assert all(shared(solution.choice, before.choice) <= most for before in found[:k])
        assert solution.bound <= solution.objective
        assert solution.gap == relative_gap(solution.objective, solution.bound)
        assert solution.status.startswith("optimal" if solution.gap <= 0.01 else "feasible")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budgets", [0, 1, 3])
def test_every_solution_of_a_small_programme_is_the_optimum_of_brute_force(seed, budgets):
    programme = random_programme(seed, budgets=budgets, share=0.6)
    found = solve(programme, number=12, rng=rng(), gap=0.0, overlap=0.6)
    check(programme, found, 3)
    for k, solution in enumerate(found):
        best = brute_force(programme, [before.choice for before in found[:k]], 3)
        assert solution.objective == pytest.approx(best, abs=1e-6)
        assert solution.bound == pytest.approx(best, abs=1e-6)
    if len(found) < 12:
        assert brute_force(programme, [one.choice for one in found], 3) is None
        assert "proven" in found.shortfall
        assert found.shortfall.startswith(f"{len(found)} of 12 solutions: search.overlap=0.6 admits no more")
    else:
        assert found.shortfall == ""


@pytest.mark.parametrize("seed", range(4))
def test_walks_and_exchanges_come_near_brute_force(seed, monkeypatch):
    monkeypatch.setattr("nas_llm.operators.diverse.EXACT_SIZE", 0)  # so that only the first is solved exactly
    programme = random_programme(seed, budgets=2, share=0.6)
    found = solve(programme, number=6, rng=rng(), overlap=0.6)
    check(programme, found, 3)
    assert len(found) > 1
    for k, solution in enumerate(found[1:], start=1):
        best = brute_force(programme, [before.choice for before in found[:k]], 3)
        assert solution.bound <= best + 1e-9
        assert solution.objective == pytest.approx(best, rel=0.05)


def test_where_walks_find_nothing_the_solver_proves_that_there_is_nothing(monkeypatch):
    monkeypatch.setattr("nas_llm.operators.diverse.EXACT_SIZE", 0)
    programme = random_programme(0)
    found = solve(programme, number=1000, rng=rng(), overlap=0.4)
    assert brute_force(programme, [one.choice for one in found], 2) is None
    assert "proven" in found.shortfall


def test_no_time_is_told_apart_from_no_solution():
    class Slow:
        def __call__(self, problem: Problem, *, gap: float, time_limit_s: float) -> Minimum:
            return (
                Minimum(None, -np.inf, "unknown", "slow")
                if len(problem.earlier)
                else Milp()(problem, gap=gap, time_limit_s=time_limit_s)
            )

    programme = Programme(((0.0,), (0.0,)), {}, {})  # one choice alone, which walks cannot get away from
    found = solve(programme, number=2, rng=rng(), solver=Slow())
    assert [one.choice for one in found] == [(0, 0)]
    assert "ran out" in found.shortfall
    assert "proven" not in found.shortfall
    assert "proven" in solve(programme, number=2, rng=rng()).shortfall


def test_the_time_limit_ends_the_sequence_between_two_solutions(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("nas_llm.operators.diverse.time.perf_counter", lambda: float(next(clock)))
    found = solve(random_programme(0), number=12, rng=rng(), time_limit_s=6)
    assert 0 < len(found) < 12
    assert (
        found.shortfall
        == f"{len(found)} of 12 solutions: search.time_limit_s=6 ran out, whether there are more is open"
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("budgets", [{"latency": 0.5}, {"latency": 0.5, "params": 0.5, "kv_cache": 0.45}])
def test_large_programmes_begin_with_highs_optimum_and_stay_near_their_bounds(ties, budgets):
    programme = instance(1, budgets, ties=ties)
    optimum = Milp()(programme.problem(shared=64), gap=1e-5, time_limit_s=60)
    found = solve(programme, number=8, rng=rng(), time_limit_s=120)
    check(programme, found, 44)
    assert len(found) == 8
    assert found[0].objective <= programme.objective(optimum.choice.tolist()) * 1.01
    assert found[0].bound <= programme.objective(optimum.choice.tolist()) + 1e-6
    assert all(one.gap <= 0.04 for one in found)
    assert any("walk" in one.status for one in found)
    assert all(found.gap_to_first(k) <= 0.06 for k in range(8))


def test_the_same_generator_gives_the_same_solutions():
    programme = instance(0, {"latency": 0.5}, ties=True, sublayers=16)
    one, other = (solve(programme, number=12, rng=np.random.default_rng(3)) for _ in range(2))
    assert any("walk" in solution.status for solution in one)
    assert [solution.choice for solution in one] == [solution.choice for solution in other]


def two_earlier(programme: Programme, most: int) -> Problem:
    problem = programme.problem(shared=most)
    first, second = (one.choice for one in solve(programme, number=2, rng=rng(), gap=0.0, overlap=most / 5 + 0.01))
    return problem.after([np.array(first), np.array(second)])


@pytest.mark.parametrize("seed", range(4))
def test_the_relaxation_is_a_bound_and_reduced_costs_are_of_its_terms(seed):
    programme = random_programme(seed, budgets=2, share=0.6)
    problem = two_earlier(programme, 3)
    best = brute_force(programme, [tuple(row) for row in problem.earlier.tolist()], 3)
    linear = linear_relaxation(problem)
    relaxation = relax(problem, multipliers=np.zeros(4), target=best, steps=3000)
    assert relaxation.bound <= best
    assert relaxation.bound == pytest.approx(linear, abs=5e-3)  # both relaxations have the same optimum
    reduced = reduced_costs(problem, relaxation.multipliers)
    assert (reduced >= 0).all()
    assert (reduced.min(axis=1) == 0).all()
    limits = np.concatenate([problem.limits, [3.0, 3.0]])
    at = reduced.argmin(axis=1)
    used = np.concatenate([problem.used(at), problem.shared(at)])
    value = problem.objective(at) + relaxation.multipliers @ (used - limits)
    assert value == pytest.approx(relaxation.bound)


def linear_relaxation(problem: Problem) -> float:
    from scipy.optimize import linprog

    present = np.flatnonzero(problem.allowed)
    rows = [problem.costs.reshape(len(problem.limits), -1), problem.same]
    limits = [*problem.limits, *[problem.overlap] * len(problem.earlier)]
    each = np.eye(len(problem.sublayers))[present // problem.scores.shape[1]].T
    ones = np.ones(len(each))
    return linprog(problem.scores.ravel()[present], np.vstack(rows)[:, present], limits, each, ones, (0, 1)).fun


@pytest.mark.parametrize("seed", range(4))
def test_walks_return_feasible_choices_and_exchanges_leave_no_better_pair(seed):
    programme = random_programme(seed, budgets=2, share=0.6)
    problem = two_earlier(programme, 3)
    starts = np.zeros((4, 5), dtype=np.int64)
    weights = np.full(2, 10.0)
    values, choices = walk(problem, starts, budget_weights=weights, overlap_weight=1.0, steps=40, rng=rng())
    met = np.isfinite(values)
    assert met.any()
    for value, choice in zip(values[met], choices[met], strict=True):
        assert problem.is_feasible(choice)
        assert value == pytest.approx(problem.objective(choice))
        done = Exchange(problem)(choice)
        assert problem.is_feasible(done)
        assert problem.objective(done) <= value + 1e-12
        for other in feasible(programme):
            if (done != other).sum() <= 2 and problem.is_feasible(np.array(other)):
                assert programme.objective(other) >= problem.objective(done) - 1e-6


def test_a_narrowed_problem_keeps_the_earlier_solutions_where_it_knows_them():
    problem = Problem(
        np.array([[1.0, 2, 3], [4, 5, np.inf]]), np.ones((1, 2, 3)), np.ones(1), np.array([[0, 1], [2, 0]]), 1
    )
    narrow = problem.narrowed(np.array([[2, 1], [1, 0]]), np.array([[True, True], [True, False]]))
    assert narrow.scores.tolist() == [[3, 2], [5, np.inf]]
    assert narrow.earlier.tolist() == [[-1, 0], [0, -1]]
    assert narrow.same.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]


def test_the_teachers_own_cost_is_within_a_budget_of_all_of_it():
    programme = instance(0, {"latency": 1.0, "params": 1.0}, ties=False)
    teacher = solve(programme, number=1, rng=rng())[0]
    assert teacher.choice == (0,) * 64
    assert (teacher.objective, teacher.gap) == (0.0, 0.0)


def test_an_answer_that_oversteps_by_the_solvers_tolerance_is_sought_again():
    cost = ((1.0, 0.0), (1.0, 0.0), (1.0, 0.0))
    programme = Programme(((0.0, 1.0),) * 3, {"latency": cost}, {"latency": 3 - 1e-7})
    found = Milp()(programme.problem(shared=3), gap=0.0, time_limit_s=10)
    assert programme.objective(found.choice.tolist()) == 1.0


def test_budgets_that_cannot_be_kept_are_refused_with_the_smallest_reachable():
    table = ((3.0, 1.0), (3.0, 1.5))
    scores = ((0.0, 1.0), (0.0, 1.0))
    programme = Programme(scores, {"latency": table, "params": table}, {"latency": 2.0, "params": 2.25})
    with pytest.raises(
        ValueError, match=r"budget\.latency=2: the smallest reachable is 2\.5; budget\.params=2\.25: the"
    ):
        solve(programme, number=1, rng=rng())
    apart = {"latency": table, "params": ((1.0, 3.0), (1.0, 3.0))}
    programme = Programme(scores, apart, {"latency": 4.0, "params": 3.0})
    with pytest.raises(ValueError, match="alone, but not all together") as error:
        solve(programme, number=1, rng=rng())
    assert "budget.latency=4: 4.5 can be reached if the others stay" not in str(error.value)
    assert "budget.latency=4: 6 can be reached if the others stay" in str(error.value)
    assert "budget.params=3: 4 can be reached if the others stay" in str(error.value)


@pytest.mark.parametrize(
    ("scores", "costs", "budgets", "message"),
    [
        ((), {}, {}, r"scores=\(\)"),
        (((1.0,), ()), {}, {}, "scores: sublayer 1 has no operator"),
        (((1.0, float("nan")),), {}, {}, "scores: operator 1 of sublayer 0 has nan"),
        (((1.0,),), {"params": ((float("inf"),),)}, {}, r"costs\.params: operator 0 of sublayer 0 has inf"),
        (((1.0,),), {"params": ((1.0, 2.0),)}, {}, r"costs\.params: sublayer 0 has 2 operators, its scores are of 1"),
        (((1.0,),), {"params": ()}, {}, r"costs\.params: 0 sublayers, the scores have 1"),
        (((1.0,),), {"params": ((1.0,),)}, {"latency": 2.0}, r"budget\.latency=2\.0.*allowed are params"),
        (((1.0,),), {"params": ((1.0,),)}, {"params": float("nan")}, r"budget\.params=nan"),
    ],
)
def test_impossible_programmes_are_refused(scores, costs, budgets, message):
    with pytest.raises(ValueError, match=message):
        Programme(scores, costs, budgets)


@pytest.mark.parametrize(
    "setting", [{"number": 0}, {"overlap": 1.0}, {"overlap": -0.1}, {"gap": 1.0}, {"time_limit_s": 0.0}]
)
def test_impossible_settings_are_refused(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name}={setting[name]}: allowed"):
        solve(random_programme(0), rng=rng(), **{"number": 1, **setting})


@pytest.mark.parametrize("seed", range(3))
def test_cbc_finds_what_brute_force_finds(seed):
    pytest.importorskip("pulp")
    programme = random_programme(seed, budgets=2, share=0.6)
    found = solve(programme, number=4, rng=rng(), gap=0.0, overlap=0.6, solver=Cbc())
    check(programme, found, 3)
    for k, solution in enumerate(found):
        best = brute_force(programme, [before.choice for before in found[:k]], 3)
        assert solution.objective == pytest.approx(best, abs=1e-6)
        assert solution.status == "optimal, cbc"
    assert "proven" in solve(programme, number=1000, rng=rng(), overlap=0.2, solver=Cbc()).shortfall


def test_cbc_without_pulp_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pulp", None)
    with pytest.raises(ValueError, match="pip install 'pulp<4'"):
        solve(random_programme(0), number=1, rng=rng(), solver=Cbc())
    with pytest.raises(ValueError, match=r"solver\.threads=0"):
        Cbc(threads=0)
