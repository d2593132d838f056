"""`nas-llm bench latency`: what is timed, how it is compared, what it holds and takes, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_families import build

from nas_llm import cli
from nas_llm.benchmarks.energy import energy_counter
from nas_llm.benchmarks.figures import table
from nas_llm.benchmarks.latency import LatencyBenchmark
from nas_llm.benchmarks.latency_memory import allocated_mib
from nas_llm.benchmarks.latency_rows import LatencyRow, Workload
from nas_llm.benchmarks.latency_subjects import Subject
from nas_llm.metrics import read_metrics
from nas_llm.models.operator_assembly import assemble
from nas_llm.models.saving import save_pretrained
from nas_llm.models.timing import Pass, Time, interleaved, tokens_to_time
from nas_llm.operator_network import Ffn, Identity, Linear, OperatorNetwork
from nas_llm.operators.latency_measurement import untrained
from nas_llm.sparsity.magnitude import Magnitude

CPU = torch.device("cpu")
QUICK = LatencyBenchmark(
    batch_size=2,
    sequence_length=6,
    generation_batch_size=3,
    prompt_tokens=4,
    new_tokens=5,
    rounds=3,
    warmup=1,
    memory=False,
    device="cpu",
    threads=1,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    place = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(build("llama").model, place)
    return str(place)


@torch.inference_mode()
def test_a_generation_is_greedy_and_reads_every_token_once():
    model = build("llama").model.eval()
    prompt, shapes = tokens_to_time(model, 3, 4), []
    handle = model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    try:
        forward = Pass.generating(model, prompt, 5)
        written = forward.run(forward.prepare())
    finally:
        handle.remove()
    assert shapes == [(3, 4)] + [(3, 1)] * 4
    mask = torch.ones_like(prompt)
    whole = model.generate(prompt, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert torch.equal(written, whole[:, 4:])
    assert Workload("throughput", 3, 4, 5).positions == 4 + 5 - 1


@torch.inference_mode()
def test_a_network_with_sublayers_left_out_generates_as_without_a_cache():
    teacher = build("llama")
    operators = {(0, "attention"): Linear(), (1, "attention"): Identity(), (2, "mlp"): Ffn(40)}
    model = assemble(teacher, OperatorNetwork.of(operators, 4), untrained(teacher)).eval()
    prompt = written = tokens_to_time(model, 3, 4)
    for _ in range(6):
        logits = model(input_ids=written, use_cache=False).logits
        written = torch.cat([written, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(Pass.generating(model, prompt, 6).run(None), written[:, 4:])


def test_every_round_times_every_pass_once():
    calls: list[str] = []
    passes = [Pass(lambda: None, lambda _, name=name: calls.append(name)) for name in "abc"]
    times = interleaved(passes, CPU, warmup=2, rounds=8, rng=np.random.default_rng(0))
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert [len(own) for own in times] == [8] * 3
    assert all(sorted(order) == list("abc") for order in rounds)
    assert rounds[:2] == ["abc"] * 2
    assert len(set(rounds[2:])) > 1
    calls.clear()
    interleaved(passes, CPU, warmup=0, rounds=2)
    assert calls == list("abcabc")


def test_medians_spreads_and_ratios_are_those_of_the_rounds(saved, monkeypatch):
    wall = {"prefill": ([10, 40, 10, 20], [5, 60, 5, 10]), "throughput": ([100, 200], [50, 400])}

    def timed(passes, device, *, warmup, rounds, rng):
        found = wall["prefill" if rounds == 4 else "throughput"]
        assert (len(passes), warmup) == (2, 2 if rounds == 4 else 1)
        return [[Time(ms, ms) for ms in own] for own in found]

    monkeypatch.setattr("nas_llm.benchmarks.latency.interleaved", timed)
    lines: list[str] = []
    bench = replace(QUICK, paths=[saved, saved + "/."], warmup=2, rounds=4, generation_rounds=2)
    rows = replace(bench, measures=["prefill", "throughput"])(lines.append)
    assert [(row.value, row.ratio) for row in rows[:2]] == [(15, 1), (7.5, 0.5)]  # of medians of the rounds' ratios
    assert rows[0].spread == np.percentile(wall["prefill"][0], 75) - np.percentile(wall["prefill"][0], 25)
    tokens = 3 * 5
    rates = [[1000 * tokens / ms for ms in own] for own in wall["throughput"]]
    assert [row.value for row in rows[2:]] == [np.median(own) for own in rates]
    assert [row.ratio for row in rows[2:]] == [1, np.mean([2, 0.5])]
    assert any("energy is counted on NVIDIA GPUs alone" in line for line in lines)


def test_rows_are_a_table_and_metrics():
    row = LatencyRow(
        workload=Workload("throughput", 32, 16, 512),
        subject="tiny",
        identity={"model": "models/tiny"},
        conditions={"device": "cpu", "dtype": "float32", "threads": 2},
        value=1234.5,
        spread=3.25,
        ratio=0.5,
        rounds=3,
        peak_mib=70.0,
        joules_per_token=None,
    )
    head, line = table([row]).splitlines()
    assert head.split() == ["measure", "model", "median", "IQR", "unit", "ratio", "peak", "MiB", "J/token"]
    assert line.split()[-7:] == ["tiny", "1234.5", "3.250", "tokens/s", "0.500", "70.0", "-"]
    speed, memory = row.metrics()
    assert (speed["name"], speed["value"], speed["unit"]) == ("throughput", 1234.5, "tokens/s")
    assert (speed["samples"], speed["model"], speed["new_tokens"]) == (3, "models/tiny", 512)
    assert (memory["name"], memory["value"], memory["unit"]) == ("throughput_peak_memory", 70.0, "MiB")
    assert speed["variant"] == memory["variant"]
    energy = replace(row, peak_mib=None, joules_per_token=0.25).metrics()[1]
    assert (energy["name"], energy["unit"]) == ("throughput_energy", "J/token")


def test_peak_memory_is_that_of_the_model_and_its_pass(tmp_path):
    supernet = build("llama", hidden_size=768, intermediate_size=4096, num_hidden_layers=4)
    save_pretrained(supernet.model, tmp_path / "large")
    weights = 4 * sum(p.numel() for p in supernet.model.parameters()) / 2**20
    bench = replace(QUICK, paths=[str(tmp_path / "large")], measures=["prefill"], memory=True)
    (row,) = bench(lambda line: None)
    assert row.peak_mib is not None
    assert weights - 10 < row.peak_mib < 2.5 * weights + 30  # measured to some 10 MiB


def test_memory_that_a_process_fails_to_measure_is_left_out(saved, monkeypatch):
    def killed(*given):
        raise subprocess.CalledProcessError(1, "python", stderr="Traceback\nMemoryError: no room\n")

    monkeypatch.setattr("nas_llm.benchmarks.latency.printed_by", killed)
    lines: list[str] = []
    (row,) = replace(QUICK, paths=[saved], measures=["prefill"], memory=True)(lines.append)
    assert row.peak_mib is None
    assert lines[-1] == "peak memory is not measured: MemoryError: no room"


def test_peak_memory_on_a_gpu_is_the_rise_and_the_models_own_weights(monkeypatch):
    for name, value in {"memory_allocated": 100 * 2**20, "max_memory_allocated": 130 * 2**20}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    subject = Subject("tiny", {}, build("llama").model.eval(), None, weights_mib=50.0)
    assert allocated_mib(Workload("prefill", 1, 4), subject, CPU) == 80.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"bench.paths=\[\]: there is nothing to measure"),
        ({"architectures": ["largest"]}, "cannot take effect without the run that they are of: add bench.run_dir=DIR"),
        ({"run_dir": "x"}, r"add bench.architectures=\[largest,smallest\]"),
        ({"measures": []}, "bench.measures=.*: name some of prefill, decode, throughput"),
        ({"rounds": 0}, "bench.rounds=0: allowed is 1 or more"),
        ({"threads": 0}, "bench.threads=0: allowed is 1 or more, or null for one per core"),
        ({"warmup": -1}, "bench.warmup=-1: allowed is 0 or more"),
        (
            {"semi_structured": True, "paths": ["x"]},
            "bench.semi_structured=true: .* need a CUDA device, this is cpu",
        ),
        ({"device": "nowhere"}, "bench.device=nowhere is no device"),
        ({"paths": ["./none"]}, "bench.paths=./none: neither a local directory"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **settings)(lambda line: None)


def test_only_networks_with_two_four_weights_are_timed_on_the_kernels(tmp_path, monkeypatch):
    cut = build("llama", hidden_size=192, intermediate_size=128)
    save_pretrained(cut.model, tmp_path / "dense")
    Magnitude(pattern="2:4")(cut)
    save_pretrained(cut.model, tmp_path / "cut")
    for name in ("refuse_without_kernels", "semi_structured"):
        monkeypatch.setattr(f"nas_llm.benchmarks.latency.{name}", lambda *given: None)
    bench = replace(QUICK, measures=["prefill"], semi_structured=True)
    rows = replace(bench, paths=[str(tmp_path / "dense"), str(tmp_path / "cut")])(lambda line: None)
    assert [row.subject for row in rows] == ["dense", "cut", "cut, 2:4 kernels"]
    assert rows[2].identity == {"model": "cut", "kernels": "semi_structured"}
    with pytest.raises(ValueError, match=r"bench.semi_structured=true: .* no linear module has the pattern 2:4"):
        replace(bench, paths=[str(tmp_path / "dense")])(lambda line: None)


def test_all_that_is_too_long_is_one_line(saved):
    bench = replace(QUICK, paths=[saved], sequence_length=64, prompt_tokens=16, new_tokens=512)
    with pytest.raises(ValueError) as caught:
        bench(lambda line: None)
    assert str(caught.value) == (
        "tiny has 64 positions; decode, 2 x 64, needs 65, throughput, 3 x 16 in, 512 out, needs 527: add "
        "bench.sequence_length=63 bench.new_tokens=49"
    )
    mended = replace(bench, sequence_length=63, new_tokens=49)
    assert [workload.positions for workload in mended.workloads] == [63, 64, 64]
    mended._refuse_long([SimpleNamespace(name="tiny", model=build("llama").model)])  # type: ignore[list-item]


def test_adapters_beside_a_model_are_not_passed_over(saved, tmp_path):
    (tmp_path / "model" / "adapter").mkdir(parents=True)
    with pytest.raises(ValueError, match="low-rank adapters beside its weights"):
        replace(QUICK, paths=[str(tmp_path / "model")])(lambda line: None)


def test_energy_is_read_from_the_driver_where_that_can_be(monkeypatch):
    assert energy_counter(CPU) == "energy is counted on NVIDIA GPUs alone"
    gpu = torch.device("cuda")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in str(energy_counter(gpu))
    counted = iter([0, 1000, 4000])  # millijoules

    class NVMLError(Exception):
        pass

    def refused() -> None:
        raise NVMLError("Driver Not Loaded")

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counted),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    counter = energy_counter(gpu)
    assert not isinstance(counter, str)
    assert counter.handle == "GPU-1-2"
    runs: list[int] = []
    forward = Pass(lambda: None, lambda _: runs.append(1))
    assert counter.joules_per_token(forward, 5, gpu, seconds=0) == pytest.approx(3 / (5 * len(runs)))
    assert len(runs) == 1
    counted = iter([0, 6000, 6000, 7000])
    prepared = Pass(lambda: "a cache", lambda _: None)
    assert counter.joules_per_token(prepared, 5, gpu, seconds=0) == pytest.approx((6 - 1) / 5)
    nvml.nvmlInit = refused
    assert str(energy_counter(gpu)) == "energy is not counted: NVML says Driver Not Loaded"


def test_the_command_measures_saved_models_and_writes_the_results(saved, tmp_path, capsys):
    small = ["bench.sequence_length=8", "bench.batch_size=1", "bench.generation_batch_size=2", "bench.prompt_tokens=2"]
    given = [*small, "bench.new_tokens=3", "bench.rounds=2", "bench.generation_rounds=1", "bench.memory=false"]
    paths = f"bench.paths=[microworld_neox,{saved}]"
    assert cli.run(["bench", "latency", f"run_dir={tmp_path / 'run'}", paths, *given, "bench.dtype=bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert "prefill, 1 x 8" in printed
    assert "precision" not in printed
    metrics = read_metrics(tmp_path / "run")
    assert [(m["name"], m["model"]) for m in metrics] == [
        (name, model)
        for name in ("prefill_latency", "decode_latency", "throughput")
        for model in ("microworld_neox", "tiny")
    ]
    assert all(m["value"] > 0 and m["dtype"] == "bfloat16" and m["spread"] >= 0 for m in metrics)
    assert cli.run(["bench", "latency", f"run_dir={tmp_path / 'other'}"]) == 2
    assert "there is nothing to measure" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_timed_by_events_and_its_memory_counted(saved):
    bench = replace(QUICK, paths=[saved, "microworld_llama"], device="cuda", memory=True, energy_s=0.2, dtype="float16")
    rows = bench(lambda line: None)
    assert len(rows) == 6
    assert all(row.value > 0 and row.peak_mib is not None and row.peak_mib > 0 for row in rows)
    assert all(row.joules_per_token is None or row.joules_per_token > 0 for row in rows)
