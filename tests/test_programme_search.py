"""Networks of operators within budgets: the programme's against every network there is."""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import pytest

from nas_llm.operator_network import Ffn, Heads, Identity, Linear, OperatorNetwork, Teacher
from nas_llm.operators.budgets import limits
from nas_llm.operators.cost_table import CostTable
from nas_llm.operators.programme_search import ProgrammeSearch, teacher_first

LAYERS = 2
ATTENTION, MLP = (Identity(), Heads(1, 2, 8), Teacher(), Linear()), (Ffn(8), Identity(), Teacher())


@pytest.fixture
def tables():
    rng = np.random.default_rng(0)
    operators = teacher_first({(i, s): p for i in range(LAYERS) for s, p in (("attention", ATTENTION), ("mlp", MLP))})
    scores = {(place, o): 0.0 if o == Teacher() else rng.random() for place, pool in operators.items() for o in pool}
    costs = {
        name: CostTable(
            name,
            "B",
            {place: {o: 0.0 if o == Identity() else rng.random() for o in pool} for place, pool in operators.items()},
            rest=0.1,
            outside=2.0,
        )
        for name in ("memory", "latency")
    }
    return operators, scores, costs


def everything(operators):
    for choice in product(*operators.values()):
        yield OperatorNetwork.of(dict(zip(operators, choice, strict=True)), LAYERS)


@pytest.mark.parametrize("scope", ["body", "whole"])
def test_the_first_network_is_the_best_of_all_within_the_budgets(tables, scope):
    operators, scores, costs = tables
    smallest = {
        n: (getattr(t, scope)(OperatorNetwork.of({p: Identity() for p in operators}, LAYERS))) for n, t in costs.items()
    }
    teacher = {n: t.teacher if scope == "whole" else t.teacher_body for n, t in costs.items()}
    budgets = {n: (smallest[n] + 0.5 * (teacher[n] - smallest[n])) / teacher[n] for n in costs}
    bounds = limits(budgets, costs, scope)
    found, shortfall = ProgrammeSearch(number=5, overlap=0.75, gap=0.0)(
        operators, scores, costs, bounds, LAYERS, lambda network: 0.0
    )

    def fits(network):
        return all(getattr(t, scope)(network) <= budgets[n] * teacher[n] + 1e-9 for n, t in costs.items())

    def total(network):
        return sum(scores[place, operator] for place, operator in network.operators.items())

    best = min((n for n in everything(operators) if fits(n)), key=total)
    assert found[0][0] == best
    assert found[0][1].objective == pytest.approx(total(best))
    assert len(found) == 5
    assert not shortfall
    assert all(fits(network) for network, _ in found)
    assert all(a.overlap(b) <= 3 for i, (a, _) in enumerate(found) for b, _ in found[:i])


def test_an_evolution_finds_what_sums_of_scores_hide(tables):
    """A loss that is not the sum of scores: the best network within the budget has another operator in every place."""
    operators, scores, costs = tables
    bounds = limits({"memory": 0.7}, costs)
    asked = []

    def loss(network):
        asked.append(network)
        return -sum(isinstance(o, Identity | Linear | Ffn) for o in network.operators.values())

    search = ProgrammeSearch(number=3, overlap=0.75, refine=60)
    plain, _ = ProgrammeSearch(number=3, overlap=0.75)(operators, scores, costs, bounds, LAYERS, loss)
    assert not asked
    refined, _ = search(operators, scores, costs, bounds, LAYERS, loss)
    assert min(map(loss, (n for n, _ in refined))) < min(map(loss, (n for n, _ in plain)))
    assert len(refined) == 3
    assert all(costs["memory"].body(n) <= 0.7 * costs["memory"].teacher_body + 1e-9 for n, _ in refined)
    assert all(
        solution.objective == pytest.approx(sum(scores[p, o] for p, o in n.operators.items()))
        for n, solution in refined
    )


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"score": "accuracy"}, "search.score"),
        ({"number": 0}, "search.number"),
        ({"overlap": 1.1}, "search.overlap"),
        ({"overlap": 1.0}, "search.overlap=1.0: allowed"),
        ({"gap": 2.0}, "search.gap=2.0: allowed"),
        ({"time_limit_s": 0.0}, "search.time_limit_s=0.0: allowed"),
        ({"solver": "gurobi"}, "search.solver"),
        ({"refine": -1}, "search.refine"),
    ],
)
def test_impossible_settings_are_refused(settings, key):
    with pytest.raises(ValueError, match=key):
        ProgrammeSearch(**settings)


def test_refined_networks_keep_the_overlap(tables):
    operators, scores, costs = tables
    bounds = limits({"memory": 0.8}, costs, "body")
    search = ProgrammeSearch(number=4, overlap=0.5, refine=40)
    refined, shortfall = search(operators, scores, costs, bounds, LAYERS, lambda n: -len(str(n.operators)))
    chosen = [list(network.operators.items()) for network, _ in refined]
    shared = [sum(x == y for x, y in zip(a, b, strict=True)) for i, a in enumerate(chosen) for b in chosen[:i]]
    assert max(shared) <= 0.5 * len(operators)
    assert len(refined) == 4 or "search.refine" in shortfall


def test_cbc_that_is_not_installed_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "pulp", None)
    with pytest.raises(ValueError, match=r"search\.solver=cbc needs PuLP.* or search\.solver=milp"):
        ProgrammeSearch(solver="cbc")


def test_no_network_within_the_time_names_the_time(tables):
    operators, scores, costs = tables
    bounds = limits({"memory": 0.7}, costs, "body")
    with pytest.raises(ValueError, match=r"search\.time_limit_s=1e-09: no network"):
        ProgrammeSearch(time_limit_s=1e-9)(operators, scores, costs, bounds, LAYERS, lambda network: 0.0)
