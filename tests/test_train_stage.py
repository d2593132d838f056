"""`nas-llm train` from end to end on a tiny model: outputs, resume, refusals, and two processes."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nas_llm import cli
from nas_llm.atomic_files import read_json, write_text
from nas_llm.composition import checked
from nas_llm.search import TRUNCATION, Archive
from nas_llm.stages.train import validation_interval

TEXT = "The red fox ran to the old mill. It was cold and the river was wide. A bear sat near the door and slept. "


@pytest.fixture(scope="module")
def base(tiny_tokenizer, tmp_path_factory) -> Path:
    """A pre-trained model, and a text."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, vocab_size=400, num_key_value_heads=2, max_position_embeddings=64)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    write_text(folder / "text.jsonl", "".join(json.dumps({"text": TEXT[i:] + TEXT}) + "\n" for i in range(40)))
    return folder


def arguments(base: Path, run_dir: Path, *more: str) -> list[str]:
    data = ["data=text", f"data.path={base / 'text.jsonl'}", "data.sequence_length=16", "data.calibration_size=4"]
    data += [f"data.cache_dir={base / 'cache'}", "data.batch_size=4", "data.validation_size=4", "data.test_size=2"]
    search = ["search_space.steps=4", "search.evaluations=12", "search.population=6"]
    trainer = ["trainer.accelerator=cpu", "trainer.max_steps=6", "trainer.val_check_interval=3", "checkpoint.keep=true"]
    model = [f"model.path={base / 'model'}", "checkpoint.every_n_steps=2"]
    return ["train", f"run_dir={run_dir}", *model, *data, *search, *trainer, *more]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "supernet" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert cli.run(arguments(base, run_dir)) == 0
    return run_dir


def test_the_run_directory_holds_everything(finished):
    for name in ("supernet", "archive.jsonl", "search.json", "search_space.json", "importance.safetensors"):
        assert (finished / name).exists(), name
    for name in ("pareto.csv", "pareto.png", "results.json", "report.html", "provenance.json", "checkpoints/last.ckpt"):
        assert (finished / name).stat().st_size > 0, name
    archive = Archive(finished / "archive.jsonl")
    assert {evaluation.source for evaluation in archive.evaluations} >= {"nsga2", TRUNCATION}
    assert {evaluation.step for evaluation in archive.evaluations if evaluation.source == "nsga2"} == {6}


def test_the_hypervolume_goes_to_the_loggers_and_the_report(finished):
    with (finished / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["search/hypervolume"]]
    written = json.loads((finished / "search.json").read_text())["hypervolume"]
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert float(rows[-1]["search/hypervolume"]) == pytest.approx(written["curves"]["nsga2"][-1][1])
    assert (finished / "search_progress.png").stat().st_size > 0
    assert "architectures asked for" in (finished / "report.html").read_text()


def test_exports_load_with_the_stock_class(finished):
    exported = sorted((finished / "subnets").iterdir())
    assert len(exported) == 3
    sizes = sorted(AutoModelForCausalLM.from_pretrained(path).num_parameters() for path in exported)
    full = AutoModelForCausalLM.from_pretrained(finished / "supernet").num_parameters()
    assert sizes[0] < sizes[1] < sizes[2] < full


