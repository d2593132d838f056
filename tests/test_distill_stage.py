"""nas-llm distill: a run, its resumption by the same directory, refusals, the plan, and what it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_families import CONFIGS
from transformers import AutoConfig

from nas_llm import cli
from nas_llm.models.operator_assembly import assemble
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Ffn, Identity, OperatorNetwork
from nas_llm.operators.library import Library

TINY = [
    "model=microworld_llama",
    "data.train_size=40",
    "data.calibration_size=8",
    "data.validation_size=8",
    "data.test_size=8",
    "data.batch_size=4",
    "pool.attention=[identity,linear,heads-0.5x1.0x1.0]",
    "pool.mlp=[identity,ffn-0.5,int4-both]",
    "distill.steps=3",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distilled") / "run"
    assert cli.run(["distill", *TINY, f"run_dir={folder}"]) == 0
    return folder


def test_a_run_leaves_a_library_that_fits_its_supernet(run_dir):
    supernet, library = Supernet.load(run_dir / "supernet"), Library(run_dir / "operators")
    assert sum(map(len, library.operators.values())) == 6 * 6
    assert library.record((0, "mlp"), Identity())["local"] == 1.0
    records = [library.record(place, o) for place, found in library.operators.items() for o in found]
    assert {record["steps"] for record in records} == {0, 3}
    assert all(0 < record["local"] <= 1.5 for record in records)
    half = next(o for o in library.operators[2, "mlp"] if isinstance(o, Ffn))
    small = assemble(supernet, OperatorNetwork.of({(2, "mlp"): half}, 6), library.make(supernet))
    with torch.no_grad():
        assert small(torch.tensor([[3, 4, 5]])).logits.isfinite().all()


def test_the_same_directory_makes_what_is_missing_alone(run_dir, capsys):
    library = Library(run_dir / "operators")
    files = sorted(library.path.glob("*.safetensors"))
    lost = next(file for file in files if "layer03.mlp.ffn" in file.name)
    before = lost.read_bytes()
    others = {file: file.stat().st_mtime_ns for file in files if file != lost}
    lost.unlink()
    assert cli.run(["distill", f"run_dir={run_dir}"]) == 0
    assert "35 of 36 operators are there; 1 in 1 group" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in others} == others
    place, operator = (3, "mlp"), next(o for o in library.operators[3, "mlp"] if isinstance(o, Ffn))
    again = library.load(Supernet.load(run_dir / "supernet"), place, operator).state_dict()
    made = lost.read_bytes()
    lost.write_bytes(before)
    first = library.load(Supernet.load(run_dir / "supernet"), place, operator).state_dict()
    assert all(torch.equal(again[key], value) for key, value in first.items())
    lost.write_bytes(made)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.steps=4", "distill.steps=4 differs from distill.steps=3"),
        ("local_loss=mse", "local_loss="),
        ("model=microworld_neox", "another network"),
        ("data.train_size=44", "data.train_size=44 differs from data.train_size=40"),
        ("distill.memory_gib=0.001", "set distill.memory_gib="),
    ],
)
def test_a_run_goes_on_as_it_began(run_dir, override, message, capsys):
    assert cli.run(["distill", f"run_dir={run_dir}", override]) == 2
    assert message in capsys.readouterr().err


def test_a_directory_of_another_stage_is_refused(tmp_path, capsys):
    (tmp_path / "run" / "supernet").mkdir(parents=True)
    (tmp_path / "run" / "supernet" / "config.json").write_text("{}")
    assert cli.run(["distill", *TINY, f"run_dir={tmp_path / 'run'}"]) == 2
    assert "already holds a run (supernet)" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["distill.steps=0", "distill.precision=fp8", "distill.lrr=1", "local_loss=l3"])
def test_wrong_settings_are_one_line(override, tmp_path, capsys):
    assert cli.run(["distill", *TINY, f"run_dir={tmp_path / 'run'}", override]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("budget", "message"),
    [([], "there is no budget"), (["budget.latency=-1"], "budget.latency=-1 is no budget")],
)
def test_the_budgets_of_the_search_behind_it_are_refused_before_anything_is_distilled(
    budget, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("nas_llm.stages.distill.distil", lambda *given, **settings: pytest.fail("it is distilled"))
    assert cli.run(["distill", *TINY, f"run_dir={tmp_path / 'run'}", "search=ilp", *budget]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_plan_needs_a_configuration_alone(tmp_path, capsys):
    folder = tmp_path / "model"
    AutoConfig.for_model("llama", **CONFIGS["llama"]).save_pretrained(folder)
    settings = ["data.batch_size=2", "data.sequence_length=8", "distill.steps=10", "distill.plan=true"]
    pool = ["pool.attention=[linear]", "pool.mlp=[ffn-0.5,identity]"]
    assert cli.run(["distill", f"model.path={folder}", *settings, *pool, f"run_dir={tmp_path / 'run'}"]) == 0
    shown = capsys.readouterr().out
    linear, ffn, teacher = 48 * 48, 3 * 48 * 40, 2 * 48 * (48 + 24) + 3 * 48 * 80 + 2 * 8 * 48
    flops = 4 * 6 * (linear + ffn) + 4 * 2 * teacher
    assert "operators: 12, 8 of them trained" in shown
    assert f"work: {flops * 160:.2e} FLOPs" in shown
    assert f"{linear + 48:,}" in shown
    assert "FLOPs, 0.0" not in shown
    assert "scores:" not in shown
    search = ["search=ilp", "search.number=4", "budget.latency=[0.5,0.7]", "select.steps=5", "data.calibration_size=3"]
    assert cli.run(["distill", f"model.path={folder}", *settings, *pool, *search, f"run_dir={tmp_path / 'run'}"]) == 0
    planned = capsys.readouterr().out
    attention, mlp, head = 2 * 48 * (48 + 24) + 2 * 8 * 48, 3 * 48 * 80, 48 * CONFIGS["llama"]["vocab_size"]
    behind = sum(3 * ((4 - layer) * (attention + mlp) + head) for layer in range(4))
    assert (
        f"scores: 12 operators, each with the blocks behind it, on 3 x 8 calibration tokens: {2 * behind * 24:.2e}"
        in planned
    )
    assert "latencies: 5 shapes" in planned  # the teacher's two, linear, ffn, identity
    trained = 2 * (4 + 2 + 1) * 5 * 16
    assert f"for each of 2 budgets: at most {8 * trained * (4 * (attention + mlp) + head):.2e} FLOPs" in planned
    assert not (tmp_path / "run").exists()
