"""Pictures of a search over operators, drawn from the files of a run directory alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from nas_llm.operator_network import BlockOperators, Ffn, Heads, Identity, OperatorNetwork, Teacher
from nas_llm.reporting.operator_files import COLUMNS, NETWORKS_FILE, OPERATORS_CSV, read_networks, read_operators
from nas_llm.reporting.operator_plots import plot_operators, spearman

POOLS = {"attention": [Teacher(), Identity(), Heads(2, 1, 8)], "mlp": [Teacher(), Identity(), Ffn(16)]}


def write_run(folder: Path, *, trained: bool = True) -> None:
    rng = np.random.default_rng(0)
    with (folder / OPERATORS_CSV).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for layer in range(3):
            for sublayer, pool in POOLS.items():
                for place, operator in enumerate(pool):
                    local, latency = ("", "") if layer == 2 else (place * 0.1, 1.0 - 0.3 * place)
                    rows.writerow([layer, sublayer, operator.name, local, place * 0.2, place, 9, 9, 9, 9, latency])
    lines = []
    for budget in (0.5, 0.8):
        for number in range(4):
            blocks = [BlockOperators(*(pool[rng.integers(3)] for pool in POOLS.values())) for _ in range(3)]
            network = OperatorNetwork(tuple(blocks))
            losses = [3.0 + rng.random(), 2.0 + rng.random()][: 1 + trained]
            lines.append(
                {"id": network.id, **network.to_dict(), "budget": {"latency": budget}, "of": "body"}
                | {"pool": "paper" if budget == 0.5 else "skip_only"}
                | {"objective": number * 0.1}
                | {"gap": 0.0, "status": "optimal", "costs": {"latency": budget}, "losses": losses}
                | {"winner": number == 0, "path": None}
            )
    teacher = OperatorNetwork.teacher(3)
    lines.append(
        {
            "id": teacher.id,
            **teacher.to_dict(),
            "budget": {},
            "of": "body",
            "pool": "",
            "objective": None,
            "gap": None,
            "status": "teacher",
        }
        | {"costs": {"latency": 1.0}, "losses": [1.0], "winner": False, "path": None}
    )
    (folder / NETWORKS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_all_pictures_are_drawn(tmp_path):
    write_run(tmp_path)
    pictures = plot_operators(tmp_path)
    assert {p.name for p in pictures} == {
        "operators.png",
        "scores.png",
        "selection.png",
        "budgets.png",
        "structures.png",
    }
    assert all(p.stat().st_size > 10_000 for p in pictures)


def test_before_and_after_needs_training(tmp_path):
    write_run(tmp_path, trained=False)
    assert "selection.png" not in {p.name for p in plot_operators(tmp_path)}


def test_files_are_read_as_written(tmp_path):
    write_run(tmp_path)
    rows = read_operators(tmp_path)
    assert len(rows) == 18
    assert rows[1].values == {"local": 0.1, "global_mse": 0.2, "loss_change": 1.0} | dict.fromkeys(
        ("params", "memory", "kv_cache", "macs"), 9.0
    ) | {"latency": 0.7}
    assert "local" not in rows[-1].values
    networks = read_networks(tmp_path)
    assert networks[0].asked == "latency 0.5"
    assert networks[4].asked == "latency 0.8, pool skip_only"
    assert networks[0].network.id == networks[0].id


@pytest.mark.parametrize("name", [OPERATORS_CSV, NETWORKS_FILE])
def test_damaged_files_are_refused_by_name(tmp_path, name):
    write_run(tmp_path)
    (tmp_path / name).write_text("layer,sublayer\n0,mlp\n" if name == OPERATORS_CSV else "{}\n")
    with pytest.raises(ValueError, match=name):
        plot_operators(tmp_path)


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 30).tolist(), rng.random(30).tolist()
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
