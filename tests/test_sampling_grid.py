"""Sub-networks by parameter bins: every bin that can be filled is, the rest is reported; calibrated picks the best."""

from __future__ import annotations

import itertools
import logging
import time
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.magnitude import Magnitude
from nas_llm.models.supernet import Supernet
from nas_llm.samplers import Calibrated, Grid, GridParams, RandomLinearSampler, RandomSampler, SandwichSampler, Scoring
from nas_llm.samplers import bins as binning
from nas_llm.samplers.bins import ParameterBins, aimed, fill
from nas_llm.search_space import SearchSpace

KINDS = ("joint", "per_layer")


class Shape:
    """A super-network as far as a search space reads it."""

    layer_order = tuple(range(6))
    elastic_axes = frozenset({"hidden", "kv_groups", "heads_per_group"})

    def largest(self) -> Architecture:
        return Architecture(96, tuple(LayerChoice(i, 4, 2, 16, 384) for i in range(6)))


def parameters(architecture: Architecture) -> int:
    hidden = architecture.hidden
    blocks = sum(hidden * (2 * layer.heads * 16 + 3 * layer.ffn) + 2 * layer.kv_groups for layer in architecture.layers)
    return 1000 * hidden + blocks


def space_of(kind: str) -> SearchSpace:
    return SearchSpace.joint(Shape()) if kind == "joint" else SearchSpace.per_layer(Shape())


def scoring(space: SearchSpace, **scores) -> Scoring:
    return Scoring(space, parameters, {name: (lambda score=score: score) for name, score in scores.items()})


def test_bins_are_equally_wide_and_hold_their_edges():
    space = space_of("joint")
    bins = ParameterBins.of(space, parameters, 7)
    low, high = parameters(space.smallest()), parameters(space.largest())
    np.testing.assert_allclose(np.diff(bins.edges), (high - low) / 7)
    assert (bins.index(low), bins.index(high), bins.index(low - 1), bins.index(high + 1)) == (0, 6, None, None)
    for place in range(1, 7):
        assert bins.index(bins.edges[place]) == place


@pytest.mark.parametrize("enumerable", [0, 20_000])
@pytest.mark.parametrize("kind", KINDS)
def test_every_bin_is_filled_with_distinct_networks_of_its_size(kind, enumerable, monkeypatch):
    monkeypatch.setattr(binning, "ENUMERABLE", enumerable)
    space = space_of(kind)
    bins = ParameterBins.of(space, parameters, 12)
    pools = fill(space, parameters, bins, 6, np.random.default_rng(0))
    everything = [space.decode(g) for g in itertools.product(*map(range, space.gene_sizes))] if kind == "joint" else []
    for place, pool in enumerate(pools):
        assert len(pool) == len(set(pool)) <= 6
        assert all(architecture in space and bins.index(parameters(architecture)) == place for architecture in pool)
        there = sum(bins.index(parameters(architecture)) == place for architecture in set(everything))
        if kind == "per_layer" or enumerable:
            assert len(pool) == (6 if kind == "per_layer" else min(6, there)), place
        else:
            assert pool, place  # the aimed proposal misses no bin, the largest ones of the skewed space among them


def test_rejection_alone_leaves_the_edges_empty():
    """Why there is an aimed proposal: as many uniform samples as ``fill`` looks at reach no bin of large networks."""
    space, rng = space_of("per_layer"), np.random.default_rng(0)
    bins = ParameterBins.of(space, parameters, 12)
    found = {bins.index(parameters(space.sample(rng))) for _ in range(12 * 6 * 12)}
    assert 11 not in found


def test_the_aimed_proposal_is_spread_over_its_range():
    space, rng = space_of("per_layer"), np.random.default_rng(0)
    largest = parameters(space.largest())
    low, high = 0.90 * largest, largest
    drawn = {aimed(space, parameters, low, high, rng) for _ in range(60)} - {None}
    sizes = np.array([parameters(architecture) for architecture in drawn]) / largest
    assert len(drawn) > 40
    assert sizes.min() < 0.92
    assert sizes.max() > 0.98
    assert len({architecture.hidden for architecture in drawn}) > 1


