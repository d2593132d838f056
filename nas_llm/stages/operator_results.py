"""What a search over operators writes of them and of the networks that it found: operators.csv and networks.jsonl
(``reporting/operator_files.py`` reads them and says what they hold).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from nas_llm.atomic_files import write_text
from nas_llm.config import config_dir
from nas_llm.operator_network import Operator, OperatorNetwork
from nas_llm.operators import Place
from nas_llm.operators.cost_table import CostTable
from nas_llm.operators.library import Library
from nas_llm.operators.selection import Ranked
from nas_llm.reporting.operator_files import COLUMNS, NETWORKS_FILE, OPERATORS_CSV, PAPER, read_networks
from nas_llm.stages.export import NETWORKS

if TYPE_CHECKING:
    from nas_llm.operators.programme import Solution

PROVEN = 1.0  # gaps above say nothing: the bound is less than half of the objective, of another sign, or none


@dataclass(frozen=True)
class Found:
    """A network of a budget, and what is known of it."""

    budget: Mapping[str, float]
    network: OperatorNetwork
    solution: Solution
    ranked: Ranked
    of: str = "body"  # what the budget is a limit of
    pool: str = ""  # of the operators that it was sought among
    winner: bool = False
    path: Path | None = None
    latency_drift: float | None = None  # as of Latencies, where the budget is one in ms


def write_operators(
    run_dir: Path,
    library: Library,
    operators: Mapping[Place, Sequence[Operator]],
    scores: Mapping[tuple[Place, Operator], Any],
    costs: Mapping[str, CostTable],
) -> None:
    """operators.csv."""
    lines = [",".join(COLUMNS)]
    for place, pool in operators.items():
        for operator in pool:
            values = {"local": library.record(place, operator)["local"], **scores[place, operator].to_dict()}
            values |= {name: table.values[place][operator] for name, table in costs.items()}
            cells = [str(values.get(column, "")) for column in COLUMNS[3:]]
            lines.append(",".join([str(place[0]), place[1], operator.name, *cells]))
    write_text(run_dir / OPERATORS_CSV, "\n".join(lines) + "\n")


def record_of(found: Found, costs: Mapping[str, CostTable], run_dir: Path, steps: int) -> dict[str, Any]:
    """Its line of networks.jsonl."""
    solution, network = found.solution, found.network
    gap = solution.gap if solution.gap <= PROVEN else None
    return (
        {"id": network.id, **network.to_dict(), "budget": dict(found.budget), "of": found.of, "pool": found.pool}
        | {"objective": solution.objective, "gap": gap, "status": solution.status}
        | {"costs": {name: table.body(network) / table.teacher_body for name, table in costs.items()}}
        | {"losses": list(found.ranked.losses), "steps": steps, "winner": found.winner}
        | {"latency_drift": found.latency_drift}
        | {"path": None if found.path is None else str(found.path.relative_to(run_dir))}
    )


def write_networks(
    run_dir: Path,
    found: Sequence[Mapping[str, Any]],
    costs: Mapping[str, CostTable],
    teacher: OperatorNetwork,
    teacher_loss: float,
) -> None:
    """networks.jsonl: the budgets of this search in the place of the same ones before it, among the same pool; all
    others stay."""
    file = run_dir / NETWORKS_FILE
    before = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    asked = [_asked(record) for record in found]
    records = [record for record in before if record["budget"] and _asked(record) not in asked] + list(found)
    records.append(
        {"id": teacher.id, **teacher.to_dict(), "budget": {}, "of": "body", "status": "teacher"}
        | {"pool": "", "objective": None, "gap": None}
        | {"costs": dict.fromkeys(costs, 1.0), "losses": [teacher_loss], "winner": False, "path": None}
    )
    write_text(file, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def unlisted_networks(run_dir: Path) -> list[str]:
    """Exported networks that networks.jsonl does not name."""
    listed = {row.path for row in read_networks(run_dir)}
    return sorted(
        folder.name
        for folder in (run_dir / NETWORKS).glob("*")
        if (folder / "config.json").is_file() and str(folder.relative_to(run_dir)) not in listed
    )


def pool_name(pool: DictConfig) -> str:
    """Its option of the group ``pool``; "own-<hash>" where it is none of them as it stands."""
    for file in sorted((config_dir() / "pool").glob("*.yaml")):
        option = OmegaConf.load(file)
        assert isinstance(option, DictConfig)
        if {"layout": None, **option} == {"layout": None, **pool}:
            return file.stem
    settings = json.dumps(OmegaConf.to_container(pool, resolve=True), sort_keys=True)
    return f"own-{hashlib.sha256(settings.encode()).hexdigest()[:6]}"


def _asked(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["budget"], record["of"], record.get("pool", PAPER)
