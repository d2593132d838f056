"""The benchmark's own arithmetic; its figures are for people to read, not for tests to time."""

from __future__ import annotations

import pytest
import torch

from nas_llm import cli
from nas_llm.benchmarks.adapters import AdaptersBenchmark
from nas_llm.benchmarks.distillation import DistillationBenchmark
from nas_llm.benchmarks.figures import Figure, table
from nas_llm.benchmarks.losses import Problem, plain, recomputed, recorded
from nas_llm.benchmarks.programme import CASES, ProgrammeBenchmark, instance, measure
from nas_llm.benchmarks.quantization import QuantizationBenchmark
from nas_llm.benchmarks.sandwich import SandwichBenchmark, medians
from nas_llm.benchmarks.sparsifying import WAYS
from nas_llm.benchmarks.sparsity import SparsityBenchmark
from nas_llm.benchmarks.steps import ARCHITECTURES, llama
from nas_llm.metrics import read_metrics
from nas_llm.models.block_walk import projections
from nas_llm.models.supernet import Supernet

TINY = SandwichBenchmark(repeats=1, batch_size=1, sequence_length=4, evaluations=2)


def test_the_shape_is_the_one_that_the_limits_are_about():
    supernet = Supernet(llama())
    assert supernet.largest() == ARCHITECTURES[0]
    assert supernet.num_parameters(ARCHITECTURES[0]) == 56_369_664
    macs = [supernet.macs(a, batch_size=4, sequence_length=256) for a in ARCHITECTURES]
    assert sum(macs) / macs[0] == pytest.approx(2.55, abs=0.01)


def test_figures_are_measured_and_stand_beside_their_limits(monkeypatch):
    monkeypatch.setattr("nas_llm.benchmarks.steps.VOCABULARY", 100)
    figures = [*TINY.step_times(), *TINY.forward_times(), TINY.search_time()]
    assert all(figure.value > 0 for figure in figures)
    lines = table(figures).splitlines()
    assert len(lines) == len(figures) + 1 == 7
    assert all(("OVER THE LIMIT" in line) != figure.holds for figure, line in zip(figures, lines[1:], strict=True))


def test_medians_leave_the_first_round_out():
    calls = []
    found = medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert found.keys() == {"a", "b"}


def test_a_figure_holds_up_to_its_limit():
    assert Figure("x", 1.15, 1.15, "").holds
    assert not Figure("x", 1.16, 1.15, "").holds


def test_the_stage_takes_the_benchmarks_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SandwichBenchmark, "__call__", lambda self: [Figure("x", 1.0, 2.0, f"{self.repeats} times")])
    assert cli.run(["bench", "sandwich", f"run_dir={tmp_path / 'run'}", "bench.repeats=2"]) == 0
    assert "2 times" in capsys.readouterr().out
    assert read_metrics(tmp_path / "run")[0]["limit"] == 2.0
    assert cli.run(["bench", f"run_dir={tmp_path / 'other'}"]) == 2
    assert (
        "bench is missing, which nas-llm bench reads: choose bench=, of adapters, distillation"
        in capsys.readouterr().err
    )


def test_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match=r"bench\.repeats=0"):
        SandwichBenchmark(repeats=0)


def test_the_ways_of_the_distillation_loss_agree():
    found = []
    for way in (plain, recorded, recomputed):
        problem = Problem.random(500, 300, 16, 8, torch.float32)
        value = way(problem)
        value.backward()
        found.append([value.detach(), problem.student.grad, problem.weight.grad])
    for got in found[1:]:
        torch.testing.assert_close(got, found[0], rtol=1e-4, atol=1e-5)
    assert found[0][0] > 0


def test_the_distillation_loss_is_measured_in_a_process_of_its_own():
    bench = DistillationBenchmark(threads=1, vocabulary=8000, hidden=16, student_hidden=8)
    measured = bench._measure("recomputed", "bfloat16")
    assert 0 < measured["peak_mib"] - measured["before_mib"] < 5 * 2048 * 8000 * 4 / 2**20  # what plain holds
    assert measured["seconds"] > 0


def test_the_distillation_figures_are_ratios_of_medians(monkeypatch):
    peaks = {"plain": [400.0, 110.0, 200.0], "recorded": [150.0] * 3, "recomputed": [130.0, 120.0, 500.0]}

    def measured(self, way, dtype):
        return {"peak_mib": peaks[way].pop(), "before_mib": 100.0, "seconds": 2.0 if way == "plain" else 1.0}

    monkeypatch.setattr(DistillationBenchmark, "_measure", measured)
    figures = DistillationBenchmark(repeats=3).figures("float32")
    assert [(figure.value, figure.limit) for figure in figures] == [(0.5, 0.5), (0.5, 1.15), (0.3, 0.5), (0.5, 1.15)]