def test_bins_that_the_space_cannot_fill_are_reported_and_left_out(caplog):
    space = SearchSpace.joint(
        Shape(), hidden=[8, 96], kv_groups=[4], ffn_ratio=[4.0], depth=[6]
    )  # two networks, far apart
    with caplog.at_level(logging.WARNING):
        started = time.process_time()
        grid = GridParams(bins=9).prepared(scoring(space))
        assert time.process_time() - started < 5
    assert set(grid.architectures) == {space.smallest(), space.largest()}
    (message,) = [record.getMessage() for record in caplog.records]
    low, high = ParameterBins.of(space, parameters, 9).edges[1:3]
    first = f"for instance {low:,.0f} to {high:,.0f} parameters"
    assert message == (
        f"sampler.candidates.bins=9: 7 of 9 bins are empty, {first} (the space has no more: it was enumerated)"
    )


@pytest.mark.parametrize("enumerable", [0, 20_000])
def test_bins_that_hold_too_few_candidates_are_reported_in_one_line(enumerable, monkeypatch, caplog):
    monkeypatch.setattr(binning, "ENUMERABLE", enumerable)
    space = space_of("joint")
    bins = ParameterBins.of(space, parameters, 12)
    found = {space.decode(genome) for genome in itertools.product(*map(range, space.gene_sizes))}
    sizes = [sum(bins.index(parameters(a)) == place for a in found) for place in range(12)]
    with caplog.at_level(logging.WARNING):
        pools = fill(space, parameters, bins, 25, np.random.default_rng(0), setting="search.initial")
    short = [len(pool) for pool in pools if len(pool) < 25]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(
        f"search.initial.bins=12: {len(short)} bins hold fewer than 25 candidates, the last {short[-1]} "
    )
    assert ("it was enumerated" if enumerable else "after 200 tries each") in message
    if enumerable:
        assert short == [size for size in sizes if size < 25]


@pytest.mark.parametrize("enumerable", [0, 20_000])
def test_grids_that_are_mostly_empty_are_refused_in_one_short_line(enumerable, monkeypatch):
    monkeypatch.setattr(binning, "ENUMERABLE", enumerable)
    space = space_of("joint")
    everything = {space.decode(genome) for genome in itertools.product(*map(range, space.gene_sizes))}
    counts = len({parameters(architecture) for architecture in everything})
    with pytest.raises(ValueError) as caught:
        GridParams(bins=100_000).prepared(scoring(space))
    line = str(caught.value)
    assert line.startswith("sampler.candidates.bins=100000: the search space has no sub-network in most bins")
    assert (f"{counts:,} different parameter counts" if enumerable else "more than half of 100 of them") in line
    assert len(line) < 300
    with pytest.raises(ValueError, match="fewer counts than bins"):
        GridParams(bins=10**12).prepared(scoring(space))


