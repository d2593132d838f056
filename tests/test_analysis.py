"""`nas-llm analyse`: sub-networks of the same sizes after sorting by every method, and what the run directory holds."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from test_train_stage import base  # noqa: F401  # a fixture
from transformers import AutoModelForCausalLM

from nas_llm import cli
from nas_llm.analysis.importance import ImportanceAnalysis, Summary, table
from nas_llm.architecture import Architecture
from nas_llm.metrics import read_metrics
from nas_llm.models.supernet import Supernet
from nas_llm.objectives import mean_token_loss
from nas_llm.search_space import SearchSpace


def arguments(base, run_dir, *more: str) -> list[str]:  # noqa: F811
    data = ["data=text", f"data.path={base / 'text.jsonl'}", "data.sequence_length=16", "data.calibration_size=4"]
    data += [f"data.cache_dir={base / 'cache'}", "data.batch_size=4", "data.validation_size=6", "data.test_size=2"]
    own = [f"model.path={base / 'model'}", "analysis.subnetworks=8", "search_space.steps=3", "trainer=cpu"]
    return ["analyse", "importance", f"run_dir={run_dir}", *data, *own, *more]


@pytest.fixture(scope="module")
def run_dir(base, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("analysis") / "run"
    assert cli.run(arguments(base, folder, "analysis.compare=null")) == 0
    return folder


@pytest.fixture(scope="module")
def rows(run_dir):
    with (run_dir / "importance.csv").open(newline="") as file:
        return list(csv.DictReader(file))


METHODS = ["none", "random", "magnitude", "activation", "taylor", "wanda", "block", "activation_block"]


def test_every_method_is_measured_on_the_same_sizes(run_dir, rows):
    assert list(dict.fromkeys(row["method"] for row in rows)) == METHODS
    by_method = {m: [r for r in rows if r["method"] == m] for m in METHODS}
    for own in by_method.values():
        assert [row["kind"] for row in own] == ["full"] + ["subnetwork"] * 8
        assert [row["params"] for row in own] == [row["params"] for row in by_method["none"]]
        assert [row["shape"] for row in own] == [row["shape"] for row in by_method["none"]]
        assert float(own[0]["loss"]) == pytest.approx(float(by_method["none"][0]["loss"]), rel=1e-5)  # sorted, the same
    losses = {m: [float(row["loss"]) for row in own[1:]] for m, own in by_method.items()}
    assert len({tuple(values) for values in losses.values()}) >= 7  # block may keep the order
    kept = {m: {row["kept_layers"] for row in own} for m, own in by_method.items()}
    assert kept["none"] <= {"0", "0 1", "0 1 2"}  # the first layers
    assert kept["activation_block"] == kept["block"]
    for name in ("importance.csv", "importance.png", "results.json", "provenance.json"):
        assert (run_dir / name).stat().st_size > 0


def test_unsorted_losses_are_those_of_the_cut_model(base, rows):  # noqa: F811
    """By an independent path: the sub-networks drawn once more, extracted from the plain model, measured alone."""
    supernet = Supernet(AutoModelForCausalLM.from_pretrained(base / "model"))
    space, rng = SearchSpace.joint(supernet, steps=3), np.random.default_rng(0)
    from nas_llm.data.text import TextData
    from nas_llm.models.tokenizer import load_tokenizer

    sizes = {"calibration_size": 4, "validation_size": 6, "test_size": 2, "batch_size": 4, "sequence_length": 16}
    data = TextData(load_tokenizer(base / "model"), str(base / "text.jsonl"), cache_dir=str(base / "cache"), **sizes)
    data.prepare_data()
    data.setup()
    batches = list(data.val_dataloader())
    unsorted = [row for row in rows if row["method"] == "none" and row["kind"] == "subnetwork"]
    for row in unsorted:
        architecture = space.sample(rng)
        assert isinstance(architecture, Architecture)
        assert row["id"] == architecture.id
        small = supernet.extract(architecture)
        assert int(row["params"]) == sum(p.numel() for p in small.parameters())
        assert float(row["loss"]) == pytest.approx(mean_token_loss(small, batches), rel=1e-5)


def test_medians_are_printed_and_recorded(run_dir, rows, base, tmp_path, capsys):  # noqa: F811
    metrics = {(m["variant"], m["name"]): m for m in read_metrics(run_dir)}
    for method in METHODS:
        losses = [float(r["loss"]) for r in rows if r["method"] == method and r["kind"] == "subnetwork"]
        metric = metrics[method, "loss of sub-networks, median"]
        assert metric["value"] == pytest.approx(np.median(losses))
        assert (metric["unit"], metric["split"], metric["samples"]) == ("nats/token", "validation", 6)
    assert cli.run(arguments(base, tmp_path / "run", "analysis.compare=[none,taylor]", "analysis.batches=1")) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert "8 random sub-networks, untrained, on 4 records of the validation split" in lines[0]
    assert [line.split()[0] for line in lines[2:4]] == ["none", "taylor"]
    assert str(tmp_path / "run" / "importance.png") in printed
    assert {m["variant"] for m in json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]} == {
        "none",
        "taylor",
    }


def test_statistics_of_a_method():
    rows = [
        {"method": "a", "kind": "subnetwork", "fraction": fraction, "loss": loss}
        for fraction, loss in ((0.2, 9.0), (0.3, 7.0), (0.45, 4.0), (0.9, 1.0))
    ] + [{"method": "a", "kind": "full", "fraction": 1.0, "loss": 0.5}]
    summary = Summary.of("a", rows)
    assert summary.statistics["median"] == 5.5
    assert summary.statistics["mean"] == 5.25
    assert summary.bands[0.25] == (8.0, 2)
    assert summary.bands[0.5] == (4.0, 1)
    assert math.isnan(summary.bands[0.75][0])
    head, row = table([summary]).splitlines()
    assert "75% of parameters (n=0)" in head
    assert row.split() == ["a", "5.500", "3.250", "to", "7.500", "5.250", "none", "4.000", "8.000"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("analysis.compare=[activaton]", "allowed are none, random, magnitude"),
        ("analysis.compare=[]", "analysis.compare=[]"),
        ("analysis.subnetworks=0", "analysis.subnetworks=0: allowed is 1 or more"),
        ("analysis.batches=0", "analysis.batches=0: allowed is 1 or more"),
        (
            "data.calibration_size=3",
            "data.calibration_size: the calibration split holds 3 records, less than one batch",
        ),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(base, tmp_path, capsys, override, says):  # noqa: F811
    assert cli.run(arguments(base, tmp_path / "run", override)) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_stage_names_what_it_needs(tmp_path, capsys):
    assert cli.run(["analyse", f"run_dir={tmp_path / 'run'}"]) == 2
    assert (
        "analysis is missing, which nas-llm analyse reads: choose analysis=, of importance" in capsys.readouterr().err
    )


def test_settings_can_be_made_without_yaml():
    analysis = ImportanceAnalysis({"none": None}, seed=3)
    assert analysis.compare is None
    with pytest.raises(ValueError, match=r"analysis\.seed=-1"):
        ImportanceAnalysis({"none": None}, seed=-1)
    assert torch.is_grad_enabled()
