"""`nas-llm analyse sampling`: samplers draw from the sorted network, and the sandwich's ends stand apart."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import test_analysis
from PIL import Image
from test_train_stage import base  # noqa: F401  # a fixture
from transformers import AutoModelForCausalLM

from nas_llm import cli
from nas_llm.importance.magnitude import Magnitude as ByMagnitude
from nas_llm.importance.retained import Retained
from nas_llm.models.supernet import Supernet
from nas_llm.reporting.sampling_plot import COLUMNS, plot_sampling
from nas_llm.samplers import Calibrated, Scoring
from nas_llm.search_space import SearchSpace

CANDIDATES = "analysis.samplers.calibrated.candidates"


def analysed(base, run_dir: Path, *more: str) -> int:  # noqa: F811
    _, _, named, *given = test_analysis.arguments(base, run_dir)
    given = [line for line in given if not line.startswith("analysis.")]
    small = ["analysis.steps=20", f"{CANDIDATES}.bins=4", f"{CANDIDATES}.candidates_per_bin=5"]
    return cli.run(["analyse", "sampling", named, *given, *small, *more])


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "sampling.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_calibrated_by_importance_draws_from_the_grid_of_the_sorted_network(base, tmp_path):  # noqa: F811
    assert analysed(base, tmp_path / "run", f"{CANDIDATES}.by=importance", "importance=magnitude") == 0
    supernet = Supernet(AutoModelForCausalLM.from_pretrained(base / "model"))
    scores = ByMagnitude()(supernet)
    supernet.sort(scores)
    space = SearchSpace.joint(supernet, steps=3)
    retained = Retained.of(scores, supernet.largest())
    scoring = Scoring(space, supernet.num_parameters, {"importance": lambda: retained})
    grid = Calibrated(4, 5, "importance").prepared(scoring)
    found = rows(tmp_path / "run")
    drawn = {row["id"] for row in found if row["sampler"] == "calibrated" and row["kind"] == "sampled"}
    assert drawn == {architecture.id for architecture in grid.architectures}
    ends = {(row["kind"], row["id"]) for row in found if row["kind"] != "sampled"}
    assert ends == {("largest", space.largest().id), ("smallest", space.smallest().id)}
    standard = [row for row in found if row["sampler"] == "standard"]
    assert {(row["kind"], row["id"]) for row in standard} == {("sampled", space.largest().id)}


def test_importance_scores_of_an_unsorted_network_are_refused(base, tmp_path, capsys):  # noqa: F811
    assert analysed(base, tmp_path / "run", f"{CANDIDATES}.by=importance", "importance=none") == 2
    error = capsys.readouterr().err
    assert f"{CANDIDATES}.by=importance needs the scores" in error
    assert "set importance=activation" in error
    assert analysed(base, tmp_path / "run", "importance=none") == 0


@pytest.mark.parametrize("ends", [True, False])
def test_histograms_are_of_what_was_sampled(tmp_path, monkeypatch, ends):
    """A flat sampler inside a sandwich is drawn flat, whatever the share of the ends."""
    from matplotlib.axes import Axes

    heights: list[np.ndarray] = []
    drawn = Axes.bar
    monkeypatch.setattr(
        Axes, "bar", lambda self, x, height, *a, **k: heights.append(height) or drawn(self, x, height, *a, **k)
    )
    sizes = np.linspace(100, 2200, 22).astype(int)
    found = [("flat", step, "sampled", "a", size) for step, size in enumerate(sizes)]
    found += [
        ("flat", step, kind, "b", n) for step in range(22) for kind, n in (("largest", 2200), ("smallest", 100))
    ] * ends
    found += [("standard", 0, "sampled", "c", 2200)]
    with (tmp_path / "sampling.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *found])
    picture = plot_sampling(tmp_path / "sampling.csv", smallest=100, largest=2200)
    assert Image.open(picture).size[0] > 1000
    np.testing.assert_allclose(heights[0], 1 / 22)
    assert heights[1].max() == 1
