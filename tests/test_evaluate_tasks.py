"""`nas-llm evaluate` with tasks of lm-eval: of a run's sub-networks, of saved models, and what may not be mixed."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from harness_fixtures import KINDS, tiny_llama, tiny_tasks  # noqa: F401  (fixtures)
from test_train_stage import arguments, base  # noqa: F401  (fixtures)
from transformers import PreTrainedModel

import nas_llm
from nas_llm import cli
from nas_llm.atomic_files import read_json
from nas_llm.evaluation.harness import Harness
from nas_llm.models.operator_assembly import assemble
from nas_llm.models.supernet import Supernet
from nas_llm.models.tokenizer import load_tokenizer
from nas_llm.operator_network import Identity, Linear, OperatorNetwork
from nas_llm.quantization.rtn import RoundToNearest
from nas_llm.sparsity.magnitude import Magnitude
from nas_llm.stages.finished_run import FinishedRun


@pytest.fixture(scope="module")
def run(base, tmp_path_factory) -> Path:  # noqa: F811
    run_dir = tmp_path_factory.mktemp("run") / "run"
    command = [a for a in arguments(base, run_dir, "search=none", "trainer.max_steps=1") if "search." not in a]
    assert cli.run([*command, "trainer.val_check_interval=null"]) == 0
    return run_dir


@pytest.fixture
def asked(tiny_tasks) -> list[str]:  # noqa: F811
    return ["harness=tasks", "harness.tasks=[tiny_choice,tiny_text]", f"harness.task_path={tiny_tasks}"]


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert cli.run(["evaluate", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_sub_networks_are_asked_as_they_are_active(run, asked, capsys, tiny_tasks):  # noqa: F811
    assert cli.run(["evaluate", f"run_dir={run}", *asked, "objectives=[none]"]) == 0
    printed = capsys.readouterr().out
    assert "largest" in printed
    finished = FinishedRun(run)
    middle = finished.space.middle()
    small = finished.supernet.extract(middle)
    alone = Harness(["tiny_choice", "tiny_text"], str(tiny_tasks))(small, finished.tokenizer)
    found = {
        (metric["data"], metric["name"]): metric
        for metric in read_json(run / "results.json")["metrics"]
        if metric.get("architecture") == middle.id and "num_fewshot" in metric
    }
    assert set(found) == {(metric.task, metric.name) for metric in alone.metrics}
    for metric in alone.metrics:
        kept = found[metric.task, metric.name]
        assert kept["value"] == pytest.approx(metric.value, rel=1e-5)
        assert kept["standard_error"] == pytest.approx(metric.standard_error, rel=1e-4)
        assert (kept["unit"], kept["samples"], kept["num_fewshot"]) == (metric.unit, metric.samples, 0)
    written = read_json(run / "harness" / f"{middle.id}.json")
    assert written["results"]["tiny_choice"]["acc,none"] == pytest.approx(found["tiny_choice", "acc"]["value"] / 100)
    assert written["nas_llm"]["architecture"] == middle.id
    assert cli.run(["report", f"run_dir={run}"]) == 0


def test_a_file_grows_by_tasks_and_not_by_other_settings(run, asked, capsys, tmp_path):
    place = Path(shutil.copytree(run, tmp_path / "run"))
    one = [f"run_dir={place}", "architecture=smallest", "objectives=[none]"]
    first, *path = asked[:1] + asked[2:]
    assert cli.run(["evaluate", *one, first, *path, "harness.tasks=[tiny_choice]"]) == 0
    assert cli.run(["evaluate", *one, first, *path, "harness.tasks=[tiny_text]"]) == 0
    file = place / "harness" / f"{FinishedRun(place).space.smallest().id}.json"
    assert set(read_json(file)["results"]) == {"tiny_choice", "tiny_text"}
    line = refused(capsys, *one, first, *path, "harness.tasks=[tiny_text]", "harness.limit=3")
    assert f"harness.limit=3 differs from null that {file} was measured with" in line
    again = ["harness.tasks=[tiny_text]", "harness.limit=3", "evaluate.replace=true"]
    assert cli.run(["evaluate", *one, first, *path, *again]) == 0
    assert set(read_json(file)["results"]) == {"tiny_text"}
    of_tasks = [metric for metric in read_json(place / "results.json")["metrics"] if "num_fewshot" in metric]
    smallest = [metric for metric in of_tasks if metric["architecture"] == file.stem]
    assert {metric["data"] for metric in smallest} == {"tiny_text"}
    assert {metric["samples"] for metric in smallest} == {3}


def test_a_saved_model_needs_no_run(run, asked, capsys, tmp_path, tiny_tasks):  # noqa: F811
    finished = FinishedRun(run)
    for name, architecture in (("small", finished.space.smallest()), ("other", finished.space.middle())):
        place = tmp_path / name / "model"
        nas_llm.save_pretrained(finished.supernet.extract(architecture), place, tokenizer=finished.tokenizer)
    saved, results = f"evaluate.model_path={tmp_path / 'small' / 'model'}", f"run_dir={tmp_path / 'results'}"
    assert cli.run(["evaluate", saved, results, *asked]) == 0
    small = nas_llm.from_pretrained(tmp_path / "small" / "model")
    alone = Harness(["tiny_choice", "tiny_text"], str(tiny_tasks))(small, load_tokenizer(tmp_path / "small" / "model"))
    metrics = read_json(tmp_path / "results" / "results.json")["metrics"]
    assert [metric["value"] for metric in metrics] == pytest.approx([metric.value for metric in alone.metrics])
    assert {metric["model"] for metric in metrics} == {"model"}
    other = f"evaluate.model_path={tmp_path / 'other' / 'model'}"
    assert "of another network called model" in refused(capsys, other, results, *asked)
    (tmp_path / "results" / "results.json").unlink()
    assert "holds results of another network" in refused(capsys, other, results, *asked)
    assert cli.run(["evaluate", other, results, *asked, "evaluate.name=other"]) == 0
    assert {m["model"] for m in read_json(tmp_path / "results" / "results.json")["metrics"]} == {"other"}


def test_figures_of_two_models_of_one_name_are_not_mixed(run, capsys, tmp_path):
    finished = FinishedRun(run)
    for name, architecture in (("small", finished.space.smallest()), ("other", finished.space.middle())):
        place = tmp_path / name / "model"
        nas_llm.save_pretrained(finished.supernet.extract(architecture), place, tokenizer=finished.tokenizer)
    small, other = (f"evaluate.model_path={tmp_path / name / 'model'}" for name in ("small", "other"))
    results = f"run_dir={tmp_path / 'results'}"
    (tmp_path / "text.txt").write_text("\n\n".join(f"a text of {i} words" for i in range(400)))
    by_text = ["text_perplexity=file", f"text_perplexity.path={tmp_path / 'text.txt'}", "text_perplexity.window=16"]
    by_text.append("text_perplexity.stride=8")
    sizes = ["objectives=[params]", "data=text", f"data.path={tmp_path / 'text.txt'}", "data.sequence_length=16"]
    sizes += ["data.validation_size=2", "data.test_size=2", "data.calibration_size=2"]
    for asked in (sizes, ["objectives=[none]", *by_text]):
        assert cli.run(["evaluate", small, results, *asked]) == 0
        before = read_json(tmp_path / "results" / "results.json")
        assert "of another network called model" in refused(capsys, other, results, *asked)
        assert read_json(tmp_path / "results" / "results.json") == before
    assert cli.run(["evaluate", other, results, *sizes, "evaluate.replace=true"]) == 0
    (metric,) = read_json(tmp_path / "results" / "results.json")["metrics"]
    assert metric["value"] == finished.supernet.num_parameters(finished.space.middle())


def test_a_saved_model_is_measured_on_the_data_of_a_run(run, capsys, tmp_path):
    finished = FinishedRun(run)
    nas_llm.save_pretrained(
        finished.supernet.extract(finished.space.largest()), tmp_path / "whole", tokenizer=finished.tokenizer
    )
    assert cli.run(["evaluate", f"run_dir={run}", "architecture=largest"]) == 0
    assert cli.run(["evaluate", f"run_dir={run}", f"evaluate.model_path={tmp_path / 'whole'}"]) == 0
    metrics = [m for m in read_json(run / "results.json")["metrics"] if m["name"] == "loss" and m["split"] == "test"]
    of_model = [m["value"] for m in metrics if m.get("model") == "whole"]
    largest = finished.space.largest().id
    assert of_model == pytest.approx([m["value"] for m in metrics if m.get("architecture") == largest], rel=1e-5)


def operators(supernet: Supernet) -> PreTrainedModel:
    replaced = OperatorNetwork.of({(0, "attention"): Identity(), (1, "mlp"): Linear()}, supernet.largest().num_layers)
    return assemble(supernet, replaced)


def quantised(supernet: Supernet) -> PreTrainedModel:
    RoundToNearest(bits=4, group_size=16)(supernet, [])
    return supernet.extract(supernet.largest())


def uneven(supernet: Supernet) -> PreTrainedModel:
    whole = supernet.largest()
    first, *others = whole.layers
    return supernet.extract(replace(whole, layers=(replace(first, kv_groups=1, ffn=16), *others)))


def sparse(supernet: Supernet) -> PreTrainedModel:
    Magnitude(sparsity=0.5)(supernet, [])
    return supernet.extract(supernet.largest())


@pytest.mark.parametrize("made", [operators, quantised, uneven, sparse])
def test_every_kind_of_saved_model_is_asked(made, tiny_llama, tiny_tokenizer, asked, tmp_path, tiny_tasks):  # noqa: F811
    model = made(Supernet(copy.deepcopy(tiny_llama))).eval()
    nas_llm.save_pretrained(model, tmp_path / "saved", tokenizer=tiny_tokenizer)
    tasks = [*KINDS, "tiny_shots"]
    more = [asked[0], f"harness.tasks=[{','.join(tasks)}]", asked[2], f"run_dir={tmp_path / 'results'}"]
    assert cli.run(["evaluate", f"evaluate.model_path={tmp_path / 'saved'}", *more]) == 0
    metrics = read_json(tmp_path / "results" / "results.json")["metrics"]
    alone = Harness(tasks, str(tiny_tasks))(model, tiny_tokenizer)
    assert [metric["value"] for metric in metrics] == pytest.approx([m.value for m in alone.metrics], rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.model_path=/no/such", "harness=tasks"], "evaluate.model_path=/no/such: neither a local directory"),
        (["evaluate.name=x"], "evaluate.name=x cannot take effect without evaluate.model_path"),
        (["evaluate.model_path=x", "architecture=largest"], "architecture=largest cannot take effect with evaluate"),
        (["evaluate.replace=true"], "evaluate.replace=true cannot take effect without tasks"),
        (["objectives=[none]"], "there is nothing to measure"),
        (["harness.limit=3"], "harness.limit=3 cannot take effect: the chosen harness has no settings"),
        (
            ["evaluate.model_path=microworld_llama", "harness=tasks", "evaluate.name=a/b"],
            "evaluate.name=a/b is no name",
        ),
    ],
)
def test_what_cannot_take_effect_is_refused(run, asked, capsys, overrides, message):
    more = asked[1:] if "harness=tasks" in overrides else []
    assert message in refused(capsys, f"run_dir={run}", *overrides, *more)


def test_what_the_search_chose_by_does_not_measure(base, asked, capsys, tmp_path, tiny_tasks):  # noqa: F811
    path = f"objectives.task_accuracy.task_path={tiny_tasks}"
    searched = ["objectives=[params,task_accuracy]", "objectives.task_accuracy.tasks=[tiny_choice]", path]
    limit = "objectives.task_accuracy.limit=4"
    train = arguments(base, tmp_path / "run", *searched, limit, "search.evaluations=4", "trainer.max_steps=1")
    assert cli.run([*train, "trainer.val_check_interval=null"]) == 0
    one = [f"run_dir={tmp_path / 'run'}", "architecture=largest"]
    line = refused(capsys, *one, *asked)
    assert "4 of the 9 documents of tiny_choice are among those that the search chose by" in line
    assert "harness.offset=4" in line
    assert "objectives.task_accuracy.limit=4" in refused(capsys, *one, "objectives.task_accuracy.limit=2")
    assert cli.run(["evaluate", *one, *asked, "harness.offset=4"]) == 0
    metrics = [m for m in read_json(tmp_path / "run" / "results.json")["metrics"] if m.get("data") == "tiny_choice"]
    of_objective = [m for m in metrics if m["name"] == "task_accuracy"]
    of_harness = [m for m in metrics if m["name"] == "acc"]
    assert of_objective[0]["value"] == pytest.approx(of_harness[0]["value"])
    assert of_objective[0]["samples"] == of_harness[0]["samples"] == 5
