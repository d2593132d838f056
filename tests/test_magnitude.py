"""The magnitude of sub-networks by prefix sums, against the norm of the extracted weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_families import FAMILIES, build

from nas_llm.models.magnitude import Magnitude
from nas_llm.search_space import SearchSpace


def norm(model) -> float:
    return float(torch.cat([p.detach().double().flatten() for p in model.parameters()]).norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_norm_of_the_extracted_weights(family):
    supernet, rng = build(family), np.random.default_rng(0)
    with torch.no_grad():
        for parameter in supernet.parameters():  # norms of ones and biases of zeros would hide mistakes
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    full = supernet.largest()
    halves = {
        axis: sorted({max(1, size // 2), size})
        for axis, size in zip(("kv_groups", "heads_per_group"), full.layers[0].shape, strict=False)
    }
    if "head_dim" in supernet.elastic_axes:
        halves["head_dim"] = [full.layers[0].head_dim // 2, full.layers[0].head_dim]
    for space in (SearchSpace.joint(supernet, **halves), SearchSpace.per_layer(supernet, **halves)):
        magnitude = Magnitude.of(supernet, space)
        for architecture in (space.largest(), space.smallest(), *(space.sample(rng) for _ in range(6))):
            expected = norm(supernet.extract(architecture))
            assert magnitude(architecture) == pytest.approx(expected, rel=1e-6), architecture


def test_it_follows_sorting_and_refuses_other_sizes():
    supernet = build("llama")
    space = SearchSpace.joint(supernet)
    before = Magnitude.of(supernet, space)
    supernet.sort({"hidden": torch.rand(supernet.largest().hidden)})
    after, small = Magnitude.of(supernet, space), space.smallest()
    assert after(small) == pytest.approx(norm(supernet.extract(small)), rel=1e-6)
    assert after(small) != pytest.approx(before(small), rel=1e-6)
    assert after(space.largest()) == pytest.approx(before(space.largest()), rel=1e-9)
    from dataclasses import replace

    with pytest.raises(ValueError, match="not in the search space"):
        after(replace(small, hidden=space.hidden[0] + 1))
