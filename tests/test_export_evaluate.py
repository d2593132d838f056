"""`nas-llm export` and `nas-llm evaluate` on a run that the train stage has finished."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_stage import arguments, base, finished  # noqa: F401  (fixtures)

import nas_llm
from nas_llm import cli
from nas_llm.atomic_files import read_json
from nas_llm.search import Archive
from nas_llm.stages.finished_run import FinishedRun


def export(run_dir: Path, *overrides: str) -> int:
    return cli.run(["export", f"run_dir={run_dir}", *overrides])


def parameters(path: Path) -> int:
    return sum(p.numel() for p in nas_llm.from_pretrained(path).parameters())


def test_exports_of_a_sweep_into_one_place_are_refused(finished, tmp_path, capsys):  # noqa: F811
    place = f"export.path={tmp_path / 'one'}"
    assert cli.run(["export", "-m", f"run_dir={finished}", "architecture=largest,middle", place]) == 2
    assert f"{place} is one place for all jobs" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("name", ["largest", "smallest", "middle"])
def test_export_by_name(finished, tmp_path, monkeypatch, name):  # noqa: F811
    assert export(finished, f"architecture={name}", f"export.path={tmp_path / 'out'}") == 0
    run = FinishedRun(finished)
    architecture = getattr(run.space, name)()
    small = nas_llm.from_pretrained(tmp_path / "out")
    ids = torch.arange(1, 13).view(1, 12)
    with torch.no_grad(), run.supernet.activate(architecture) as model:
        assert torch.allclose(small(ids).logits, model(ids).logits, atol=1e-5)
    assert architecture.id in (tmp_path / "out" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)  # "from the folder that holds this directory"
    namespace: dict[str, Any] = {}
    exec(snippet, namespace)
    with torch.no_grad():
        assert torch.equal(namespace["model"](ids).logits, small(ids).logits)


def test_export_by_id_and_by_budget(finished, tmp_path, capsys):  # noqa: F811
    run = FinishedRun(finished)
    chosen = run.front.evaluations[0]
    assert export(finished, f"architecture={chosen.id[:8]}", f"export.path={tmp_path / 'by_id'}") == 0
    assert parameters(tmp_path / "by_id") == chosen.objectives["params"]
    assert export(finished, "max_params=0.5", f"export.path={tmp_path / 'half'}") == 0
    half = 0.5 * run.supernet.num_parameters(run.supernet.largest())
    assert parameters(tmp_path / "half") <= half
    best = min(e.objectives["loss"] for e in run.front.evaluations if e.objectives["params"] <= half)
    assert run.front.pick(max_params=0.5).objectives["loss"] == best
    assert "replaced" not in capsys.readouterr().out
    assert export(finished, "architecture=largest", f"export.path={tmp_path / 'half'}") == 0
    replaced = run.front.pick(max_params=0.5).architecture.id
    assert capsys.readouterr().out.endswith(f"\nreplaced sub-network {replaced}, which was there\n")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "error: no sub-network was chosen: give one, of architecture="),
        (["architecture=middle", "max_params=0.5"], "error: architecture=middle or max_params=0.5: give one, not both"),
        (["architecture=ffffffffffff"], "no such ids"),
        (["max_params=1e-6"], "smallest"),
        (["max_latency_ms=5"], "latency"),
    ],
)
def test_bad_choices_are_one_line(finished, tmp_path, capsys, overrides, message):  # noqa: F811
    assert export(finished, *overrides, f"export.path={tmp_path / 'out'}") == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_export_does_not_overwrite_other_things(finished, tmp_path, capsys):  # noqa: F811
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert export(finished, "architecture=middle", f"export.path={tmp_path / 'mine'}") == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert "holds no model" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 1000, 100_000])  # the lock, the record of the stage, the weights
def test_a_full_disk_is_one_line_and_leaves_nothing(finished, tmp_path, capsys, file_size_limit, size):  # noqa: F811
    run_dir, out = Path(shutil.copytree(finished, tmp_path / "run")), tmp_path / "out"
    with file_size_limit(size):
        assert export(run_dir, "architecture=largest", f"export.path={out}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    named = f"{out} could not be written (File too large): mend that, or choose another place with export.path="
    assert (named if size == 100_000 else str(run_dir)) in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not list(run_dir.rglob("*.tmp"))


@pytest.mark.parametrize("stage", ["search", "evaluate", "export"])
@pytest.mark.parametrize(
    ("name", "kept", "named"),
    [
        ("supernet/model.safetensors", 0.5, "supernet: a weights file is damaged"),
        ("supernet/axes_order.safetensors", 0, "supernet/axes_order.safetensors is damaged"),
        ("results.json", 0.5, "results.json is not JSON, line "),
    ],
)
def test_a_truncated_file_of_the_run_is_one_line(finished, tmp_path, capsys, stage, name, kept, named):  # noqa: F811
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    content = (run_dir / name).read_bytes()
    more = ["max_params=0.5", f"export.path={tmp_path / 'out'}"] if stage == "export" else []
    (run_dir / name).write_bytes(content[: int(kept * len(content))])
    assert cli.run([stage, f"run_dir={run_dir}", *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("nas-llm: error: ")
    assert f"{run_dir}/{named}" in error
    assert not (tmp_path / "out").exists()


def test_an_archive_that_lost_the_front_is_named(finished, tmp_path, capsys):  # noqa: F811
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    (run_dir / "archive.jsonl").write_text("")
    assert export(run_dir, "max_params=0.5", f"export.path={tmp_path / 'out'}") == 2
    assert f"{run_dir / 'archive.jsonl'} lacks " in capsys.readouterr().err


def test_evaluate_measures_the_test_split(finished, capsys):  # noqa: F811
    assert cli.run(["evaluate", f"run_dir={finished}"]) == 0
    printed = capsys.readouterr().out
    assert "largest" in printed
    assert "smallest" in printed
    metrics = [m for m in read_json(finished / "results.json")["metrics"] if m.get("split") == "test"]
    exported = {path.name for path in (finished / "subnets").iterdir()}
    assert exported <= {metric["architecture"] for metric in metrics}
    assert {metric["name"] for metric in metrics} >= {"params", "loss"}
    assert all(metric["samples"] == 2 and metric["unit"] for metric in metrics)


@pytest.fixture(scope="module")
def unsearched(base, tmp_path_factory):  # noqa: F811
    run_dir = tmp_path_factory.mktemp("unsearched") / "run"
    command = [a for a in arguments(base, run_dir, "search=none", "trainer.max_steps=1") if "search." not in a]
    assert cli.run([*command, "trainer.val_check_interval=null"]) == 0
    return run_dir


def test_evaluate_without_a_search_measures_the_three_networks_that_have_a_name(unsearched, capsys):
    run = FinishedRun(unsearched)
    assert cli.run(["evaluate", f"run_dir={unsearched}", "architecture=middle"]) == 0
    assert cli.run(["evaluate", f"run_dir={unsearched}"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-6:-2]] == [
        *("network", "largest", "middle", "smallest"),
    ]
    metrics = [m for m in read_json(unsearched / "results.json")["metrics"] if m["name"] == "loss"]
    named = {architecture.id for architecture in (run.space.largest(), run.space.middle(), run.space.smallest())}
    assert {metric["architecture"] for metric in metrics} == named
    assert cli.run(["report", f"run_dir={unsearched}"]) == 0
    assert all(id in (unsearched / "report.html").read_text() for id in named)


@pytest.mark.parametrize("stage", ["evaluate", "export"])
@pytest.mark.parametrize("asked", ["architecture=0123456789ab", "max_params=0.5"])
def test_what_only_a_search_knows_names_it_and_the_networks_that_need_none(unsearched, capsys, stage, asked):
    assert cli.run([stage, f"run_dir={unsearched}", asked]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"make it: nas-llm search run_dir={unsearched} search=nsga2" in line
    assert "architecture=largest|smallest|middle" in line


@pytest.mark.parametrize("stage", ["evaluate", "search"])
@pytest.mark.parametrize(
    ("override", "says"),
    [("seed=1", "error: seed=1 differs from seed=0"), ("data.sequence_length=80", "error: data.sequence_length=80")],
)
def test_data_that_are_not_the_runs_are_refused(finished, tmp_path, capsys, stage, override, says):  # noqa: F811
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    before = (run_dir / "results.json").read_bytes()
    assert cli.run([stage, f"run_dir={run_dir}", override]) == 2
    assert says in capsys.readouterr().err
    assert (run_dir / "results.json").read_bytes() == before


def test_an_unfinished_run_is_named(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert export(tmp_path / "run", "architecture=middle") == 2
    assert "nas-llm train" in capsys.readouterr().err


def test_an_export_loads_with_the_stock_class_in_a_fresh_process(finished, tmp_path):  # noqa: F811
    assert export(finished, "architecture=largest", f"export.path={tmp_path / 'out'}") == 0
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "print(len(model.generate(**tokenizer('The red', return_tensors='pt'), max_new_tokens=4)[0]))\n"
        "assert not any(name.startswith('nas_llm') for name in sys.modules)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_front_is_of_the_step_that_the_search_was_at(finished, tmp_path):  # noqa: F811
    """A later search, of the network trained further, was killed: its values are not the front's."""
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    front = FinishedRun(run_dir).front
    archive = Archive(run_dir / "archive.jsonl")
    for evaluation in front.evaluations[:2]:
        archive.append(replace(evaluation, step=7, objectives={"params": 1.0, "loss": 0.0}))
    assert FinishedRun(run_dir).front == front


