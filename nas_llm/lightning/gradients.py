"""Gradients of several backward passes, summed over ranks once per optimizer step.

Sub-networks leave parameters without gradient, and a step has many backward passes: a reducer that runs in each of
them would wait for gradients that never come, and send what is not finished. So gradients stay on their rank until the
step's end and then travel in flat buckets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET_BYTES = 32 * 2**20


def existing(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients that are there."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its sum over ranks. Every rank must pass tensors of the same shapes in the same
    order."""
    for bucket in _buckets(tensors):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            dist.all_reduce(bucket[0])
            continue
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        dist.all_reduce(flat)
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def scale_and_clip(gradients: list[Tensor], factor: Tensor, max_norm: float | None) -> Tensor | None:
    """Multiply by ``factor`` (a scalar) and, where ``max_norm`` is given, clip to that norm; returns the norm before
    clipping."""
    if max_norm is None or not gradients:
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.device))
        return None
    norm = torch.nn.utils.get_total_norm(gradients) * factor
    clipped = factor * (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(clipped.to(gradient.device))
    return norm


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or size + tensor.nbytes > _BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
