"""Budgets: a network keeps the limit on its places exactly where its whole cost keeps the budget."""

from __future__ import annotations

import math

import pytest
from test_families import build
from test_operator_costs import TOKENS, draw, pool

from nas_llm.operator_network import Ffn, Identity, Linear, Quantized, Teacher
from nas_llm.operators.budgets import limit, limits, refuse_loose_latency
from nas_llm.operators.cost_table import CostTable
from nas_llm.operators.costs import OperatorCosts

TABLE = CostTable("params", "parameters", {(0, "mlp"): {Teacher(): 60.0, Ffn(4): 20.0, Identity(): 0.0}}, 40.0, 100.0)


@pytest.mark.parametrize(
    ("budget", "scope", "expected"),
    [
        (1.0, "body", 60.0),
        (0.5, "body", 10.0),
        (70.0, "body", 30.0),
        (1, "whole", 60.0),
        (0.8, "whole", 20.0),
        (150.0, "whole", 10.0),
    ],
)
def test_limits_are_what_a_budget_leaves_to_the_places(budget, scope, expected):
    assert limit(TABLE, budget, scope) == pytest.approx(expected)


@pytest.mark.parametrize("scope", ["body", "whole"])
@pytest.mark.parametrize("name", ["params", "memory", "kv_cache", "macs"])
def test_a_network_keeps_the_limit_where_it_keeps_the_budget(name, scope):
    supernet = build("llama")
    operators = {place: found for place, found in pool(supernet).items() if place != (1, "mlp")}
    costs = OperatorCosts.of(supernet, operators, **TOKENS).tables
    networks = [draw(supernet, operators, seed) for seed in range(30)]
    table = costs[name]
    total = table.whole if scope == "whole" else table.body
    budget = sorted(map(total, networks))[15]
    teacher = table.teacher if scope == "whole" else table.teacher_body
    for given in (budget, budget / teacher):
        (found,) = limits({name: given}, costs, scope).values()
        kept = [sum(table.values[p][o] for p, o in n.operators.items() if p in operators) for n in networks]
        assert [k <= found + 1e-6 for k in kept] == [total(n) <= budget for n in networks]
        assert 0 < sum(k <= found + 1e-6 for k in kept) < 30


@pytest.mark.parametrize(
    ("budgets", "scope", "message"),
    [
        ({"params": 0}, "body", "budget.params=0 is no budget"),
        ({"params": -0.5}, "body", "above 0"),
        ({"params": math.nan}, "body", "is no budget"),
        ({"params": math.inf}, "body", "is no budget"),
        ({"parms": 0.5}, "body", "did you mean budget.params"),
        ({"quality": 0.5}, "body", "budget.quality is not known: Known are params"),
        ({"params": 39}, "body", "smallest has 40, 0.4000 of the teacher's 100, and 40 of it cannot be replaced"),
        ({"params": 0.39}, "body", r"\(= 39 parameters of the body\)"),
        ({"params": 0.69}, "whole", "smallest has 140, 0.7000 of the teacher's 200"),
        ({"params": 101}, "body", "limits nothing: the largest network of these operators has 100 .* choose less$"),
        ({"params": 0.5}, "blocks", "budget.of=blocks: allowed are body, whole"),
    ],
)
def test_budgets_that_cannot_be_are_refused(budgets, scope, message):
    with pytest.raises(ValueError, match=message):
        limits(budgets, {"params": TABLE}, scope)


def test_a_limit_that_looks_like_per_cent_is_told_as_a_fraction():
    table = CostTable("latency", "ms", {(0, "mlp"): {Teacher(): 20.0, Identity(): 0.0}}, 10.0, 0.0)
    with pytest.raises(ValueError, match=r"; 80 % of the teacher is budget\.latency=0\.8$"):
        limit(table, 80)


def test_a_budget_in_ms_that_all_networks_keep_by_far_is_known_from_the_teacher_alone():
    macs = CostTable("macs", "MACs", {(0, "mlp"): {Teacher(): 20.0, Ffn(4): 20.0, Identity(): 0.0}}, 10.0, 5.0)
    refuse_loose_latency(60.0, 30.0, macs)
    with pytest.raises(ValueError, match=r"budget.latency=61 limits nothing: .* takes 30 ms.*is budget.latency=0.61$"):
        refuse_loose_latency(61.0, 30.0, macs)
    for slower, cost in ((Quantized(4, 8, "in"), 20.0), (Linear(), 21.0)):
        values = {(0, "mlp"): {Teacher(): 20.0, slower: cost}}
        refuse_loose_latency(1e6, 30.0, CostTable("macs", "MACs", values, 10.0, 5.0))


def test_the_smallest_network_that_a_refusal_names_can_be_asked_for():
    table = CostTable("macs", "MACs", {(0, "mlp"): {Teacher(): 2.0, Identity(): 0.0}}, 1.0, 0.0)
    with pytest.raises(ValueError, match="0.3334 of the teacher's"):
        limit(table, 0.3333)
    assert limit(table, 0.3334) >= table.least
