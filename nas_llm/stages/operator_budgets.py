"""The budgets that a search over operators is asked for, as the configuration lists them."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig, ListConfig

from nas_llm.operators.budgets import refuse_no_budget
from nas_llm.reporting.operator_files import COSTS


def asked_budgets(cfg: DictConfig) -> list[dict[str, float]]:
    """The budgets of the configuration, one after the other; a list of values is as many budgets.

    Raises:
        ValueError: none, one that is not above 0, or lists of different lengths.
    """
    given = {str(key): value for key, value in cfg.budget.items() if key != "of" and value is not None}
    for name in given.keys() - set(COSTS):
        raise ValueError(f"budget.{name}={given[name]} is not known: allowed are {', '.join(COSTS)}")
    if not given:
        names = ", ".join(f"budget.{key}" for key in cfg.budget if key != "of")
        raise ValueError(f"search=ilp: there is no budget; set one of {names}, as budget.latency=0.6")
    lists = {key: list(value) for key, value in given.items() if isinstance(value, ListConfig)}
    lengths = {len(values) for values in lists.values()}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(
            f"{', '.join(f'budget.{key}={values}' for key, values in lists.items())}: lists of budgets are gone "
            "through together: give as many values to each, at least one"
        )
    budgets = [
        {key: float(lists[key][i] if key in lists else value) for key, value in given.items()}
        for i in range(lengths.pop() if lengths else 1)
    ]
    for budget in budgets:
        for name, value in budget.items():
            refuse_no_budget(name, value)
    return budgets


def said(budget: Mapping[str, float]) -> str:
    """In words: "latency 0.6, params 0.5"."""
    return ", ".join(f"{name} {limit:g}" for name, limit in budget.items())
