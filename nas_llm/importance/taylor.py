"""Importance by a first-order Taylor expansion: how much the loss would change if a unit's weights became zero.

Score of unit u: |sum over its weights of w * dL/dw|, L the mean token cross-entropy of the calibration set
(Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019: the first-order criterion, of whole units).
Weights of a unit: every weight tensor that carries its axis, as in :mod:`nas_llm.importance.magnitude`.

The sum is linear in the gradient, so that each batch's gradients are folded into the units at once, in float32, and let
go: beside the model, the memory of one batch's gradients is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas_llm.importance.folding import fold_weights
from nas_llm.importance.recording import Batches, no_batches
from nas_llm.models.modes import evaluating
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.loss import summed_token_loss


@dataclass(frozen=True)
class Taylor:
    """Weight times gradient, summed over the weights of hidden channels, KV groups, heads and FFN neurons.

    The model's gradients, ``requires_grad`` and modes are left as they are.

    Raises:
        ValueError: when called: no batch, or no labelled token in them.
    """

    def __call__(self, supernet: Supernet, batches: Batches) -> dict[str, Tensor]:
        """Scores per axis in float32, on the CPU."""
        modules = [module for layer in (supernet.shared_modules, *supernet.layer_modules) for module in layer]
        weights = list({id(p): p for m in modules for p in m._parameters.values() if p is not None}.values())
        totals: dict[str, Tensor] = {}
        tokens = 0
        with evaluating(supernet.model), differentiable(weights):
            for batch in batches:
                count = self._add(supernet, batch, weights, totals)
                tokens += count
        if not tokens:
            raise no_batches()
        return {key: (value / tokens).abs().cpu() for key, value in totals.items()}

    @staticmethod
    def _add(
        supernet: Supernet, batch: Mapping[str, Tensor], weights: Sequence[nn.Parameter], totals: dict[str, Tensor]
    ) -> int:
        """Adds the products of one batch, times its number of labelled tokens, which is returned."""
        with torch.enable_grad():
            loss, count = summed_token_loss(supernet.model, batch)
            if not count:
                return 0
            # Of the mean, whose gradients low precision can hold.
            found = torch.autograd.grad(loss / count, weights, allow_unused=True)
        gradients = {id(weight): gradient for weight, gradient in zip(weights, found, strict=True)}
        del found

        def product(weight: nn.Parameter) -> Tensor:
            gradient = gradients.pop(id(weight))
            return torch.zeros_like(weight, dtype=torch.float32) if gradient is None else weight.float() * gradient

        with torch.no_grad():
            for key, value in fold_weights(supernet, product).items():
                totals[key] = totals[key] + count * value if key in totals else count * value
        return count


def mean_gradients(supernet: Supernet, weights: Sequence[nn.Parameter], batches: Batches) -> list[Tensor]:
    """dL/dw of each weight, of its shape and in its precision, L the mean token cross-entropy of all batches: for
    criteria that are not linear in the gradient. A weight that the loss does not reach has zeros. The model's
    gradients, ``requires_grad`` and modes are left as they are.

    Raises:
        ValueError: no batch, or no labelled token in them.
    """
    means: list[Tensor] | None = None
    tokens = 0
    with evaluating(supernet.model), differentiable(weights), torch.enable_grad():
        for batch in batches:
            loss, count = summed_token_loss(supernet.model, batch)
            if not count:
                continue
            tokens += count
            found = torch.autograd.grad(loss / count, weights, allow_unused=True, materialize_grads=True)
            if means is None:
                means = list(found)
                continue
            for mean, gradient in zip(means, found, strict=True):  # no sum, which low precision might not hold
                mean.lerp_(gradient, count / tokens)
    if means is None:
        raise no_batches()
    return means


@contextmanager
def differentiable(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Frozen weights have gradients too, inside the block."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)
