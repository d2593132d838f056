"""Budgets as limits of the integer programme: sum over places of an operator's cost <= limit (UNAST, paper 3, section
3.3, where the budget holds for the body, the blocks alone).

A budget of at most 1 is a fraction of the teacher's cost; above, it is absolute, in the table's unit. The limit is what
the budget leaves to the places: without the rest of the blocks, and, of the whole network, without what lies outside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Literal, get_args

from nas_llm.operator_network import Quantized, Teacher
from nas_llm.operators.cost_table import CostTable

Scope = Literal["body", "whole"]
LOOSE = 2.0  # an operator that computes less than the teacher's sublayer is never twice as slow


def limits(budgets: Mapping[str, float], tables: Mapping[str, CostTable], scope: Scope = "body") -> dict[str, float]:
    """The limit on the sum over places for every budget, in the units of its table.

    Args:
        budgets: by the name of a table, as {"latency_ms": 0.6, "params": 5e9}.
        tables: those that there are, by name.
        scope: whether budgets hold for the blocks or for the whole network.

    Raises:
        ValueError: a budget on something else, one that is not above 0, that no network of these operators keeps, or
            that every network keeps; another scope.
    """
    if scope not in get_args(Scope):
        raise ValueError(f"budget.of={scope}: allowed are {', '.join(get_args(Scope))}")
    for name in budgets:
        if name not in tables:
            near = get_close_matches(name, list(tables), n=1, cutoff=0.5)
            meant = f" did you mean budget.{near[0]}?" if near else ""
            raise ValueError(f"budget.{name} is not known:{meant} Known are {', '.join(sorted(tables))}")
    return {name: limit(tables[name], budget, scope) for name, budget in budgets.items()}


def limit(table: CostTable, budget: float, scope: Scope = "body") -> float:
    """As :func:`limits`, of one table."""
    refuse_no_budget(table.name, budget)
    setting = f"budget.{table.name}={budget:g}"
    whole = scope == "whole"
    teacher = table.teacher if whole else table.teacher_body
    constant = table.rest + (table.outside if whole else 0)
    total = budget if is_absolute(budget) else budget * teacher
    left, of = total - constant, "whole network" if whole else "body"
    smallest, largest = constant + table.least, constant + table.most
    if total < smallest:
        raise ValueError(
            f"{setting} (= {total:,.6g} {table.unit} of the {of}): no network of these operators is that small; the "
            f"smallest has {smallest:,.6g}, {_up(smallest / teacher):.4f} of the teacher's {teacher:,.6g}"
            + (f", and {constant:,.6g} of it cannot be replaced" if constant else "")
        )
    if total > largest:
        raise ValueError(
            f"{setting} limits nothing: the largest network of these operators has {largest:,.6g} {table.unit} in the "
            f"{of}; {_less(table.name, budget)}"
        )
    return left


def is_absolute(budget: float) -> bool:
    """Whether it is in the unit of its cost, and no fraction of the teacher's."""
    return budget > 1


def refuse_no_budget(name: str, budget: float) -> None:
    """Raises ValueError where the number is no budget, whatever it is one of."""
    if not budget > 0 or math.isinf(budget):
        raise ValueError(
            f"budget.{name}={budget:g} is no budget: give a fraction of the teacher, above 0 and at most 1, or an "
            "absolute number above 1"
        )


def refuse_loose_latency(budget_ms: float, teacher_ms: float, macs: CostTable) -> None:
    """Before any operator is measured: refuses what the slowest network keeps by far, as is known where no operator can
    be slower than the teacher's own sublayer.

    Args:
        budget_ms: of the blocks or of the whole network.
        teacher_ms: of the whole teacher.
        macs: of the operators. Quantised weights are unpacked as they run, and take longer than the teacher's.

    Raises:
        ValueError: the budget is more than ``LOOSE`` times what the teacher takes.
    """
    slower = any(
        isinstance(operator, Quantized) or cost > costs[Teacher()]
        for costs in macs.values.values()
        for operator, cost in costs.items()
    )
    if not slower and budget_ms > LOOSE * teacher_ms:
        raise ValueError(
            f"budget.latency={budget_ms:g} limits nothing: the whole teacher takes {teacher_ms:,.6g} ms, and none of "
            f"these operators computes more than its sublayers; {_less('latency', budget_ms)}"
        )


def _less(name: str, budget: float) -> str:
    share = f"; {budget:g} % of the teacher is budget.{name}={budget / 100:g}" if 1 < budget <= 100 else ""
    return f"leave it out or choose less{share}"


def _up(fraction: float) -> float:
    """Four decimals, never below: the number is to be usable as a budget."""
    return math.ceil(fraction * 10_000) / 10_000
