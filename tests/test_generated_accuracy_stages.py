"""Searching and evaluating a tiny run by accuracy by generation: metrics, texts, and what must not be measured on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_train_stage import base  # noqa: F401  (a fixture)

from nas_llm import cli
from nas_llm.atomic_files import read_json
from nas_llm.search import Archive

GROUP = "objectives.generated_accuracy"


def write(path: Path, numbers: range) -> Path:
    answers = [("true", "false")[number % 2] for number in numbers]
    records = [
        {"instruction": f"{n}?", "output": f"the correct answer is {answer}", "answer": answer}
        for n, answer in zip(numbers, answers, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write(folder / "boolq" / "train.json", range(30))
    write(folder / "boolq" / "test.json", range(29, 36))  # one question is in both
    write(folder / "other" / "boolq.json", range(60, 63))
    return folder


@pytest.fixture(scope="module")
def searched(base, tasks, tmp_path_factory) -> Path:  # noqa: F811
    """A run that was trained on instructions and searched by the answers to its validation file."""
    config = json.loads((base / "model" / "config.json").read_text())
    model = Path(shutil.copytree(base / "model", tmp_path_factory.mktemp("model") / "model"))
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 160}))
    run_dir = tmp_path_factory.mktemp("searched") / "run"
    data = ["data=commonsense", f"data.path={tasks / 'boolq' / 'train.json'}", "data.sequence_length=128"]
    data += [f"data.cache_dir={run_dir.parent / 'cache'}", "data.validation_size=4", "data.test_size=4"]
    data += ["data.calibration_size=4", "data.batch_size=4"]
    search = ["search_space.steps=4", "search.evaluations=6", "search.population=4", "importance=magnitude"]
    trainer = ["trainer.accelerator=cpu", "trainer.max_steps=1", "trainer.val_check_interval=1", "logger=none"]
    asks = [f"{GROUP}.validation_path={tasks}", f"{GROUP}.validation_limit=3", f"{GROUP}.max_new_tokens=4"]
    given = [*data, *search, *trainer, "objectives=[params,generated_accuracy]", *asks]
    assert cli.run(["train", f"run_dir={run_dir}", f"model.path={model}", *given]) == 0
    return run_dir


def test_a_search_is_by_the_answers(searched):
    measured = Archive(searched / "archive.jsonl").evaluations
    right = [evaluation.objectives["generated_accuracy"] * 3 / 100 for evaluation in measured]  # of three questions
    assert right
    assert all(0 <= number <= 3 and number == pytest.approx(round(number)) for number in right)
    assert read_json(searched / "search.json")["objectives"]["generated_accuracy"]["direction"] == "max"


def test_evaluate_says_samples_and_errors_of_each_task_and_writes_the_texts(searched, tasks, capsys):
    given = [f"{GROUP}.test_path={tasks / 'other' / 'boolq.json'}", "architecture=largest", "evaluate.texts=true"]
    assert cli.run(["evaluate", f"run_dir={searched}", *given]) == 0
    assert "boolq (n=3)" in capsys.readouterr().out
    metrics = [m for m in read_json(searched / "results.json")["metrics"] if m.get("split") == "test"]
    found = {m.get("data"): m for m in metrics if m["name"] == "generated_accuracy"}
    assert set(found) == {None, "boolq"}
    for metric in found.values():
        share = metric["value"] / 100
        assert (metric["unit"], metric["samples"]) == ("%", 3)
        assert metric["standard_error"] == pytest.approx(100 * (share * (1 - share) / 2) ** 0.5)
    (texts,) = (searched / "texts").glob("*.jsonl")
    lines = [json.loads(line) for line in texts.read_text().splitlines()]
    assert [line["answer"] for line in lines] == ["true", "false", "true"]
    assert 100 * sum(line["right"] for line in lines) / 3 == pytest.approx(found[None]["value"])
    assert {"task", "prompt", "text", "read"} < lines[0].keys()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([f"{GROUP}.test_path={{tasks}}/boolq/train.json"], "train.json is a test file too"),
        (
            [f"{GROUP}.validation_path=null", f"{GROUP}.test_path={{tasks}}/boolq/train.json"],
            "3 of 30 questions are among",
        ),
        ([f"{GROUP}.test_path={{tasks}}/nothing"], "no such file or folder"),
        (["objectives=[loss]", "evaluate.texts=true"], "evaluate.texts=true cannot take effect"),
        (["evaluate.texts=yess"], "evaluate.texts=yess is not allowed: it must be true or false"),
    ],
)
def test_what_chose_the_networks_does_not_measure_them(searched, tasks, tmp_path, capsys, given, says):
    run_dir = Path(shutil.copytree(searched, tmp_path / "run"))
    before = (run_dir / "results.json").read_bytes()
    given = [override.format(tasks=tasks) for override in given]
    assert cli.run(["evaluate", f"run_dir={run_dir}", "architecture=largest", *given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line
    assert (run_dir / "results.json").read_bytes() == before
