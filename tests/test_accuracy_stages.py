"""Searching and evaluating a run by multiple choice: items of the search are not those of the test, and are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas_llm import cli
from nas_llm.atomic_files import read_json
from nas_llm.data.microworld import multiple_choice_sets
from nas_llm.evaluation.multiple_choice import accuracies
from nas_llm.stages.finished_run import FinishedRun

KEY = "objectives.accuracy"
TRAIN = "trainer=cpu trainer.max_steps=1 importance=none search_space=depth_only search.evaluations=4"
DATA = "data.train_size=24 data.validation_size=12 data.test_size=6 data.calibration_size=6 trainer.limit_val_batches=1"


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("searched") / "run"
    given = [*TRAIN.split(), *DATA.split(), "objectives=[params,accuracy]", f"{KEY}.sets.items_per_set=1"]
    assert cli.run(["train", f"run_dir={run_dir}", *given]) == 0
    return run_dir


def found(run_dir: Path, split: str) -> list[dict]:
    metrics = read_json(run_dir / "results.json")["metrics"]
    return [metric for metric in metrics if metric["name"] == "accuracy" and metric.get("split") == split]


def test_the_test_is_on_other_items_and_both_are_counted(searched):
    assert {metric["samples"] for metric in found(searched, "validation")} == {8}
    assert cli.run(["evaluate", f"run_dir={searched}", "architecture=largest", f"{KEY}.test_sets.items_per_set=2"]) == 0
    (metric,) = found(searched, "test")
    assert metric["samples"] == 16
    run = FinishedRun(searched)
    expected = accuracies(run.supernet.model, run.tokenizer, multiple_choice_sets(2, 2))
    assert metric["value"] == pytest.approx(100 * sum(of.summed for of in expected.values()) / len(expected))


def test_objectives_chosen_again_keep_the_settings_of_the_search(searched):
    asked = ["architecture=smallest", "objectives=[accuracy]", f"{KEY}.test_sets.items_per_set=2"]
    assert cli.run(["evaluate", f"run_dir={searched}", *asked]) == 0
    assert {metric["samples"] for metric in found(searched, "test")} == {16}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (f"{KEY}.test_sets.seed=1", f"{KEY}.test_sets: 8 of its 400 items are among those of {KEY}.sets"),
        (f"{KEY}.sets.seed=3", f"{KEY}.sets cannot take effect"),
    ],
)
def test_items_that_chose_the_networks_do_not_measure_them(searched, capsys, given, says):
    before = found(searched, "test")
    assert cli.run(["evaluate", f"run_dir={searched}", "architecture=largest", given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line
    assert found(searched, "test") == before