def test_the_last_lines_name_the_place_and_the_next_command(base, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert cli.run(arguments(base, run_dir, "trainer.max_steps=1", "trainer.val_check_interval=null")) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[-1] == f"Everything lies in {run_dir}; try next: nas-llm evaluate run_dir={run_dir}"
    assert any("full network" in line for line in printed)


def test_validation_is_at_the_end_of_a_run_shorter_than_an_epoch_and_in_the_report(base, tmp_path):
    run_dir = tmp_path / "run"
    command = [a for a in arguments(base, run_dir) if "val_check_interval" not in a]
    assert cli.run([*command, "trainer.max_steps=2"]) == 0
    with (run_dir / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss_largest"]]
    assert [int(row["step"]) for row in rows] == [0, 1]  # as Lightning counts: after the first and the second
    for network in ("largest", "middle", "smallest"):
        for row in rows:
            perplexity = math.exp(float(row[f"val/loss_{network}"]))
            assert float(row[f"val/perplexity_{network}"]) == pytest.approx(perplexity, rel=1e-5)
    assert "smallest, validation" in (run_dir / "report.html").read_text()


@pytest.mark.parametrize(("steps", "accumulated"), [(1, 1), (7, 1), (120, 1), (121, 3), (500, 2)])
def test_the_default_interval_ends_with_the_run(steps, accumulated):
    cfg = checked([f"trainer.max_steps={steps}", f"training.accumulate_grad_batches={accumulated}", "stage=train"])
    assert steps * accumulated % validation_interval(cfg) == 0


def test_resumed_from_the_middle_equals_the_whole(finished, base, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    for left in ("supernet", "subnets"):
        shutil.rmtree(run_dir / left)
    for left in ("archive.jsonl", "search.json", "results.json"):
        (run_dir / left).unlink()
    (run_dir / "checkpoints" / "step-2.ckpt").replace(run_dir / "checkpoints" / "last.ckpt")
    assert cli.run(["train", f"run_dir={run_dir}", "ckpt_path=last"]) == 0
    expected = weights(finished)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run_dir).items())
    assert read_json(run_dir / "search.json")["front"] == read_json(finished / "search.json")["front"]


def test_a_run_that_had_finished_training_goes_on_with_the_search(finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    whole = Archive(run_dir / "archive.jsonl").evaluations
    lines = (run_dir / "archive.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "archive.jsonl").write_text("".join(lines[:5]))
    (run_dir / "search.json").unlink()
    assert cli.run(["train", f"run_dir={run_dir}", "ckpt_path=last"]) == 0
    assert (run_dir / "archive.jsonl").read_text().startswith("".join(lines[:5]))
    assert Archive(run_dir / "archive.jsonl").evaluations == whole
    assert all(torch.equal(value, weights(finished)[name]) for name, value in weights(run_dir).items())


def test_more_likely_tokens_than_the_vocabulary_has_leave_no_run_behind(base, tmp_path, capsys):
    command = arguments(base, tmp_path / "run", "distillation=top_k", "distillation.k=401")
    assert cli.run(command) == 2
    assert "distillation.k=401: allowed are at most the 400 tokens" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resumed_with_the_original_as_teacher_equals_the_whole(base, tmp_path, capsys):
    teaching = ["training.teacher=frozen", "hidden_matching=mse", "distillation=jensen_shannon", "search=none"]
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    command = [a for a in arguments(base, whole, *teaching, "trainer.max_steps=4") if not a.startswith("search.")]
    assert cli.run(command) == 0
    shutil.copytree(whole, rest)
    shutil.rmtree(rest / "supernet")
    (rest / "checkpoints" / "step-2.ckpt").replace(rest / "checkpoints" / "last.ckpt")
    assert cli.run(["train", f"run_dir={rest}", "ckpt_path=last", "training.teacher=in_place"]) == 2
    assert 'trained with teacher.kind="frozen"' in capsys.readouterr().err
    assert cli.run(["train", f"run_dir={rest}", "ckpt_path=last"]) == 0
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(rest).items())


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("search_space.steps=2", "search_space.hidden=[8, 32] differs from search_space.hidden=[8, 16, 24, 32]"),
        ("importance=magnitude", "importance="),
        ("data.seed=1", "data="),
    ],
)
def test_resuming_with_something_else_is_refused(finished, tmp_path, capsys, override, named):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    assert cli.run(["train", f"run_dir={run_dir}", "ckpt_path=last", override]) == 2
    error = capsys.readouterr().err
    assert f"nas-llm: error: {named}" in error


