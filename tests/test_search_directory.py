import json

import pytest
from search_fixtures import DIRECTIONS, Sizes, joint_space, measure

from nas_llm.architecture import Architecture
from nas_llm.run_directory import read_metrics
from nas_llm.search import NSGA2, REFERENCE, TRUNCATION, Archive, first_layers, pareto_front, search_run_directory
from nas_llm.search_space import SearchSpace

UNITS = {"params": "parameters", "loss": "nats/token"}


def evaluate(architecture):
    return {**measure(architecture), "macs": 5.0}


def run(run_dir, space, evaluate=evaluate, **kwargs):
    search = NSGA2(space, DIRECTIONS, evaluations=24, population=8)
    settings = {"units": UNITS, "full": Sizes().largest(), "split": "validation", "samples": 12, "step": 3}
    return search_run_directory(run_dir, search, evaluate, progress=False, **{**settings, **kwargs})


def untrained():
    def truncated(architecture):
        values = measure(architecture)
        return {"params": values["params"], "loss": values["loss"] + 5}

    return truncated


def test_everything_a_report_needs_is_written(tmp_path):
    outcome = run(tmp_path, joint_space(), untrained=untrained)
    archive = Archive(tmp_path / "archive.jsonl")
    assert list(outcome.front.evaluations) == pareto_front(archive.at(3), DIRECTIONS)
    written = json.loads((tmp_path / "search.json").read_text())
    assert written["front"] == [e.id for e in outcome.front.evaluations]
    assert written["objectives"]["loss"] == {"unit": "nats/token", "direction": "min"}
    assert written["evaluations"] == 24
    assert written["full"] == Sizes().largest().id
    assert len(outcome.truncation) == len(outcome.front)
    metrics = read_metrics(tmp_path)
    losses = {m["architecture"]: m for m in metrics if m["name"] == "loss" and m.get("variant") is None}
    assert set(losses) == {written["full"], *written["front"]}
    assert losses[written["full"]]["samples"] == 12
    assert all(m["unit"] for m in metrics)
    assert not any(m["name"] == "macs" for m in metrics)  # measured, but no objective
    truncated = [m for m in metrics if m.get("variant") == TRUNCATION and m["name"] == "loss"]
    assert len(truncated) == len(outcome.front)
    assert outcome.front.pick(max_params=0.5).objectives["params"] <= 0.5 * outcome.front.full.objectives["params"]


def test_running_it_again_measures_nothing_and_gives_the_same(tmp_path):
    def never(architecture):
        pytest.fail("measured again")

    first = run(tmp_path, joint_space(), untrained=untrained)
    size = (tmp_path / "archive.jsonl").stat().st_size
    second = run(tmp_path, joint_space(), never, untrained=lambda: never)
    assert second.front == first.front
    assert second.truncation == first.truncation
    assert (tmp_path / "archive.jsonl").stat().st_size == size
    assert second.result.from_archive == 24


def test_a_full_network_outside_the_space_is_measured_as_a_reference(tmp_path):
    space = joint_space(hidden=[16, 32], steps=3)
    outcome = run(tmp_path, space)
    sources = {e.id: e.source for e in Archive(tmp_path / "archive.jsonl").evaluations}
    assert sources[outcome.front.full.id] == REFERENCE
    assert not outcome.truncation


def test_truncation_keeps_the_sizes_and_the_first_layers():
    space = SearchSpace.joint(Sizes(layers=4)).with_layer_order((3, 0, 2, 1))
    architecture = space.decode(space.encode(space.smallest()))
    assert [layer.index for layer in architecture.layers] == [3]
    truncated = first_layers(architecture)
    assert [layer.index for layer in truncated.layers] == [0]
    assert truncated == Architecture(architecture.hidden, truncated.layers)
    assert [layer.shape for layer in truncated.layers] == [layer.shape for layer in architecture.layers]
