"""What a search over operators left in its run directory, read from the files alone: operators.csv and networks.jsonl.

A line of ``operators.csv`` is an operator in one place: ``layer``, ``sublayer``, ``operator`` (its name), the scores
``local``, ``global_mse``, ``loss_change``, and costs (``params``, ``memory``, ``kv_cache``, ``macs``, ``latency``);
what was not measured is empty. A line of ``networks.jsonl`` is a network that a programme gave:

    id, blocks             what it is (``OperatorNetwork``)
    budget                 {cost: as it was asked for}; empty for the teacher
    of                     "body" or "whole": what the budget is a limit of
    pool                   of its operators: an option of the group pool, or "own-<hash>"; empty for the teacher
    objective, gap, status of the programme's solution; the gap is (objective - bound) / |bound|, null above 1, where
                           the bound proves next to nothing
    costs                  {cost: part of the teacher's body}
    latency_drift          by which latencies of an earlier search were multiplied for a budget in ms: how many times as
                           long the teacher took by then; null where they were as measured
    losses                 nats per token: untrained, and after every round of training
    steps                  of one round
    winner, path           whether it is the best of its budget, and where it was exported
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_llm.operator_network import OperatorNetwork

OPERATORS_CSV, NETWORKS_FILE = "operators.csv", "networks.jsonl"
SCORES = ("local", "global_mse", "loss_change")
COSTS = ("params", "memory", "kv_cache", "macs", "latency")
PAPER = "paper"  # the pool of the paper
COLUMNS = ("layer", "sublayer", "operator", *SCORES, *COSTS)


@dataclass(frozen=True)
class OperatorRow:
    """One operator in one place; ``values`` holds the scores and costs that are known."""

    layer: int
    sublayer: str
    operator: str
    values: Mapping[str, float]

    @property
    def kind(self) -> str:
        """ "teacher", "identity", "linear", "heads", "ffn", "sparse", "int4" ..."""
        return self.operator.partition("-")[0]


@dataclass(frozen=True)
class NetworkRow:
    """One line of ``networks.jsonl``."""

    id: str
    network: OperatorNetwork
    budget: Mapping[str, float]
    of: str
    objective: float | None
    gap: float | None
    status: str
    costs: Mapping[str, float]
    losses: tuple[float, ...]
    winner: bool
    path: str | None
    pool: str = PAPER
    steps: int | None = None
    latency_drift: float | None = None

    @property
    def rounds(self) -> int:
        """Of training."""
        return len(self.losses) - 1

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> NetworkRow:
        """One line as it is read. Raises KeyError, TypeError or ValueError where it is damaged."""
        return cls(
            record["id"],
            OperatorNetwork.from_dict(record),
            record["budget"],
            record["of"],
            record["objective"],
            record["gap"],
            record["status"],
            record["costs"],
            tuple(record["losses"]),
            record["winner"],
            record["path"],
            record.get("pool", PAPER),
            record.get("steps"),
            record.get("latency_drift"),
        )

    @property
    def asked(self) -> str:
        """The budget in words: "latency 0.6", "params 0.5 of the whole", "macs 0.8, pool skip_only"; the paper's pool
        goes without saying."""
        limits = ", ".join(f"{name} {limit:g}" for name, limit in self.budget.items())
        pool = f", pool {self.pool}" if self.pool not in ("", PAPER) else ""
        return limits + (" of the whole" if self.of == "whole" else "") + pool


def read_operators(run_dir: Path) -> list[OperatorRow]:
    """Rows of ``operators.csv``. Raises ValueError where it is damaged."""
    file = run_dir / OPERATORS_CSV
    try:
        with file.open(newline="") as lines:
            return [
                OperatorRow(
                    int(row["layer"]),
                    row["sublayer"],
                    row["operator"],
                    {key: float(row[key]) for key in (*SCORES, *COSTS) if row[key]},
                )
                for row in csv.DictReader(lines)
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it and search again") from error


def read_networks(run_dir: Path) -> list[NetworkRow]:
    """Rows of ``networks.jsonl``, as they were written. Raises ValueError where it is damaged."""
    file = run_dir / NETWORKS_FILE
    rows = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        try:
            rows.append(NetworkRow.of_record(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {number}: damaged ({error}): delete it and search again") from error
    return rows
