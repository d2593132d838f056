"""UNAST's own depth pruning (paper 3, tables 4, 5 and 9, the row "depth"): the attention and feed-forward sublayers go
that the network's output misses least.

Global error of a sublayer: MSE(h', h) / MSE(h, 0) over tokens, h (hidden,) what the output head reads and h' the same
with the residual connection alone in that sublayer's place (``operators/scores.py``); of a set of sublayers, the sum of
theirs, as in the paper's programme. They are ranked by it, and go from the least until the budget is met, all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from nas_llm.baselines import Batches, Pruned
from nas_llm.baselines.budget import Budget
from nas_llm.models.operator_assembly import assemble
from nas_llm.models.operator_modules import build_sublayer, refuse_operator, sublayer_of
from nas_llm.models.origin import largest_of
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import SUBLAYERS, Identity, OperatorNetwork
from nas_llm.operators import Place
from nas_llm.operators.scores import swap_scores


@dataclass(frozen=True)
class UnastDepth:
    """At most ``max_params`` (up to 1: a fraction of the network's) or ``sublayers_removed``; None and None: 0.75.

    Raises:
        ValueError: both are given, or one is out of range.
    """

    max_params: float | None = None
    sublayers_removed: int | None = None

    def __post_init__(self) -> None:
        _ = self.budget

    @property
    def budget(self) -> Budget:
        return Budget.of(self.max_params, self.sublayers_removed, "sublayers_removed")

    def refuse(self, supernet: Supernet) -> None:
        """Raises ValueError for a network of operators, a family none of whose sublayers may go, or a budget that
        cannot be met."""
        if supernet.operators is not None:
            raise ValueError(
                "baseline=unast_depth: the model is a network of operators already: set model.path to the network it "
                "was made from, or remove whole layers, baseline=shortgpt"
            )
        self._removed(supernet, removable(supernet))

    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        places = removable(supernet)
        scored = swap_scores(
            supernet,
            {place: (Identity(),) for place in places},
            lambda place, operator: build_sublayer(supernet, *place, operator),
            batches(),
        )
        errors = {place: score.global_mse for place, _, score in scored}
        gone = self._removed(supernet, sorted(places, key=lambda place: errors[place]))
        layers = supernet.largest().num_layers
        model = assemble(supernet, OperatorNetwork.of(dict.fromkeys(gone, Identity()), layers))
        counts = ", ".join(f"{sum(place[1] == kind for place in gone)} {kind}" for kind in SUBLAYERS)
        summary = (
            f"UNAST's depth pruning removed {len(gone)} of {len(SUBLAYERS) * layers} sublayers at once ({counts}), "
            f"those of the lowest global error; the sum of theirs is {sum(errors[place] for place in gone):.3g}."
        )
        records = {
            "global_mse": {f"{layer}.{sublayer}": error for (layer, sublayer), error in errors.items()},
            "removed": [f"{layer}.{sublayer}" for layer, sublayer in gone],
        }
        return Pruned(model, summary, records, largest_of(model))

    def _removed(self, supernet: Supernet, order: Sequence[Place]) -> list[Place]:
        sizes = {place: params_of(supernet, place) for place in order}
        whole = supernet.num_parameters(supernet.largest())
        return self.budget.first(order, lambda gone: whole - sum(sizes[place] for place in gone), whole)


def removable(supernet: Supernet) -> list[Place]:
    """The sublayers that can be left out, in the order in which they run.

    Raises:
        ValueError: there is none; why the first of them cannot be.
    """
    found: list[Place] = []
    reasons: list[ValueError] = []
    for layer in range(supernet.largest().num_layers):
        for sublayer in SUBLAYERS:
            try:
                refuse_operator(supernet, layer, sublayer, Identity())
            except ValueError as error:
                reasons.append(error)
            else:
                found.append((layer, sublayer))
    if not found:
        raise ValueError(f"baseline=unast_depth: {reasons[0]}") from reasons[0]
    return found


def params_of(supernet: Supernet, place: Place) -> int:
    """Parameters that go with a sublayer: its own, and those of the norms that serve it alone."""
    layer, sublayer = place
    norms = [getattr(supernet.blocks[layer], name) for name in supernet.sublayer_norms[sublayer]]
    modules: list[nn.Module] = [sublayer_of(supernet, layer, sublayer), *(norm for norm in norms if norm is not None)]
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
