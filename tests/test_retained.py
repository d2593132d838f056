"""The share of the importance that a sub-network keeps, against a sum over units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_families import build

from nas_llm.importance.retained import Retained
from nas_llm.search_space import SearchSpace


def scores_of(full, generator) -> dict[str, torch.Tensor]:
    scores = {"hidden": torch.rand(full.hidden, generator=generator)}
    for layer in full.layers:
        heads = torch.rand(layer.kv_groups, layer.heads_per_group, generator=generator)
        scores |= {
            f"layers.{layer.index}.ffn": torch.rand(layer.ffn, generator=generator) - 0.2,
            f"layers.{layer.index}.heads_per_group": heads,
            f"layers.{layer.index}.kv_groups": heads.sum(1),
        }
    return scores


def brute_force(scores, architecture, full) -> float:
    """Sums over the units that sorting puts first."""

    def share(values: torch.Tensor, units: int) -> float:
        moved = values - min(0.0, values.min())
        return float(moved[values.argsort(descending=True)[:units]].sum() / moved.sum())

    heads = ffn = 0.0
    for layer in architecture.layers:
        ffn += share(scores[f"layers.{layer.index}.ffn"], layer.ffn)
        values = scores[f"layers.{layer.index}.heads_per_group"]
        kept = scores[f"layers.{layer.index}.kv_groups"].argsort(descending=True)[: layer.kv_groups]
        best = values[kept].sort(dim=1, descending=True).values[:, : layer.heads_per_group]
        heads += float(best.sum() / values.sum())
    terms = [share(scores["hidden"], architecture.hidden), heads / full.num_layers, ffn / full.num_layers]
    if "layers" in scores:
        terms.append(
            float(scores["layers"][[layer.index for layer in architecture.layers]].sum() / scores["layers"].sum())
        )
    return sum(terms) / len(terms)


@pytest.mark.parametrize("depth_scores", [False, True])
def test_it_is_the_sum_over_kept_units(depth_scores):
    supernet, generator = build("llama"), torch.Generator().manual_seed(0)
    full = supernet.largest()
    scores = scores_of(full, generator)
    if depth_scores:
        scores["layers"] = torch.rand(full.num_layers, generator=generator)
    retained, rng = Retained.of(scores, full), np.random.default_rng(0)
    space = SearchSpace.per_layer(supernet, heads_per_group=[1, 2])
    assert retained(full) == pytest.approx(1.0)
    for _ in range(20):
        architecture = space.sample(rng)
        assert retained(architecture) == pytest.approx(brute_force(scores, architecture, full), abs=1e-6)
