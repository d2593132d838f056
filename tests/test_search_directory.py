import json

import pytest
from search_fixtures import DIRECTIONS, Sizes, joint_space, measure

from nas_llm.architecture import Architecture
from nas_llm.metrics import read_metrics
from nas_llm.search import NSGA2, REFERENCE, TRUNCATION, Archive, first_layers, pareto_front, search_run_directory
from nas_llm.search_space import SearchSpace

UNITS = {"params": "parameters", "loss": "nats/token", "latency": "ms", "macs": "MACs"}


def evaluate(architecture, known):
    return {**measure(architecture), "macs": 5.0}


def run(run_dir, space, evaluate=evaluate, **kwargs):
    directions = kwargs.pop("directions", DIRECTIONS)
    search = NSGA2(space, directions, evaluations=24, population=8)
    units = {name: UNITS[name] for name in ("params", *directions)}
    settings = {"units": units, "full": Sizes().largest(), "split": "validation", "samples": 12, "step": 3}
    return search_run_directory(run_dir, search, evaluate, progress=False, **{**settings, **kwargs})


def untrained():
    def truncated(architecture, known):
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
    def never(architecture, known):
        pytest.fail("measured again")

    first = run(tmp_path, joint_space(), untrained=untrained)
    size = (tmp_path / "archive.jsonl").stat().st_size
    second = run(tmp_path, joint_space(), never, untrained=lambda: never)
    assert second.front == first.front
    assert second.truncation == first.truncation
    assert (tmp_path / "archive.jsonl").stat().st_size == size
    assert second.result.from_archive == 24


def test_times_of_a_repeated_search_stay_those_of_all_its_evaluations(tmp_path):
    run(tmp_path, joint_space())
    first = json.loads((tmp_path / "search.json").read_text())
    run(tmp_path, joint_space())
    again = json.loads((tmp_path / "search.json").read_text())
    assert again["evaluation_seconds"] == pytest.approx(first["evaluation_seconds"], abs=1e-4)
    assert again["evaluation_seconds"] > 0
    assert (again["evaluations"], again["from_archive"]) == (24, 24)
    (overhead,) = [m for m in read_metrics(tmp_path) if m["name"] == "search_overhead"]
    assert (overhead["value"], overhead["samples"]) == (again["search_overhead"], 24)


def test_other_objectives_measure_what_is_missing_and_another_step_everything(tmp_path):
    measured = []

    def evaluate(architecture, known):
        measured.append((architecture, set(known)))
        return {name: value for name, value in values(architecture).items() if name not in known}

    def values(architecture):
        return {**measure(architecture), "latency": 1.0 + architecture.hidden / 8}

    wider = {**DIRECTIONS, "latency": "min"}
    run(tmp_path, joint_space(), directions=DIRECTIONS)
    known = {e.architecture for e in Archive(tmp_path / "archive.jsonl").evaluations}
    outcome = run(tmp_path, joint_space(), evaluate, directions=wider)
    assert all(names == (set(DIRECTIONS) | {"macs"} if a in known else set()) for a, names in measured)
    complete = [e for e in Archive(tmp_path / "archive.jsonl").at(3) if "latency" in e.objectives]
    assert {e.architecture for e in complete} == {a for a, _ in measured}
    assert list(outcome.front.evaluations) == pareto_front(complete, wider)
    size = len(measured)
    run(tmp_path, joint_space(), evaluate, directions=wider, step=4)
    assert all(names == set() for _, names in measured[size:])


def test_objectives_that_all_are_costs_have_no_truncation_baseline(tmp_path):
    run(tmp_path, joint_space(), directions={"params": "min", "macs": "min"}, untrained=lambda: pytest.fail("loaded"))
    assert {e.source for e in Archive(tmp_path / "archive.jsonl").evaluations} == {REFERENCE, "nsga2"}


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
