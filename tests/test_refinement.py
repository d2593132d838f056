"""The evolutionary refinement on losses that do not add up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nas_llm.benchmarks.programme import instance
from nas_llm.operators.programme import Programme, solve
from nas_llm.operators.refinement import Evaluated, Refinement


def crowded(programme: Programme):
    """The sum of the scores, and a penalty for sublayers in a row that both are changed much."""

    def loss(choice):
        scores = [row[operator] for row, operator in zip(programme.scores, choice, strict=True)]
        return sum(scores) + sum(20 * a * b for a, b in itertools.pairwise(scores))

    return loss


def refined(programme: Programme, evaluations: int, **settings) -> list[Evaluated]:
    starts = [one.choice for one in solve(programme, number=2, rng=np.random.default_rng(0))]
    loss = crowded(programme)
    return Refinement(evaluations, **settings)(programme, loss, starts, rng=np.random.default_rng(1))


def test_it_beats_the_additive_solutions_under_the_same_budgets():
    programme = instance(0, {"latency": 0.5, "kv_cache": 0.6}, ties=False, sublayers=12)
    loss, asked = crowded(programme), []
    starts = [one.choice for one in solve(programme, number=2, rng=np.random.default_rng(0))]

    def counted(choice):
        asked.append(choice)
        return loss(choice)

    found = Refinement(200)(programme, counted, starts, rng=np.random.default_rng(1))
    assert len(asked) == len(set(asked)) == len(found) == 200
    assert asked[: len(starts)] == starts
    assert found[0].loss < 0.95 * min(loss(start) for start in starts)
    assert [one.loss for one in found] == sorted(one.loss for one in found)
    for one in found:
        assert one.loss == loss(one.choice)
        used = programme.used(one.choice)
        assert all(used[name] <= budget + 1e-6 for name, budget in programme.budgets.items())


def test_it_finds_the_optimum_of_a_small_space_and_ends_when_all_is_known():
    whole = instance(2, {"latency": 0.5}, ties=False, sublayers=4)
    few = [0, 4, 9, 13]
    scores = tuple(tuple(row[i] for i in few) for row in whole.scores)
    costs = {"latency": tuple(tuple(row[i] for i in few) for row in whole.costs["latency"])}
    programme = Programme(scores, costs, whole.budgets)
    budget, loss = whole.budgets["latency"], crowded(programme)
    choices = [c for c in itertools.product(range(4), repeat=4) if programme.used(c)["latency"] <= budget]
    found = refined(programme, 10_000, changes=2.5)
    assert found[0].loss == min(map(loss, choices))
    assert {one.choice for one in found} <= set(choices)
    assert len(found) < 10_000


def test_the_generator_decides_and_losses_that_are_no_numbers_come_last():
    programme = instance(0, {"latency": 0.5}, ties=False, sublayers=8)
    assert refined(programme, 50) == refined(programme, 50)
    start = solve(programme, number=1, rng=np.random.default_rng(0))[0].choice

    def broken(choice):
        return float("nan") if choice == start else 1.0

    told = []
    found = Refinement(5)(programme, broken, [start], rng=np.random.default_rng(0), tell=told.append)
    assert found[-1] == Evaluated(start, float("inf"))
    assert sorted(told, key=lambda one: (one.loss, one.choice)) == found


def test_impossible_input_is_refused():
    programme = instance(0, {"latency": 0.5}, ties=False, sublayers=4)

    def refine(*starts):
        Refinement(5)(programme, sum, list(starts), rng=np.random.default_rng(0))

    with pytest.raises(ValueError, match=r"starts=\[\]"):
        refine()
    with pytest.raises(ValueError, match="a start of 3 sublayers: allowed is 4"):
        refine((1, 1, 1))
    with pytest.raises(ValueError, match="operator 15 in sublayer 3: allowed is from 0 to 14"):
        refine((14, 14, 14, 15))
    with pytest.raises(ValueError, match="a start breaks a budget \\(latency 4"):
        refine((0, 0, 0, 0))
    for setting in ("evaluations", "population", "changes"):
        with pytest.raises(ValueError, match=rf"refinement\.{setting}=0"):
            Refinement(**{setting: 0})
