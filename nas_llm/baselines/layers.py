"""Depth pruning: the network without its least important layers, by any scores of layers."""

from __future__ import annotations

from collections.abc import Sequence

from nas_llm.architecture import Architecture
from nas_llm.baselines import Pruned
from nas_llm.baselines.budget import Budget
from nas_llm.models.supernet import Supernet


def refuse_depth(supernet: Supernet, budget: Budget, *, kept: Sequence[int] = ()) -> None:
    """Raises:
    ValueError: the budget cannot be met without the layers ``kept``, which have to stay, or without all layers.
    """
    removed_layers(supernet, [0.0] * supernet.largest().num_layers, budget, kept=kept)


def removed_layers(
    supernet: Supernet, scores: Sequence[float], budget: Budget, *, kept: Sequence[int] = ()
) -> list[int]:
    """The layers that go, the least important first; of equal ones the last. One layer always stays.

    Args:
        scores: (layers,), higher = more important.
        kept: layers that stay whatever their scores.
    """
    full = supernet.largest()
    order = sorted((i for i in range(full.num_layers) if i not in kept), key=lambda i: (scores[i], -i))
    return budget.first(
        order if kept else order[:-1],
        lambda gone: supernet.num_parameters(without(full, gone)),
        supernet.num_parameters(full),
    )


def without(full: Architecture, gone: Sequence[int]) -> Architecture:
    """The network without these layers."""
    return Architecture(full.hidden, tuple(layer for layer in full.layers if layer.index not in gone))


def without_layers(
    supernet: Supernet,
    scores: Sequence[float],
    budget: Budget,
    *,
    kept: Sequence[int] = (),
    method: str,
    criterion: str,
) -> Pruned:
    """The network without the layers that score least.

    Args:
        method: in words, for the summary.
        criterion: what the scores are, likewise.

    Raises:
        ValueError: as :func:`refuse_depth`.
    """
    full = supernet.largest()
    gone = removed_layers(supernet, scores, budget, kept=kept)
    architecture = without(full, gone)
    named = ", ".join(map(str, sorted(gone)))
    summary = (
        f"{method} removed {len(gone)} of {full.num_layers} layers at once, those of the lowest {criterion}: {named}."
    )
    records = {"criterion": criterion, "scores": list(scores), "removed": gone}
    return Pruned(supernet.extract(architecture), summary, records, architecture)
