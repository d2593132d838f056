"""Every searcher: budgets, determinism, resuming, exhaustion; and each one's own promise against brute force."""

import itertools
import logging
import math
from functools import partial

import numpy as np
import pytest
from search_fixtures import DIRECTIONS, Sizes, count, joint_space, measure

from nas_llm.composition import checked
from nas_llm.config import build, config_dir
from nas_llm.config_errors import options
from nas_llm.search import (
    NSGA2,
    Archive,
    Evaluation,
    GridSearch,
    HillClimbing,
    LocalSearch,
    RandomSearch,
    StratifiedSearch,
    hypervolume,
    pareto_front,
    run_search,
)
from nas_llm.search.grid import grid_levels
from nas_llm.search_space import SearchSpace

SEARCHES = {
    "nsga2": partial(NSGA2, population=8),
    "random": RandomSearch,
    "grid": GridSearch,
    "local_search": LocalSearch,
    "hill_climbing": HillClimbing,
    "stratified": partial(StratifiedSearch, num_parameters=count, bins=6),
}
REFERENCE = {"params": 250_000.0, "loss": 10.0}
SPACES = {
    "joint": joint_space(),
    "narrow": joint_space(elastic=["depth", "ffn"]),
    "per_layer": SearchSpace.per_layer(Sizes(layers=3), steps=2, depth=[2, 3]),
    "large": SearchSpace.per_layer(Sizes(layers=12)),
}


@pytest.fixture(params=SEARCHES, name="make")
def _make(request):
    return SEARCHES[request.param]


def run(search, archive=None, evaluate=measure):
    return run_search(search, evaluate, Archive() if archive is None else archive, progress=False)


def ids(result):
    return [evaluation.id for evaluation in result.evaluations]


def everything(space):
    genomes = itertools.product(*(range(n) for n in space.gene_sizes))
    return list({space.decode(np.array(genome)): None for genome in genomes})


def front_of(architectures):
    return pareto_front([Evaluation(a, measure(a)) for a in architectures], DIRECTIONS)


OF_OPERATORS = ("ilp",)  # no searcher that asks and tells


@pytest.mark.parametrize("option", [n for n in options(config_dir(), "search") if n not in ("none", *OF_OPERATORS)])
def test_every_option_of_the_configuration_can_be_built(option):
    cfg = checked([f"search={option}", "search.evaluations=5", "stage=train"])
    search = build(cfg.search, space=SPACES["joint"], directions=DIRECTIONS, num_parameters=count, initial=())
    assert search.name == option
    assert len(run(search).evaluations) == 5


class Killed(Exception):
    pass


def killed_after(n):
    calls = itertools.count(1)

    def evaluate(architecture, known):
        if next(calls) > n:
            raise Killed
        return measure(architecture)

    return evaluate


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("budget", [1, 2, 23])
def test_the_budget_is_spent_on_distinct_architectures_of_the_space(make, space, budget):
    result = run(make(space, DIRECTIONS, evaluations=budget))
    assert len(set(ids(result))) == len(result.evaluations) == min(budget, space.size)
    assert all(evaluation.architecture in space for evaluation in result.evaluations)


@pytest.mark.parametrize("space", ["joint", "per_layer"])
def test_a_budget_beyond_the_space_finds_all_of_it_and_the_exact_front(make, space, caplog):
    space = joint_space(steps=3) if space == "joint" else SearchSpace.per_layer(Sizes(layers=2), steps=2)
    with caplog.at_level(logging.WARNING):
        result = run(make(space, DIRECTIONS, evaluations=space.size + 40))
    assert {e.architecture for e in result.evaluations} == set(everything(space))
    assert "exhausted" in caplog.text
    assert [e.id for e in pareto_front(result.evaluations, DIRECTIONS)] == [e.id for e in front_of(everything(space))]


@pytest.mark.parametrize("space", ["joint", "large"])
def test_it_is_a_function_of_its_fields_and_the_answers(make, space):
    def asked(n, **fields):
        search, found = make(SPACES[space], DIRECTIONS, evaluations=40, **fields), []
        while not search.done:
            batch = search.ask(n)
            found += [a.id for a in batch]
            search.tell([Evaluation(a, measure(a)) for a in reversed(batch)])
        return found

    first = asked(1)
    assert first == asked(7) == asked(64)
    assert (asked(7, seed=1) != first) == (make is not GridSearch)


@pytest.mark.parametrize("space", ["joint", "large"])
@pytest.mark.parametrize("kill_at", [1, 7, 20, 39])
def test_a_killed_search_resumed_is_the_uninterrupted_one(make, space, kill_at, tmp_path):
    whole = Archive()
    run(make(SPACES[space], DIRECTIONS, evaluations=40), whole)
    path = tmp_path / "archive.jsonl"
    with pytest.raises(Killed):
        run(make(SPACES[space], DIRECTIONS, evaluations=40), Archive(path), killed_after(kill_at))
    resumed = Archive(path)
    result = run(make(SPACES[space], DIRECTIONS, evaluations=40), resumed)
    assert result.from_archive == kill_at
    assert resumed.evaluations == whole.evaluations


