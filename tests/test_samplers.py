"""Samplers: what a step trains, and that it is a function of (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.samplers import RandomSampler, SandwichSampler, StandardSampler
from nas_llm.search_space import SearchSpace


class Shape:
    """A super-network as far as a search space reads it."""

    layer_order = (0, 1, 2, 3)
    elastic_axes = frozenset({"hidden", "kv_groups", "heads_per_group"})

    def largest(self) -> Architecture:
        return Architecture(64, tuple(LayerChoice(i, 4, 2, 16, 256) for i in range(4)))


SPACE = SearchSpace.joint(Shape())


def test_standard_trains_the_largest():
    assert StandardSampler(SPACE)(3, np.random.default_rng(0)) == [SPACE.largest()]


def test_random_trains_one_and_covers_the_space():
    draws = [RandomSampler(SPACE)(step, np.random.default_rng([0, step])) for step in range(200)]
    assert all(len(drawn) == 1 and drawn[0] in SPACE for drawn in draws)
    assert {drawn[0].hidden for drawn in draws} == set(SPACE.hidden)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_sandwich_has_the_largest_first_and_the_smallest_last(k):
    drawn = SandwichSampler(SPACE, k=k)(0, np.random.default_rng(0))
    assert len(drawn) == k + 2
    assert (drawn[0], drawn[-1]) == (SPACE.largest(), SPACE.smallest())
    assert all(architecture in SPACE for architecture in drawn)


def test_sandwich_without_its_ends():
    drawn = SandwichSampler(SPACE, k=2, smallest=False)(0, np.random.default_rng(0))
    assert drawn[0] == SPACE.largest()
    assert len(drawn) == 3
    assert len(SandwichSampler(SPACE, k=2, smallest=False, largest=False)(0, np.random.default_rng(0))) == 2


def test_the_draw_is_a_function_of_the_generator():
    sampler = SandwichSampler(SPACE, k=2)
    assert sampler(5, np.random.default_rng([7, 5])) == sampler(5, np.random.default_rng([7, 5]))
    assert sampler(5, np.random.default_rng([7, 5])) != sampler(6, np.random.default_rng([7, 6]))


@pytest.mark.parametrize("settings", [{"k": -1}, {"k": 0, "smallest": False, "largest": False}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"sampler\.k="):
        SandwichSampler(SPACE, **settings)
