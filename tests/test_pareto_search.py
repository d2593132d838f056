"""Which sub-networks of a front are exported."""

from __future__ import annotations

import pytest

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.lightning.pareto_search import to_export
from nas_llm.search import Evaluation, Front

FULL = 1000.0


def evaluation(params: float, loss: float) -> Evaluation:
    architecture = Architecture(int(params), (LayerChoice(0, 1, 1, 2, 2),))
    return Evaluation(architecture, {"params": params, "loss": loss}, "nsga2", 0)


def front(*sizes: float) -> Front:
    found = tuple(evaluation(size, 2 - size / FULL) for size in sizes)
    return Front(found, {"params": "min", "loss": "min"}, evaluation(FULL, 1.0))


@pytest.mark.parametrize(
    ("sizes", "exported"),
    [
        ((100, 240, 260, 480, 540, 560, 700, 760, 790, 1000), [790, 540, 260]),  # the best of those about 75, 50, 25 %
        ((400, 600, 1000), [600, 400]),  # none twice, the full network never
        ((90, 100, 110), [110, 100, 90]),  # nothing near: the nearest, then those that are left
        ((1000,), []),
    ],
)
def test_the_best_at_about_three_sizes(sizes, exported):
    assert [evaluation.objectives["params"] for evaluation in to_export(front(*sizes))] == exported
