"""Importance by weights times activations, after Wanda (Sun et al., 2023, equation 1), per unit instead of per weight.

Wanda scores a weight by S_ij = |W_ij| * ||x_j||_2, x_j input channel j of the projection over all tokens. An input
channel then scores (sum_i S_ij^2)^1/2 = ||W[:, j]||_2 * ||x_j||_2: the norm of what it adds to the output, and of what
the output loses without it. Units of several channels or readers: the root of the sum of squares over them.

- FFN neuron: its channel of the down projection;
- head, KV group: their channels of the output projection;
- hidden channel: its channel of every projection that reads the residual stream, the output head among them.

W has the shape (out, in), x (tokens, in). Padding does not count. One pass, sums of squares in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_llm.importance.recording import Batches, observe, per_token, readers
from nas_llm.models.supernet import Supernet

_AXES: dict[str, tuple[tuple[str, ...], ...]] = {  # axis of the readers -> axes that are scored by what they read
    "hidden": (("hidden",),),
    "ffn": (("ffn",),),
    "kv_groups": (("kv_groups",), ("kv_groups", "heads_per_group")),
}


@dataclass(frozen=True)
class Wanda:
    """Column norms of the reading projections times the norms of what they read.

    Raises:
        ValueError: when called: no batch.
    """

    @torch.no_grad()
    def __call__(self, supernet: Supernet, batches: Batches) -> dict[str, Tensor]:
        """Scores per axis in float32, on the CPU."""
        found = [(axis, reader) for axis in _AXES for reader in readers(supernet, axis)]
        squares: dict[str, Tensor] = {}

        def record(key: str, read: Tensor, written: Tensor, mask: Tensor) -> None:
            kept = per_token(read, mask) * mask.unsqueeze(-1)
            added = kept.square().sum((0, 1))
            squares[key] = squares[key] + added if key in squares else added

        observe(supernet, batches, {str(n): reader.module for n, (_, reader) in enumerate(found)}, record)
        totals: dict[str, Tensor] = {}
        for number, (axis, reader) in enumerate(found):
            channels = reader.weight.float().square().sum(0) * squares[str(number)]
            for axes in _AXES[axis]:
                if reader.inputs.carries(axes):
                    key = "hidden" if axis == "hidden" else f"layers.{reader.layer}.{axes[-1]}"
                    folded = reader.inputs.fold(channels, reader.module.elastic_full, axes)
                    totals[key] = totals[key] + folded if key in totals else folded
        return {key: value.sqrt().cpu() for key, value in totals.items()}
