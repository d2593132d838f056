"""Statistics of what a projection reads, X (in, tokens), summed over calibration batches.

``Hessian``: 2 X X^T (in, in), of the squared error ||W X - W' X||^2 of each row of W (Frantar et al., "Optimal Brain
Compression", 2022, section 4); for SparseGPT and GPTQ. ``ChannelNorms``: ||X_j||_2 of each input channel j (in,); for
Wanda. ``SecondMoment``: X X^T (in, in), of the principal components of X; for SliceGPT. The first two are float32, the
last is float64. Padding tokens are none of the tokens. ``inverse_cholesky`` is what both read of a Hessian.
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
        return finite(self.matrix)


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
        return finite(self._squares)

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
        return finite(self.matrix)


def finite(values: Tensor) -> bool:
    """Whether all are finite, without a tensor of answers: NaN and infinity pass through to the extremes."""
    return all(bool(extreme.isfinite()) for extreme in values.aminmax())


def inverse_cholesky(hessian: Tensor, damping: float, *, overwrite: bool = False) -> Tensor:
    """The upper Cholesky factor U (in, in) of the inverse of the damped Hessian: H^-1 = U^T U.

    ``damping`` is added to the diagonal as a fraction of its mean. Channels that are never active have it alone. With
    ``overwrite`` the factor takes the Hessian's memory; otherwise a copy of it, and no more either way.

    Raises:
        torch.linalg.LinAlgError: there is none; an overwritten Hessian is lost then too.
    """
    damped = hessian.mT if overwrite else hessian.mT.clone(memory_format=torch.preserve_format)
    assert damped.mT.is_contiguous()  # columns, as LAPACK reads them: it would copy anything else
    mean = damped.diagonal().mean()
    damped.diagonal().add_(damping * mean if mean > 0 else 1.0)  # nothing is active: every channel costs the same
    torch.linalg.cholesky(damped, out=damped)
    torch.cholesky_inverse(damped, out=damped)
    return torch.linalg.cholesky(damped, upper=True, out=damped)
