"""Statistics of what a projection reads, X (in, tokens), summed over calibration batches, in float32 if
nothing else is said.

``Hessian``: 2 X X^T (in, in), of the squared error ||W X - W' X||^2 of each row of W (Frantar et al., "Optimal Brain
Compression", 2022, section 4); for SparseGPT and GPTQ. ``ChannelNorms``: ||X_j||_2 of each input channel j (in,); for
Wanda. ``SecondMoment``: X X^T (in, in) in float64, for principal components. Padding tokens are none of the tokens. ``inverse_cholesky`` is what both read of a Hessian.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Hessian:
    """``matrix``: (in, in), symmetric; ``tokens`` are counted in it."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.matrix = torch.zeros(in_features, in_features, device=device)
        self.tokens = 0

    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, in), float32."""
        self.matrix.addmm_(inputs.T, inputs, alpha=2.0)
        self.tokens += inputs.shape[0]

    def is_finite(self) -> bool:
        return bool(self.matrix.isfinite().all())


class ChannelNorms:
    """``norms``: (in,); ``tokens`` are counted in them."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._squares = torch.zeros(in_features, device=device)
        self.tokens = 0

    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, in), float32."""
        self._squares += inputs.square().sum(0)
        self.tokens += inputs.shape[0]

    def is_finite(self) -> bool:
        return bool(self._squares.isfinite().all())

    @property
    def norms(self) -> Tensor:
        return self._squares.sqrt()


class SecondMoment:
    """``matrix``: (in, in), symmetric, float64; ``tokens`` are counted in it. Nothing is centred."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.matrix = torch.zeros(in_features, in_features, device=device, dtype=torch.float64)
        self.tokens = 0

    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, in), float32."""
        wide = inputs.double()
        self.matrix.addmm_(wide.T, wide)
        self.tokens += inputs.shape[0]

    def is_finite(self) -> bool:
        return bool(self.matrix.isfinite().all())


def inverse_cholesky(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor U (in, in) of the inverse of the damped Hessian: H^-1 = U^T U.

    ``damping`` is added to the diagonal as a fraction of its mean. Channels that are never active have it alone.

    Raises:
        torch.linalg.LinAlgError: there is none.
    """
    damped = hessian.clone()
    mean = damped.diagonal().mean()
    damped.diagonal().add_(damping * mean if mean > 0 else 1.0)  # nothing is active: every channel costs the same
    torch.linalg.cholesky(damped, out=damped)
    torch.cholesky_inverse(damped, out=damped)
    return torch.linalg.cholesky(damped, upper=True)