def test_impossible_sizes_of_the_distillation_benchmark_are_refused():
    with pytest.raises(ValueError, match=r"bench\.student_hidden=9"):
        DistillationBenchmark(hidden=8, student_hidden=9)
    with pytest.raises(ValueError, match=r"bench\.vocabulary=0"):
        DistillationBenchmark(vocabulary=0)


def test_what_making_a_network_sparse_has_to_hold_is_the_networks_own_arithmetic(monkeypatch):
    bench = SparsityBenchmark(repeats=3, batches=3, batch_size=2, sequence_length=5)
    block = projections(Supernet(llama()))[0]
    read = {p.name.rpartition(".")[2]: p.weight.shape[1] ** 2 for p in block}
    hessians = sum(read[name] for name in ("q_proj", "o_proj", "gate_proj", "down_proj"))
    numbers = {"block": sum(p.weight.numel() for p in block), "hidden states": 30 * 512, "Hessians": hessians}
    assert bench.needed_mib("sparsegpt") == {name: 4 * number / 2**20 for name, number in numbers.items()}
    assert bench.needed_mib("wanda").keys() == {"block", "hidden states"}
    assert SparsityBenchmark().needed_mib("wanda").keys() == {"block"}  # the others lie in a file
    peaks = [400.0, 110.0, 200.0]
    monkeypatch.setattr(
        SparsityBenchmark, "_measure", lambda self, way: {"peak_mib": peaks.pop(), "before_mib": 100.0, "seconds": 1.0}
    )
    assert bench.figure("magnitude").value == pytest.approx(100.0 / bench.needed_mib("magnitude")["block"])
    assert {"magnitude", "wanda", "sparsegpt"} < WAYS.keys()
    with pytest.raises(ValueError, match=r"bench\.batches=0"):
        SparsityBenchmark(batches=0)


def test_gptqs_memory_is_measured_in_a_process_of_its_own(monkeypatch):
    bench = QuantizationBenchmark(1, 1, layers=2, hidden=64, ffn=96, records=2, sequence_length=8, group_size=32)
    measured = bench._measure()
    assert 0 <= measured["peak_mib"] - measured["before_mib"] < 500
    assert measured["model_mib"] == pytest.approx(4 * (2 * 64 * (4 * 64 + 3 * 96 + 2) + 64 * 2001) / 2**20)
    assert bench.block_mib == 4 * (4 * 64**2 + 3 * 64 * 96 + 3 * 64**2 + 96**2) / 2**20
    peaks = [5.0, 3.0, 4.0]
    monkeypatch.setattr(
        QuantizationBenchmark, "_measure", lambda self: {**measured, "before_mib": 1.0, "peak_mib": peaks.pop()}
    )
    (figure,) = QuantizationBenchmark(3, 1)(say=lambda line: None)
    assert figure.value == pytest.approx(3.0 / QuantizationBenchmark(3, 1).block_mib)
    with pytest.raises(ValueError, match=r"bench\.layers=0"):
        QuantizationBenchmark(layers=0)


def test_the_arithmetic_of_masked_adapters_and_a_short_run():
    bench = AdaptersBenchmark(repeats=2, width=64, tokens=32, rank=4)
    w, t, r = 64, 32, 4
    plain = 2 * t * w * w + 3 * (2 * t * w * r)  # y and dL/dx of the weight; A and B, their inputs' and own gradients
    masked = 3 * t * w * w + 3 * w * w * r  # y, dL/dx, dL/dW; B A and the gradients of both
    assert bench.flops_ratio == pytest.approx(masked / plain)
    (figure,) = bench(say=lambda line: None)
    assert figure.value > 0
    assert figure.limit == 1.8
    with pytest.raises(ValueError, match=r"bench\.rank=128: allowed is at most bench\.width=64"):
        AdaptersBenchmark(width=64, rank=128)


def test_the_programme_benchmark_shows_gaps_and_seconds_of_every_case(monkeypatch):
    made = instance(0, {"latency": 0.5}, ties=True, sublayers=8)
    assert [len(row) for row in made.scores] == [15] * 8
    assert [row[0] for row in made.scores] == [0.0] * 8
    assert made.budgets["latency"] == pytest.approx(sum(row[0] for row in made.costs["latency"]) / 2)
    measured = measure(made, 3, 60.0)
    assert measured["number"] == 3
    assert 0 <= measured["first"] <= 0.01
    assert 0 <= measured["last"] <= measured["to_first"]
    bench = ProgrammeBenchmark(seeds=3)
    seconds = {0: 5.0, 1: 70.0, 2: 61.0}
    monkeypatch.setattr(
        bench.__class__, "_measure", lambda self, case, ties, seed: measured | {"seconds": seconds[seed]}
    )
    figures = bench(say=lambda line: None)
    assert len(figures) == 4 * 2 * len(CASES)
    assert [(f.value, f.holds) for f in figures if f.name == "latency 0.5, near ties: seconds"] == [(61.0, False)]
    with pytest.raises(ValueError, match=r"bench\.number=0"):
        ProgrammeBenchmark(number=0)
