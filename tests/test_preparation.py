"""The network of a run as training began with it, made again from its directory, in its own order."""

from __future__ import annotations

import pytest
import torch
from training_fixtures import tiny_supernet, train_loader

from nas_llm.atomic_files import write_json
from nas_llm.importance.magnitude import Magnitude
from nas_llm.importance.scores import write_scores
from nas_llm.lightning.preparation import prepared_again, quantize, sort_by_importance, sparsify
from nas_llm.quantization.rtn import RoundToNearest
from nas_llm.sparsity.wanda import Wanda

SCORED = {"hidden": (32,), "layers": (3,)} | {
    f"layers.{i}.{axis}": shape
    for i in range(3)
    for axis, shape in {"ffn": (48,), "kv_groups": (2,), "heads_per_group": (2, 2)}.items()
}
METHODS = {
    "sparse": (Wanda(sparsity=0.5), None),
    "quantised": (None, RoundToNearest(group_size=8)),
    "both": (Wanda(sparsity=0.5), RoundToNearest(group_size=8)),
    "neither": (None, None),
}


@torch.no_grad()
def logits(supernet):
    return supernet.model.eval()(torch.arange(1, 25).view(2, 12)).logits


def test_a_network_with_a_weight_that_is_not_finite_is_refused_by_its_name(tmp_path):
    supernet = tiny_supernet()
    with torch.no_grad():
        supernet.model.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    with pytest.raises(
        ValueError, match=r"model\.path.*: 1 of the 1536 values of model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        sort_by_importance(supernet, Magnitude(), list, tmp_path, resumes=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sorts", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_prepared_again_as_it_was(method, sorts, tmp_path):
    sparsity, quantization = METHODS[method]
    original, supernet, again = tiny_supernet(), tiny_supernet(), tiny_supernet()
    if sorts:
        generator = torch.Generator().manual_seed(4)
        scores = {key: torch.rand(shape, generator=generator) for key, shape in SCORED.items()}
        write_scores(scores, tmp_path, method="random", supernet=supernet)
        supernet.sort(scores)
    sparsify(supernet, sparsity, lambda: train_loader(4), tmp_path, resumes=False)
    quantize(supernet, quantization, lambda: train_loader(4), tmp_path, resumes=False)
    chosen = {"importance": sorts, "sparsity": sparsity, "quantization": quantization}
    write_json(
        tmp_path / "fingerprints.json", {key: {"chosen": True} if value else {} for key, value in chosen.items()}
    )
    prepared_again(again, tmp_path)
    assert torch.allclose(logits(again), logits(supernet), atol=1e-5)
    if quantization is None:
        assert again.order.units == {}
        for (name, weight), before in zip(again.model.named_parameters(), original.model.parameters(), strict=True):
            assert bool(((weight == before) | (weight == 0)).all()), (
                f"{name}: every weight is in its own place, or zero"
            )
