import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from search_fixtures import DIRECTIONS, joint_space, measure

from nas_llm.search import Evaluation, Front, hypervolume, pareto_front
from nas_llm.search.pareto import non_dominated


def evaluate(n, seed=0, extra=None):
    space, rng = joint_space(), np.random.default_rng(seed)
    architectures = list({space.sample(rng): None for _ in range(n)})
    return [Evaluation(a, {**measure(a), **(extra or {})}) for a in architectures]


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_non_dominated_by_brute_force(objectives):
    for seed in range(20):
        values = np.random.default_rng(seed).integers(0, 6, size=(40, objectives)).astype(float)
        expected = [not any(dominates(other, row) for other in values) for row in values]
        assert non_dominated(values).tolist() == expected


@pytest.mark.parametrize(
    "directions", [dict(zip(DIRECTIONS, d, strict=True)) for d in itertools.product(["min", "max"], repeat=2)]
)
def test_front_by_brute_force_in_every_direction(directions):
    evaluations = evaluate(60)
    points = {
        e.id: [e.objectives[n] if d == "min" else -e.objectives[n] for n, d in directions.items()] for e in evaluations
    }
    expected = {e.id for e in evaluations if not any(dominates(p, points[e.id]) for p in points.values())}
    front = pareto_front(evaluations, directions)
    assert {e.id for e in front} == expected
    values = [points[e.id] for e in front]
    assert values == sorted(values)


def test_not_finite_values_take_no_part_and_a_front_of_none_is_refused():
    evaluations = evaluate(5)
    bad = [Evaluation(e.architecture, {"params": 1.0, "loss": math.nan}) for e in evaluations]
    assert pareto_front([*evaluations[:3], *bad[3:]], DIRECTIONS) == pareto_front(evaluations[:3], DIRECTIONS)
    with pytest.raises(ValueError, match="no architecture has finite values of params, loss"):
        Front.of(bad, DIRECTIONS)


def test_a_missing_objective_is_named():
    with pytest.raises(ValueError, match=r"latency.*not measured"):
        pareto_front(evaluate(3), {"params": "min", "latency": "min"})


def test_hypervolume_of_two_objectives_is_the_area_of_the_staircase():
    evaluations = evaluate(40)
    reference = {"params": 60_000.0, "loss": 4.0}
    points = sorted((e.objectives["params"], e.objectives["loss"]) for e in evaluations)
    area, floor = 0.0, reference["loss"]
    for params, loss in points:
        if params < reference["params"] and loss < floor:
            area += (reference["params"] - params) * (floor - loss)
            floor = loss
    assert hypervolume(evaluations, DIRECTIONS, reference) == pytest.approx(area, rel=1e-9)
    assert hypervolume(evaluations, DIRECTIONS, {"params": 1.0, "loss": 0.1}) == 0.0


@pytest.fixture
def front():
    space = joint_space()
    full = Evaluation(space.largest(), {**measure(space.largest()), "latency": 8.0})
    return Front.of([*evaluate(80, extra={"latency": 5.0}), full], DIRECTIONS, full)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75, 1.0])
def test_pick_is_the_best_within_the_limit(front, fraction):
    limit = fraction * front.full.objectives["params"]
    best = min((e for e in front.evaluations if e.objectives["params"] <= limit), key=lambda e: e.objectives["loss"])
    assert front.pick(max_params=fraction) == best == front.pick(max_params=limit)


def test_pick_by_latency_and_by_another_objective(front):
    assert front.pick(max_latency_ms=6.0, minimise="params") == min(
        (e for e in front.evaluations if e.objectives["latency"] <= 6), key=lambda e: e.objectives["params"]
    )
    assert front.pick() == min(front.evaluations, key=lambda e: e.objectives["loss"])


def test_pick_maximises_what_is_to_be_maximised():
    evaluations = [
        Evaluation(e.architecture, {"params": e.objectives["params"], "accuracy": 1 / e.objectives["loss"]})
        for e in evaluate(40)
    ]
    front = Front.of(evaluations, {"params": "min", "accuracy": "max"})
    assert front.pick() == max(evaluations, key=lambda e: e.objectives["accuracy"])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_params": 1e-6},
            r"max_params=1e-06 \(= 0\): nothing on the front is that small; the smallest has [\d,.]+",
        ),
        ({"max_params": 10}, r"max_params=10: nothing on the front.*of the full network"),
        ({"max_latency_ms": 0.5}, r"max_latency_ms=0.5: nothing on the front.*smallest has 5"),
        ({"max_macs": 5}, r"max_macs=5 needs the objective macs, which was not measured"),
        ({"max_params": -1}, r"max_params=-1 is not a limit"),
        ({"minimise": "speed"}, r"minimise=speed was not measured; allowed are params, loss, latency"),
    ],
)
def test_pick_refuses_clearly(front, limits, message):
    with pytest.raises(ValueError, match=message):
        front.pick(**limits)


def test_limits_are_on_what_every_network_of_the_front_has_measured(front):
    first, *others = front.evaluations
    mixed = replace(front, evaluations=(replace(first, objectives={**first.objectives, "macs": 1.0}), *others))
    with pytest.raises(ValueError, match="macs, which was not measured"):
        mixed.pick(max_macs=5)
    with pytest.raises(ValueError, match="minimise=macs was not measured"):
        mixed.pick(minimise="macs")


def test_a_fraction_needs_the_full_network(front):
    with pytest.raises(ValueError, match="not in the archive"):
        Front(front.evaluations, front.directions).pick(max_params=0.5)
