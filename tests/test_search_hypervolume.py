"""The hypervolume as evaluations come, against inclusion by counting; starting points; what a run directory keeps."""

import itertools
import json
import math

import numpy as np
import pytest
from search_fixtures import DIRECTIONS, Sizes, count, joint_space, measure

from nas_llm.metrics import read_metrics
from nas_llm.search import (
    NSGA2,
    REFERENCE,
    Archive,
    Box,
    DepthOnly,
    Evaluation,
    HillClimbing,
    HypervolumeCurve,
    ImportanceOrder,
    LocalSearch,
    RandomSearch,
    search_run_directory,
)
from nas_llm.search_space import SearchSpace

UNITS = {"params": "parameters", "loss": "nats/token"}
ANY = joint_space().largest()


def point(**objectives):
    return Evaluation(ANY, objectives)


def cells(points, objectives, n):
    """Hypervolume of points on a grid of n steps per axis, by counting the cells that one of them dominates."""
    corners = itertools.product(range(n), repeat=objectives)
    return (
        sum(any(all(p <= c for p, c in zip(row, cell, strict=True)) for row in points) for cell in corners)
        / n**objectives
    )


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_it_is_the_volume_by_counting_after_every_evaluation(objectives):
    names = [f"o{i}" for i in range(objectives)]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        curve = HypervolumeCurve(Box(dict.fromkeys(names, 0.0), dict.fromkeys(names, 1.0)))
        points = []
        for _ in range(40):
            points.append(rng.integers(0, 12, size=objectives).tolist())  # some at and beyond the reference
            values = {name: value / 10 for name, value in zip(names, points[-1], strict=True)}
            assert curve.add(point(**values)) == pytest.approx(cells(points, objectives, 10))
        assert [n for n, _ in curve.rises] == sorted({n for n, _ in curve.rises})
        assert all(a < b for (_, a), (_, b) in itertools.pairwise(curve.rises))


def test_what_is_not_finite_counts_as_an_evaluation_and_adds_nothing():
    curve = HypervolumeCurve(Box({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}))
    assert [curve.add(point(a=a, b=0.5)) for a in (math.nan, math.inf, 0.5, math.nan)] == [0, 0, 0.25, 0.25]
    assert curve.evaluations == 4
    assert curve.rises == [(1, 0), (3, 0.25)]


def test_the_box_reaches_a_tenth_beyond_the_worst_in_either_direction():
    found = Box.of([point(loss=1.0, accuracy=0.2), point(loss=3.0, accuracy=0.7)], {"loss": "min", "accuracy": "max"})
    assert found.ideal == {"loss": 1.0, "accuracy": 0.7}
    assert found.reference == pytest.approx({"loss": 3.2, "accuracy": 0.15})
    assert found(point(loss=3.2, accuracy=0.7)) == pytest.approx([1, 0])
    same = Box.of([point(loss=2.0), point(loss=2.0)], {"loss": "min"})
    assert same(point(loss=2.0)) == pytest.approx([0])
    assert Box.of([point(loss=math.nan), point(loss=1.0)], {"loss": "min"}).ideal == {"loss": 1.0}
    assert Box.of([point(loss=math.nan)], {"loss": "min"}) is None


def test_thousands_of_evaluations_of_two_objectives_cost_little():
    """Work is counted, not time: every point enters the staircase once and leaves it at most once."""
    curve = HypervolumeCurve(Box({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}))
    rng = np.random.default_rng(0)
    values = rng.random((3000, 2))
    for a, b in values:
        curve.add(point(a=a, b=b))
    order = values[values[:, 0].argsort()]
    floors = np.minimum.accumulate(order[:, 1])
    area = np.sum((1 - np.r_[1.0, floors[:-1]] * 0 - floors) * np.diff(np.r_[order[:, 0], 1.0]))
    assert curve.value == pytest.approx(area)
    assert len(curve._front) == len(set(floors))


# ---------------------------------------------------------------- in a run directory


def search(run_dir, searcher, evaluate=measure, **fields):
    made = searcher(fields.pop("space", joint_space()), DIRECTIONS, **{"evaluations": 24, **fields})
    logged = []
    settings = {"units": UNITS, "full": Sizes().largest(), "split": "validation", "samples": 12, "step": 3}
    outcome = search_run_directory(
        run_dir, made, evaluate, progress=False, log=lambda metrics, n: logged.append((n, metrics)), **settings
    )
    return outcome, logged, json.loads((run_dir / "search.json").read_text())["hypervolume"]