def test_state_dict_continues_in_the_middle_of_a_round(make):
    first = make(SPACES["joint"], DIRECTIONS, evaluations=40)
    for n in (5, 5, 5):
        first.tell([Evaluation(a, measure(a)) for a in first.ask(n)])
    second = make(SPACES["joint"], DIRECTIONS, evaluations=40)
    second.load_state_dict(first.state_dict())
    assert ids(run(first)) == ids(run(second)) != []


def test_values_that_are_not_finite_stop_no_search(make):
    def diverging(architecture, known):
        return {**measure(architecture), **({"loss": math.nan} if architecture.hidden < 40 else {})}

    result = run(make(SPACES["joint"], DIRECTIONS, evaluations=40), evaluate=diverging)
    assert len(result.evaluations) == 40
    everywhere = run(
        make(SPACES["joint"], DIRECTIONS, evaluations=40), evaluate=lambda a, known: {"params": 1, "loss": math.inf}
    )
    assert len(everywhere.evaluations) == 40


@pytest.mark.parametrize("directions", [{"loss": "min"}, {"params": "min", "loss": "min", "depth": "max"}])
def test_one_or_three_objectives(make, directions):
    result = run(
        make(SPACES["joint"], directions, evaluations=40),
        evaluate=lambda a, known: {**measure(a), "depth": float(a.num_layers)},
    )
    assert len(set(ids(result))) == 40


@pytest.mark.parametrize("name", ["nsga2", "local_search"])
def test_searches_that_read_the_answers_beat_random_draws(name):
    space = joint_space(steps=5)

    def median(search):
        runs = (run(search(space, DIRECTIONS, evaluations=80, seed=seed)) for seed in range(5))
        return np.median([hypervolume(result.evaluations, DIRECTIONS, REFERENCE) for result in runs])

    assert space.size > 4 * 80
    assert median(SEARCHES[name]) > median(RandomSearch)


# ---------------------------------------------------------------- random


def test_random_draws_are_uniform_over_a_small_space():
    space = joint_space(steps=2)
    firsts = [RandomSearch(space, DIRECTIONS, evaluations=1, seed=seed).ask(1)[0] for seed in range(1600)]
    counts = {a: firsts.count(a) for a in everything(space)}
    assert space.size == 16
    assert all(60 <= n <= 145 for n in counts.values())  # 100 expected, standard deviation 9.7


# ---------------------------------------------------------------- grid


