"""Latencies for a search: a table of an earlier one becomes that of the machine as it is now; what is refused before
operators are measured. The clock is one that goes on when a module runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from test_families import build
from test_latency_table import clock  # noqa: F401  (a fixture)
from test_operator_costs import TOKENS

from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Ffn, Heads, Identity, Linear, Operator, OperatorNetwork, Quantized
from nas_llm.operators import Place
from nas_llm.operators.costs import OperatorCosts
from nas_llm.operators.latency_comparison import teacher_ms
from nas_llm.operators.latency_measurement import LatencyMeasurement
from nas_llm.stages import operator_latencies
from nas_llm.stages.operator_latencies import Latencies, latencies

MEASUREMENT = {"batch_size": 2, "sequence_length": 6, "depth": 2, "warmup": 0, "rounds": 2}
POOL: dict[Place, list[Operator]] = {
    (1, "mlp"): [Identity(), Ffn(40)],
    (2, "attention"): [Linear(), Heads(1, 2, 8)],
}


def settings(**table) -> DictConfig:
    return OmegaConf.create(
        {
            "latency": {"_target_": "nas_llm.operators.latency_measurement.LatencyMeasurement", **MEASUREMENT},
            "latency_table": {"path": None, "force": False, **table},
            "search": {"seed": 0},
        }
    )


def known(run_dir: Path, supernet: Supernet, budgets: list[float], operators=POOL, **table) -> Latencies | None:
    macs = OperatorCosts.of(supernet, operators, **TOKENS).macs
    return latencies(settings(**table), run_dir, supernet, operators, macs, budgets)


def in_ms(supernet: Supernet, part: float) -> float:
    """That part of the teacher's latency."""
    return part * teacher_ms(supernet, LatencyMeasurement(**MEASUREMENT), np.random.default_rng(0))["wall"]


def test_a_table_of_a_faster_machine_becomes_the_one_that_is_measured_now(clock, tmp_path, capsys):  # noqa: F811
    """Where everything slows alike, a scaled table is the new measurement, number by number."""
    supernet = build("llama")
    budget = in_ms(supernet, 0.7)
    before = known(tmp_path, supernet, [budget])
    assert before.drift is None
    (file,) = (tmp_path / "operators").glob("latency-*.json")
    kept, clock[1] = file.read_text(), 1.2
    capsys.readouterr()
    now = known(tmp_path, supernet, [0.5, budget])
    said = capsys.readouterr().out
    assert now.drift == pytest.approx(1.2)
    assert f"1.200 of what {file} says of it" in said
    assert "measured again" not in said
    assert file.read_text() == kept
    file.unlink()
    again = known(tmp_path, supernet, [budget])
    assert again.drift is None
    for name in ("wall", "process"):
        scaled, measured = now.table.costs(POOL, name), again.table.costs(POOL, name)
        for place, operators in measured.values.items():
            assert scaled.values[place] == pytest.approx(operators, rel=1e-5)  # rounded as the slowest stack is
        assert (scaled.rest, scaled.outside) == pytest.approx((measured.rest, measured.outside))
    network = OperatorNetwork.of({(1, "mlp"): Ffn(40)}, 4)
    assert now.table.predicted_ms(network) == pytest.approx(1.2 * before.table.predicted_ms(network))


def test_the_teacher_is_not_timed_for_fractions_of_it_nor_for_a_table_that_is_forced(
    clock,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    supernet = build("llama")
    budget = in_ms(supernet, 0.7)
    first = known(tmp_path, supernet, [0.7])
    monkeypatch.setattr(operator_latencies, "teacher_ms", lambda *given: pytest.fail("the teacher is timed"))
    for budgets in ([0.7, 1.0], []):
        assert known(tmp_path, supernet, budgets) == first
    capsys.readouterr()
    assert known(tmp_path, supernet, [budget], force=True) == first
    assert "as it is, for latency_table.force=true" in capsys.readouterr().out


def test_a_large_drift_says_how_the_table_is_measured_anew(clock, tmp_path, capsys):  # noqa: F811
    supernet = build("llama")
    budget = in_ms(supernet, 0.7)
    known(tmp_path, supernet, [budget])
    (file,) = (tmp_path / "operators").glob("latency-*.json")
    clock[1] = 0.5
    for table, anew in (({}, f"delete {file}"), ({"path": str(file)}, "set latency_table.path=null")):
        capsys.readouterr()
        assert known(tmp_path, supernet, [budget], **table).drift == pytest.approx(0.5)
        assert capsys.readouterr().out.strip().endswith(f"better measured again: {anew}")


def test_a_budget_in_ms_far_above_the_teacher_is_refused_before_operators_are_measured(clock, tmp_path, monkeypatch):  # noqa: F811
    supernet = build("llama")
    teacher = in_ms(supernet, 1.0)
    measured = known(tmp_path / "other", supernet, [0.7]).table
    asked = []

    def measure(self, supernet, operators, rng, say):
        asked.append(operators)
        return measured

    monkeypatch.setattr(LatencyMeasurement, "__call__", measure)
    with pytest.raises(ValueError, match=r"limits nothing: the whole teacher takes .* ms, and none .* choose less"):
        known(tmp_path, supernet, [0.5, 2.1 * teacher])
    assert not asked
    assert not (tmp_path / "operators").exists()
    integers = {**POOL, (0, "mlp"): [Quantized(4, 8, "both")]}
    known(tmp_path, supernet, [2.1 * teacher], integers)  # they may take longer than the teacher's
    wide = build("llama", intermediate_size=8)
    known(tmp_path / "wide", wide, [2.1 * teacher], {(0, "mlp"): [Linear()]})  # computes more than this teacher's
    known(tmp_path / "close", supernet, [1.9 * teacher])  # is refused once the largest network is known
    assert len(asked) == 3


def test_no_operators_are_measured_where_no_budget_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(LatencyMeasurement, "__call__", lambda *given: pytest.fail("operators are measured"))
    assert known(tmp_path, build("llama"), []) is None