@pytest.mark.parametrize("stage", ["train ckpt_path=last", "train ckpt_path=last importance=none", "search"])
@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 64}])
def test_another_network_than_the_runs_is_refused(finished, base, tiny_tokenizer, tmp_path, capsys, stage, sizes):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(base / "model", **sizes))
    model.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    before = (run_dir / "fingerprints.json").read_bytes()
    name, *settings = stage.split()
    assert cli.run([name, f"run_dir={run_dir}", f"model.path={tmp_path / 'other'}", *settings]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    named = "hidden_size 64 here and 32 there" if sizes else "weights "
    if settings == ["ckpt_path=last", "importance=none"]:  # named before any network is loaded
        assert "importance={} differs" in error
        assert (run_dir / "fingerprints.json").read_bytes() == before
        return
    assert f"model.path={tmp_path / 'other'} is another network than {run_dir} was started with, {named}" in error
    assert (run_dir / "fingerprints.json").read_bytes() == before


def test_scores_of_an_earlier_run_of_the_same_model_are_used(finished, base, tmp_path):
    run_dir = tmp_path / "run"
    reuse = ["importance=file", f"importance.path={finished / 'importance.safetensors'}", "search=none"]
    command = [a for a in arguments(base, run_dir, "trainer.max_steps=1", *reuse) if "search." not in a]
    assert cli.run([*command, "trainer.val_check_interval=null"]) == 0
    scores, before = (load_file(folder / "importance.safetensors") for folder in (run_dir, finished))
    assert scores.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in scores.items())


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("importance=file importance.path={finished}", "importance.path={finished}: the scores in .*another network"),
        ("importance=file importance.path=nowhere", "importance.path=nowhere: there is no file nowhere"),
        ("data.calibration_size=3", "data.calibration_size: .* 3 records, less than one batch of data.batch_size=4"),
    ],
)
def test_scores_that_cannot_be_had_are_one_line_and_leave_nothing(
    finished, base, tiny_tokenizer, tmp_path, capsys, override, says
):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(base / "model"))
    model.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    places = {"finished": finished / "importance.safetensors"}
    given = [f"model.path={tmp_path / 'other'}", *override.format(**places).split()]
    capsys.readouterr()  # what saving the model printed
    assert cli.run(arguments(base, tmp_path / "run", *given)) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert re.search(says.format(**places), error), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.devices=0", ".*trainer.devices=0: .*; the defaults are .*trainer.devices=1"),
        ("trainer.strategy=fsdp", ".*trainer.strategy=fsdp: .* requires a GPU accelerator"),
        (
            "trainer.max_time=abc",
            "trainer.max_time=abc: .*not a valid duration.*; the defaults are trainer.max_time=null",
        ),
        ("trainer.limit_train_batches=0.0001", "trainer.limit_train_batches=0.0001: You requested to check"),
        ("model.attn_implementation=foo", "model.attn_implementation=foo: .*; set model.attn_implementation=null"),
        ("ckpt_path=text.jsonl", "ckpt_path=.*text.jsonl is not a whole checkpoint"),
        (
            "objectives=[latency,loss] objectives.latency.sequence_length=999",
            "objectives.latency.sequence_length=999 .* the model has 64: set objectives.latency.sequence_length=64",
        ),
        (
            "objectives=[accuracy,params] objectives.accuracy.sets.items_per_set=0",
            "objectives.accuracy.sets: the set 'location' is empty; give it items",
        ),
    ],
)
def test_what_only_lightning_or_the_model_can_judge_is_one_line_and_leaves_nothing(
    base, tmp_path, capsys, monkeypatch, override, says
):
    monkeypatch.chdir(base)
    command = [a for a in arguments(base, tmp_path / "run", *override.split()) if "search." not in a]
    assert cli.run(command) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert re.search(f"error: {says}", error), error
    assert not (tmp_path / "run").exists()