def test_grid_levels_are_the_finest_that_the_budget_holds():
    counts = {"a": 8, "b": 8, "c": 3, "d": 1}
    for budget in range(1, 250):
        levels = grid_levels(counts, budget)
        assert math.prod(levels.values()) <= budget
        assert all(1 <= levels[axis] <= n for axis, n in counts.items())
        room = [axis for axis, n in counts.items() if levels[axis] < n]
        assert all(math.prod(levels.values()) // levels[axis] * (levels[axis] + 1) > budget for axis in room)
    assert grid_levels(counts, 8) == {"a": 2, "b": 2, "c": 2, "d": 1}
    assert grid_levels(counts, 10_000) == counts


@pytest.mark.parametrize("space", ["joint", "large"])
@pytest.mark.parametrize("budget", [16, 81, 100])
def test_the_grid_covers_the_corners_and_is_regular(space, budget):
    space = SPACES[space]
    result = run(GridSearch(space, DIRECTIONS, evaluations=budget))
    asked = [evaluation.architecture for evaluation in result.evaluations]
    axes = [axis for axis, n in space.choice_counts.items() if n > 1]
    ends = itertools.product(*((0, space.choice_counts[axis] - 1) for axis in axes))
    corners = {
        space.uniform({**dict.fromkeys(space.choice_counts, 0), **dict(zip(axes, c, strict=True))}) for c in ends
    }
    assert len(axes) == 4
    assert corners <= set(asked)
    levels = math.prod(grid_levels(space.choice_counts, budget).values())
    sides = [{a.hidden for a in asked[:levels]}, {a.num_layers for a in asked[:levels]}]
    assert math.prod(len(side) for side in sides) * len({(a.layers[0].kv_groups) for a in asked[:levels]}) <= levels
    if budget == 81:
        assert len(asked[:levels]) == 81
        assert [sorted(side) for side in sides] == [
            [space.hidden[0], space.hidden[round((len(space.hidden) - 1) / 2)], space.hidden[-1]],
            [space.depth[0], space.depth[round((len(space.depth) - 1) / 2)], space.depth[-1]],
        ]


# ---------------------------------------------------------------- local search and hill climbing


def test_local_search_ends_in_a_pareto_local_optimum_before_it_draws():
    """With all neighbours at once: when it first leaves the neighbourhood of its front, nothing is left there."""
    space = joint_space(steps=4)
    search = LocalSearch(space, DIRECTIONS, evaluations=space.size, neighbours=1000)
    told: list[Evaluation] = []
    while True:
        batch = search.ask(1000)
        front = {e.architecture for e in pareto_front(told, DIRECTIONS)}
        around = {near for member in front for near in space.neighbours(member)}
        if told and not set(batch) <= around:
            break
        assert not set(batch) & {e.architecture for e in told}
        told += [Evaluation(a, measure(a)) for a in batch]
        search.tell(told[-len(batch) :])
    assert around <= {e.architecture for e in told}
    assert {e.id for e in front_of(everything(space))} == {a.id for a in front}


def test_hill_climbing_first_walks_from_the_middle_to_better_neighbours():
    space = joint_space(steps=4)
    search = HillClimbing(space, DIRECTIONS, evaluations=space.size, neighbours=1000)
    starts = search.ask(64)
    assert starts == [space.middle(), space.largest(), space.smallest()]
    values = {a: measure(a) for a in everything(space)}
    spread = {name: [values[a][name] for a in starts] for name in DIRECTIONS}

    def height(a):
        z = [(values[a][n] - min(spread[n])) / (max(spread[n]) - min(spread[n])) / 2 for n in DIRECTIONS]
        return max(z) + 0.05 * sum(z)

    at = space.middle()
    search.tell([Evaluation(a, measure(a)) for a in starts])
    for _ in range(50):
        near = set(space.neighbours(at))
        batch = search.ask(1000)
        if not set(batch) <= near:
            break
        search.tell([Evaluation(a, measure(a)) for a in batch])
        best = min(near, key=height)
        if height(best) < height(at):
            at = best
    assert at != space.middle()
    assert height(at) == min(height(a) for a in [at, *space.neighbours(at)])


# ---------------------------------------------------------------- stratified


def bin_of(architecture, space, bins):
    low, high = count(space.smallest()), count(space.largest())
    return min(int((count(architecture) - low) * bins / (high - low)), bins - 1)


@pytest.mark.parametrize(("space", "bins"), [("joint", 6), ("large", 6), ("large", 20)])
def test_stratified_counts_are_equal(space, bins):
    space = SPACES[space]
    search = StratifiedSearch(space, DIRECTIONS, evaluations=4 * bins + 3, num_parameters=count, bins=bins)
    placed = [bin_of(e.architecture, space, bins) for e in run(search).evaluations]
    assert [placed.count(place) for place in range(bins)] == [5] * 3 + [4] * (bins - 3)


def test_bins_that_the_space_cannot_fill_leave_their_share_to_the_others():
    space = joint_space(hidden=[8, 64], kv_groups=[4], ffn_ratio=[0.25, 0.5, 1.0, 2.0], depth=[1, 2, 4])
    held = [bin_of(a, space, 10) for a in everything(space)]
    fillable = {place: held.count(place) for place in set(held)}
    assert len(fillable) < 10
    search = StratifiedSearch(space, DIRECTIONS, evaluations=space.size - 4, num_parameters=count, bins=10)
    placed = [bin_of(e.architecture, space, 10) for e in run(search).evaluations]
    most = max(placed.count(place) for place in fillable)
    assert all(placed.count(place) >= min(n, most - 1) for place, n in fillable.items())


def test_every_bin_of_a_skewed_space_is_filled_at_once():
    """Of uniform samples less than one in a thousand falls into the topmost bin here."""
    space = SearchSpace.joint(Sizes(hidden=4096, layers=32, kv_groups=32, ffn=14336), steps=32)
    rng = np.random.default_rng(0)
    uniform = [bin_of(space.sample(rng), space, 20) for _ in range(2000)]
    assert uniform.count(19) <= 2
    calls = itertools.count()

    def counted(architecture):
        next(calls)
        return count(architecture)

    search = StratifiedSearch(space, DIRECTIONS, evaluations=100, num_parameters=counted)
    placed = [bin_of(e.architecture, space, 20) for e in run(search).evaluations]
    assert [placed.count(place) for place in range(20)] == [5] * 20
    assert next(calls) < 100 * 60


@pytest.mark.parametrize(
    ("search", "fields", "message"),
    [
        (RandomSearch, {"evaluations": 0}, "search.evaluations=0"),
        (GridSearch, {"seed": -1}, "search.seed=-1"),
        (LocalSearch, {"neighbours": 0}, "search.neighbours=0"),
        (HillClimbing, {"initial": [Sizes(hidden=60).largest()]}, "not in the search space"),
        (LocalSearch, {"initial": [Sizes(hidden=60).largest()]}, "not in the search space"),
        (SEARCHES["stratified"], {"bins": 0}, "search.bins=0"),
        (
            SEARCHES["stratified"],
            {"space": joint_space(hidden=[64], kv_groups=[4], ffn_ratio=[2.0], depth=[4])},
            "no range",
        ),
        (RandomSearch, {"directions": {}}, "objectives="),
        (RandomSearch, {"directions": {"params": "down"}}, "must be min or max"),
    ],
)
def test_bad_fields_are_refused(search, fields, message):
    with pytest.raises(ValueError, match=message):
        search(**{"space": joint_space(), "directions": DIRECTIONS, **fields})