def test_evaluate_measures_a_text_under_every_network(finished, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "mine.txt"
    file.write_text("the cat sat on the mat and looked at the moon . " * 8)
    given = ["evaluate", f"run_dir={finished}", "objectives=[params]", "text_perplexity=file"]
    given.append(f"text_perplexity.path={file}")
    assert cli.run([*given, "text_perplexity.window=4096"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("set text_perplexity.window=64 text_perplexity.stride=64")
    assert cli.run([*given, "text_perplexity.window=8", "text_perplexity.stride=4"]) == 0
    assert re.search("network +token perplexity +word perplexity +bits per byte\nlargest ", capsys.readouterr().out)
    metrics = read_json(finished / "results.json")["metrics"]
    found = [m for m in metrics if m.get("data") == str(file) and m["variant"].startswith("window 8, stride 4")]
    names = {"token_perplexity", "word_perplexity", "bits_per_byte"}
    assert {m["name"] for m in found} == names
    assert len(found) == len({(m["name"], m["architecture"]) for m in found}) > 2 * len(names)
    assert all(m["unit"] and m["samples"] > 0 and m["words"] == 96 for m in found)


def test_the_latency_of_sub_networks_is_measured_side_by_side(finished, tmp_path, capsys):  # noqa: F811
    sizes = ["bench.sequence_length=8", "bench.measures=[prefill]", "bench.rounds=2", "bench.memory=false"]
    given = [f"bench.run_dir={finished}", "bench.architectures=[largest,smallest]", *sizes]
    assert cli.run(["bench", "latency", f"run_dir={tmp_path / 'run'}", *given]) == 0
    space = FinishedRun(finished).space
    metrics = read_json(tmp_path / "run" / "results.json")["metrics"]
    assert [m["architecture"] for m in metrics] == [space.largest().id, space.smallest().id]
    assert f"largest ({space.largest().id})" in capsys.readouterr().out
    assert cli.run(["bench", "latency", f"run_dir={tmp_path / 'run'}", *given, "bench.architectures=[ffff]"]) == 2
    assert "no such ids in the archive" in capsys.readouterr().err