def test_a_sparse_network_is_searched_as_it_is_and_its_zeros_are_exported(base, tmp_path, capsys):
    run_dir = tmp_path / "run"
    pattern = ["sparsity=sparsegpt", "sparsity.sparsity=null", "sparsity.pattern=2:4", "sparsity.targets=[up_proj]"]
    command = arguments(
        base, run_dir, *pattern, "trainer.max_steps=0", "scheduler=none", "trainer.val_check_interval=null"
    )
    assert cli.run(command) == 0
    assert "sparsity: 50.0% of the 4,608 weights of 3 linear modules are zero" in capsys.readouterr().out
    assert read_json(run_dir / "sparsity.json")["overall"] == {"zeros": 2304, "size": 4608, "sparsity": 0.5}
    for name, weight in weights(run_dir).items():
        groups = (weight.unflatten(-1, (-1, 4)) == 0).sum(-1) if weight.dim() == 2 else (weight == 0)
        assert (groups == (2 if "up_proj" in name else 0)).all(), name
    assert len(list((run_dir / "subnets").iterdir())) == 3
    assert read_json(run_dir / "fingerprints.json")["sparsity"]["pattern"] == "2:4"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "sparsity.targets=[qkv]",
            "sparsity.targets=[qkv]: qkv is no linear module of the blocks; allowed are q_proj,",
        ),
        (
            "sparsity.sparsity=null sparsity.pattern=2:5",
            "sparsity.pattern=2:5 does not divide the width of model.layers.0",
        ),
    ],
)
def test_sparsity_that_the_network_cannot_have_is_one_line_and_leaves_nothing(base, tmp_path, capsys, override, says):
    given = [
        "sparsity=wanda",
        *override.split(),
        "trainer.max_steps=0",
        "scheduler=none",
        "trainer.val_check_interval=null",
    ]
    assert cli.run(arguments(base, tmp_path / "run", *given)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"nas-llm: error: {says}")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_magnitude_needs_no_calibration_data(base, tmp_path):
    settings = ["importance=magnitude", "data.calibration_size=0", "search=none", "trainer.max_steps=1"]
    command = [a for a in arguments(base, tmp_path / "run", *settings) if "search." not in a]
    assert cli.run([*command, "trainer.val_check_interval=null"]) == 0