def test_the_curve_is_logged_and_written_and_its_box_is_of_three_networks(tmp_path):
    outcome, logged, written = search(tmp_path, NSGA2, population=8)
    space = joint_space()
    ends = [measure(a) for a in (space.largest(), space.middle(), space.smallest())]
    assert written["box"]["ideal"]["params"] == min(e["params"] for e in ends)
    assert written["box"]["reference"]["loss"] == pytest.approx(
        1.1 * max(e["loss"] for e in ends) - 0.1 * min(e["loss"] for e in ends)
    )
    assert [n for n, _ in logged] == list(range(1, 25))
    values = [metrics["search/hypervolume"] for _, metrics in logged]
    assert values == sorted(values)
    assert [list(p) for p in outcome.curve.rises] == written["curves"]["nsga2"][: len(outcome.curve.rises)]
    assert written["curves"]["nsga2"][-1] == [24, values[-1]]
    low, high = written["box"]["ideal"], written["box"]["reference"]
    alone = math.prod((high[n] - measure(space.middle())[n]) / (high[n] - low[n]) for n in DIRECTIONS)
    assert written["heuristic"] == pytest.approx(alone)
    (metric,) = [m for m in read_metrics(tmp_path) if m["name"] == "hypervolume"]
    assert (metric["value"], metric["variant"], metric["evaluations"]) == (values[-1], "nsga2", 24)


def test_searches_of_one_run_share_the_box_whichever_comes_first(tmp_path):
    for name, order in (("a", (NSGA2, RandomSearch)), ("b", (RandomSearch, NSGA2))):
        for searcher in order:
            *_, written = search(tmp_path / name, searcher)
        assert set(written["curves"]) == {"nsga2", "random"}
    first, second = (json.loads((tmp_path / n / "search.json").read_text())["hypervolume"] for n in "ab")
    assert first == {**second, "curves": first["curves"]}
    assert first["curves"] == second["curves"]


def test_a_search_of_other_objectives_or_another_network_starts_anew(tmp_path):
    search(tmp_path, RandomSearch)
    path = tmp_path / "search.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "step": 2}))
    assert set(search(tmp_path, NSGA2)[2]["curves"]) == {"nsga2"}


def test_the_three_networks_are_measured_beside_the_budget_and_once(tmp_path):
    search(tmp_path, RandomSearch)
    sources = [e.source for e in Archive(tmp_path / "archive.jsonl").evaluations]
    assert sources[:3] == [REFERENCE] * 3
    assert 24 <= len(sources) <= 27
    search(tmp_path, RandomSearch, evaluate=lambda a, known: pytest.fail("measured again"))


def test_a_network_that_measures_nothing_has_no_hypervolume(tmp_path):
    space = joint_space()
    ends = {space.largest(), space.middle(), space.smallest()}

    def diverging(architecture, known):
        return {**measure(architecture), **({"loss": math.nan} if architecture in ends else {})}

    made = RandomSearch(space, DIRECTIONS, evaluations=24)
    settings = {"units": UNITS, "full": Sizes().largest(), "split": "validation", "samples": 12}
    outcome = search_run_directory(tmp_path, made, diverging, progress=False, **settings)
    assert outcome.curve is None
    assert "hypervolume" not in json.loads((tmp_path / "search.json").read_text())


# ---------------------------------------------------------------- starting points


SPACES = {
    "joint": SearchSpace.joint(Sizes()).with_layer_order((3, 0, 2, 1)),
    "per_layer": SearchSpace.per_layer(Sizes()).with_layer_order((3, 0, 2, 1)),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_depth_only_points_are_whole_but_for_layers(space):
    points = DepthOnly()(None, space)
    assert [p.num_layers for p in points] == [4, 3, 2, 1]
    assert {(p.hidden, layer.shape) for p in points for layer in p.layers} == {(64, (4, 1, 16, 128))}
    assert [layer.index for layer in points[-1].layers] == [3]
    assert all(p in space for p in points)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_the_importance_order_is_a_nested_chain_between_the_ends(space):
    points = ImportanceOrder(points=6)(None, space)
    assert (points[0], points[-1]) == (space.largest(), space.smallest())
    assert len(points) == 6
    for larger, smaller in itertools.pairwise(points):
        assert smaller.hidden <= larger.hidden
        kept = {layer.index: layer.shape for layer in larger.layers}
        assert all(all(a <= b for a, b in zip(layer.shape, kept[layer.index], strict=True)) for layer in smaller.layers)
        assert count(smaller) < count(larger)
    assert all(p in space for p in points)


@pytest.mark.parametrize("searcher", [NSGA2, LocalSearch, HillClimbing])
def test_searches_start_from_the_points_they_are_given(searcher):
    space = SPACES["joint"]
    points = [*DepthOnly()(None, space), *ImportanceOrder()(None, space)]
    asked = searcher(space, DIRECTIONS, evaluations=60, initial=points).ask(60)
    distinct = {space.largest(), space.smallest(), space.middle(), *points}
    assert set(asked[: len(distinct)]) == distinct


def test_more_points_than_a_generation_are_all_measured():
    space = SPACES["joint"]
    points = ImportanceOrder(points=8)(None, space)
    search = NSGA2(space, DIRECTIONS, evaluations=20, population=4, initial=points)
    asked = search.ask(60)
    assert set(points) <= set(asked)
    search.tell([Evaluation(a, measure(a)) for a in asked])
    assert len(search.ask(60)) == 4