def test_a_space_of_one_size_has_no_bins():
    space = SearchSpace.joint(Shape(), hidden=[96], kv_groups=[4], ffn_ratio=[4.0], depth=[6])
    with pytest.raises(ValueError, match=r"sampler\.candidates\.bins=22: every sub-network .* is no range to divide"):
        GridParams().prepared(scoring(space))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(GridParams, bins=0), r"sampler\.candidates\.bins=0: allowed is 1 or more"),
        (partial(Calibrated, bins=-1), r"sampler\.candidates\.bins=-1"),
        (partial(Calibrated, candidates_per_bin=0), r"candidates_per_bin=0: allowed is 1 or more, for instance 100"),
        (partial(Calibrated, by="size"), r"by=size: allowed are magnitude, loss, perplexity, importance"),
        (partial(RandomLinearSampler, space_of("joint"), steps=-1), r"sampler\.steps=-1"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_calibrated_takes_the_highest_score_of_every_bin():
    space = space_of("joint")
    scores = {"magnitude": lambda architecture: -float(architecture.hidden)}
    grid = Calibrated(bins=5, candidates_per_bin=10_000).prepared(scoring(space, **scores))
    bins = ParameterBins.of(space, parameters, 5)
    everything = {space.decode(genome) for genome in itertools.product(*map(range, space.gene_sizes))}
    for place, chosen in enumerate(grid.architectures):
        rivals = [a for a in everything if bins.index(parameters(a)) == place]
        assert chosen in rivals
        assert chosen.hidden == min(a.hidden for a in rivals)


def test_the_grid_is_a_function_of_its_seed():
    space = space_of("per_layer")
    grids = [GridParams(bins=6, seed=seed).prepared(scoring(space)) for seed in (0, 0, 1)]
    assert grids[0] == grids[1] != grids[2]


@pytest.mark.parametrize("make", [RandomSampler, SandwichSampler, partial(RandomLinearSampler, steps=1)])
def test_samplers_draw_from_their_candidates_alone(make):
    space = space_of("joint")
    grid = Grid((space.middle(), space.decode([1, 0, 1, 0, 1, 1])))
    drawn = [make(space, candidates=grid)(step, np.random.default_rng(step)) for step in range(30)]
    ends = {space.largest(), space.smallest()}
    assert {a for step in drawn for a in step} - ends == set(grid.architectures)


def test_settings_cannot_be_drawn_from_before_they_are_prepared():
    with pytest.raises(RuntimeError, match=r"prepared\(scoring\)"):
        SandwichSampler(space_of("joint"), candidates=Calibrated())(0, np.random.default_rng(0))


def test_random_linear_samples_more_and_more():
    space = space_of("joint")
    sampler = RandomLinearSampler(space, steps=1000)
    sampled = np.array([sampler(s, np.random.default_rng([3, s])) != [space.largest()] for s in range(1400)])
    assert sampled[:100].mean() < 0.15
    assert 0.4 < sampled[450:550].mean() < 0.6
    assert sampled[1000:].mean() > 0.98  # but for the largest itself, drawn by chance
    assert all(len(sampler(s, np.random.default_rng(s))) == 1 for s in range(50))


@pytest.mark.parametrize("kind", KINDS)
def test_llama_8b_is_calibrated_by_magnitude_in_seconds(kind):
    """K = 22 bins of M = 100 candidates, once the prefix sums (here of invented weights) are made."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(
                vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                num_attention_heads=32, num_key_value_heads=8,
            )
        )  # fmt: skip
    supernet = Supernet(model)
    if kind == "joint":
        space = SearchSpace.joint(supernet, steps=32, min_fraction=0.02)  # more than is enumerated
    else:
        space = SearchSpace.per_layer(supernet)
    rng = torch.Generator().manual_seed(0)
    values = {axis: len(sizes) for axis, sizes in space.axis_sizes().items()}
    magnitude = invented(supernet, space, rng)
    seconds: list[float] = []
    while len(seconds) < 3 and min(seconds, default=10.0) >= 10:  # the machine may be busy
        started = time.process_time()
        grid = Calibrated().prepared(Scoring(space, supernet.num_parameters, {"magnitude": lambda: magnitude}))
        seconds.append(time.process_time() - started)
        assert len(grid.architectures) == 22
    assert min(seconds) < 10, (seconds, values)


def invented(supernet: Supernet, space: SearchSpace, rng: torch.Generator) -> Magnitude:
    """Prefix sums as of random weights, without the time that summing eight billion of them takes."""
    sizes = space.axis_sizes()
    places = {axis: {size: place for place, size in enumerate(choices)} for axis, choices in sizes.items()}

    def table(*axes: str) -> np.ndarray:
        cells = torch.rand([len(sizes[axis]) for axis in axes], generator=rng, dtype=torch.float64)
        for axis in range(len(axes)):
            cells = cells.cumsum(axis)
        return cells.numpy()

    attention, values = ("kv_groups", "heads_per_group", "head_dim", "hidden"), ("kv_groups", "head_dim", "hidden")
    layer = {
        a: table(*a)
        for a in (attention, values, ("hidden", *attention[:3]), ("ffn", "hidden"), ("hidden", "ffn"), ("hidden",))
    }
    return Magnitude(places, {("hidden",): table("hidden")}, tuple(layer for _ in supernet.layer_modules))