@pytest.mark.parametrize(
    ("size", "named"),
    [(0, "run_dir={} cannot be written"), (200_000, "{}/checkpoints/last.ckpt could not be written")],
)
def test_a_full_disk_is_one_line(base, tmp_path, capsys, file_size_limit, size, named):
    run_dir, more = tmp_path / "runs" / "a", ["checkpoint.keep=false", "trainer.max_steps=1"]
    with file_size_limit(size):
        assert cli.run(arguments(base, run_dir, *more, "trainer.val_check_interval=null")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"nas-llm: error: {named.format(run_dir)} (File too large)" in error
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.iterdir() if size == 0 else (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("content", ["truncated", "empty", "foreign"])
def test_a_damaged_checkpoint_is_one_line(finished, tmp_path, capsys, content):
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    if content == "foreign":
        torch.save(load_file(run_dir / "supernet" / "model.safetensors"), checkpoint)
    else:
        checkpoint.write_bytes(checkpoint.read_bytes()[: 5000 if content == "truncated" else 0])
    assert cli.run(["train", f"run_dir={run_dir}", "ckpt_path=last"]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert f"error: ckpt_path={checkpoint} is not a whole checkpoint" in error
    assert cli.run(["search", f"run_dir={run_dir}"]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert f"error: {checkpoint} is damaged" in error
    assert cli.run(["export", f"run_dir={run_dir}", "architecture=middle", f"export.path={tmp_path / 'out'}"]) == 0


def test_without_a_search_the_super_network_is_saved(base, tmp_path, capsys):
    run_dir = tmp_path / "run"
    settings = ["search=none", "sampler=standard", "distillation=none", "trainer.max_steps=1"]
    command = [a for a in arguments(base, run_dir, "trainer.val_check_interval=null", *settings) if "search." not in a]
    assert cli.run(command) == 0
    assert (run_dir / "supernet" / "model.safetensors").exists()
    assert "nas-llm export" in capsys.readouterr().out.strip().splitlines()[-1]  # it was trained as a whole


def test_a_front_of_the_full_network_alone_exports_nothing_and_says_so(base, tmp_path, capsys):
    run_dir = tmp_path / "run"
    settings = ["search_space.min_fraction=1.0", "trainer.max_steps=1", "trainer.val_check_interval=null"]
    assert cli.run(arguments(base, run_dir, *settings)) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[lines.index("exported:") + 1] == "  nothing: the full network is alone on the front"
    assert not (run_dir / "subnets").exists()
    assert "The exported networks" not in (run_dir / "report.html").read_text()
    assert cli.run(["evaluate", f"run_dir={run_dir}"]) == 0


@pytest.mark.parametrize("progress", [True, False])
def test_bars_are_shown_where_they_are_wanted(finished, tmp_path, capfd, progress):
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("archive.jsonl", "search.json"):
        (run_dir / name).unlink()
    quiet = f"trainer.enable_progress_bar={str(progress).lower()}"
    for stage in ("train ckpt_path=last", "search search.evaluations=14 search.population=6"):
        name, *settings = stage.split()
        capfd.readouterr()
        assert cli.run([name, f"run_dir={run_dir}", quiet, *settings]) == 0
        shown = capfd.readouterr()
        assert ("search: " in shown.err and "truncation: " in shown.err) == progress, stage
        assert (shown.err.strip() == "") == (not progress), shown.err
        assert "Pareto front:" in shown.out


def test_two_processes_from_the_command_line_equal_one(finished, base, tmp_path):
    run_dir = tmp_path / "run"
    command = arguments(base, run_dir, "trainer=ddp", "trainer.devices=2")
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "nas_llm", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, value in weights(finished).items():
        torch.testing.assert_close(weights(run_dir)[name], value, rtol=0, atol=1e-5)
    assert len(list((run_dir / "subnets").iterdir())) == 3


@pytest.mark.parametrize("by", ["magnitude", "loss", "importance"])
def test_a_calibrated_grid_is_made_once_and_kept_by_a_resumed_run(by, base, tmp_path, capsys):
    grid = ["sampler=calibrated", "sampler.candidates.bins=4", "sampler.candidates.candidates_per_bin=3"]
    grid += [f"sampler.candidates.by={by}", "scheduler.steps=6"]  # as many, wherever the first part ends
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.run(arguments(base, whole, *grid)) == 0
    recorded = read_json(whole / "sampling_grid.json")
    assert len(recorded["architectures"]) == len(recorded["parameters"]) == 4
    assert sorted(recorded["parameters"]) == recorded["parameters"]
    assert cli.run(arguments(base, parts, *grid, "trainer.max_steps=4")) == 0
    made = (parts / "sampling_grid.json").read_bytes()
    assert cli.run(arguments(base, parts, *grid, "ckpt_path=last")) == 0
    assert (parts / "sampling_grid.json").read_bytes() == made
    for name, value in weights(whole).items():
        assert torch.equal(weights(parts)[name], value), name
    capsys.readouterr()
    other = arguments(base, parts, *grid, "ckpt_path=last", "sampler.candidates.bins=5")
    assert cli.run(other) == 2
    assert "sampler.candidates" in capsys.readouterr().err


def test_a_grid_by_importance_needs_importance(base, tmp_path, capsys):
    settings = ["sampler=calibrated", "sampler.candidates.by=importance", "importance=none"]
    assert cli.run(arguments(base, tmp_path / "run", *settings)) == 2
    assert "set importance=activation" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.batch_size=100000 data.calibration_size=0 importance=magnitude", "data.batch_size=100000"),
        ("data.validation_size=0", "set data.validation_size above 0"),
        ("search.evaluations=0 search.population=null", "search.evaluations=0"),
        ("search.population=0", "search.population=0"),
        ("optimizer.lr=-1", "optimizer.lr=-1: Invalid learning rate"),
        ("trainer.max_steps=0", "trainer.max_steps=0: allowed is 1 or more"),
        ("trainer.max_steps=-5", "trainer.max_steps=-5: allowed is 1 or more"),
        ("+trainer.gradient_clip_val=0.5", "set training.gradient_clip_val=0.5 instead"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0 leaves nothing to measure"),
        ("logger.save_dir=/proc/no/where", "logger.save_dir=/proc/no/where cannot be made"),
    ],
)
def test_amounts_that_leave_nothing_to_do_leave_no_run_behind(base, tmp_path, capsys, override, says):
    assert cli.run(arguments(base, tmp_path / "run", *override.split())) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert says in error[0]
    assert not (tmp_path / "run").exists()
