"""Importance of layers, which orders the depth axis (paper 4's block importance).

- ``cosine``: 1 - cos(x, f(x)), x the residual stream before a block and f(x) behind it, the mean over all tokens (Men
  et al., "ShortGPT", 2024, equation 1): a block that turns the stream little matters little. One pass.
- ``loss``: how much the mean token cross-entropy grows when the block is removed; ``perplexity``: how much its
  exponential does (the same order, other distances). One pass for the whole network and one for each block.
- ``first_n``, ``last_n``: the controls, which keep the first or the last layers and look at no data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_llm.architecture import Architecture
from nas_llm.importance.recording import Batches, no_batches, observe, per_token
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.loss import mean_token_loss

Method = Literal["cosine", "loss", "perplexity", "first_n", "last_n"]


@dataclass(frozen=True)
class Block:
    """One score per transformer block, under the key ``layers``.

    Raises:
        ValueError: an unknown method; when called: no batch, a single layer that cannot be removed, or a perplexity
            beyond what a float can hold.
    """

    method: Method = "cosine"

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"importance.method={self.method!r}: allowed are {', '.join(get_args(Method))}")

    def __call__(self, supernet: Supernet, batches: Batches = ()) -> dict[str, Tensor]:
        """``layers`` (depth,), float32, on the CPU."""
        depth = supernet.largest().num_layers
        if self.method == "first_n":
            return {"layers": torch.arange(depth, 0, -1, dtype=torch.float32)}
        if self.method == "last_n":
            return {"layers": torch.arange(1, depth + 1, dtype=torch.float32)}
        scores = _turns(supernet, batches) if self.method == "cosine" else self._growths(supernet, batches)
        return {"layers": torch.tensor(scores, dtype=torch.float32)}

    def _growths(self, supernet: Supernet, batches: Batches) -> list[float]:
        """Of the loss, or the perplexity, without each block."""
        full, calibration = supernet.largest(), list(batches)
        if not calibration:
            raise no_batches()
        if full.num_layers == 1:
            raise ValueError(
                f"importance.method={self.method}: the network has one layer, which cannot be removed; "
                "allowed is importance.method=cosine"
            )
        losses = []
        for left_out in (None, *range(full.num_layers)):
            kept = tuple(layer for layer in full.layers if layer.index != left_out)
            with supernet.activate(Architecture(full.hidden, kept)) as model:
                losses.append(mean_token_loss(model, calibration))
        if self.method == "loss":
            return [loss - losses[0] for loss in losses[1:]]
        if max(losses) > math.log(torch.finfo(torch.float32).max):
            raise ValueError(
                f"importance.method=perplexity: a loss of {max(losses):.1f} nats/token has no finite perplexity; "
                "importance.method=loss gives the same order"
            )
        return [math.exp(loss) - math.exp(losses[0]) for loss in losses[1:]]


def _turns(supernet: Supernet, batches: Batches) -> list[float]:
    """Mean over tokens of 1 - cos(input, output) of every block."""
    sums = dict.fromkeys(range(supernet.largest().num_layers), 0.0)
    tokens = 0

    def record(key: str, read: Tensor, written: Tensor, mask: Tensor) -> None:
        nonlocal tokens
        turned = 1 - F.cosine_similarity(per_token(read, mask), per_token(written, mask), dim=-1)
        sums[int(key)] += float((turned * mask).sum())
        tokens += int(mask.sum()) if key == "0" else 0

    observe(supernet, batches, {str(index): block for index, block in enumerate(supernet.blocks)}, record)
    return [total / tokens for total in sums.values()]
