"""The output layer as matrices: what it reads, its weight, and the low-rank part of an adapter beside it.

So that the loss can be taken in chunks of tokens (``distillation.chunked``), whatever stands in its place:

    plain           z = W h                  (h, W, None)
    LoRA            z = W h + B (s A h)      ([h, s A h], W, B): nothing of the size of W is made
    masked, QA      z = W~ h                 (h, W~, None), W~ the sum that the layer multiplies with
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Parts = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""What is read (tokens, hidden [+ rank]), the weight (vocabulary, hidden), the low-rank part (vocabulary, rank) or
None, and the bias (vocabulary,) or None."""


def linear_parts(head: nn.Module, hidden: Tensor) -> Parts | None:
    """Of an output layer that reads ``hidden`` (tokens, hidden); None where it is not linear in it, or is DoRA's."""
    if isinstance(head, nn.Linear):
        return hidden, head.weight, None, head.bias
    from peft.tuners.lora.layer import Linear as LoraLinear

    from nas_llm.peft.adapters import NAME, base_of, factors
    from nas_llm.peft.qa_sparse_lora import QaSparseLoraLinear
    from nas_llm.peft.sparse_lora import SparseLoraLinear

    if not isinstance(head, LoraLinear) or head.disable_adapters or head.merged or head.lora_magnitude_vector:
        return None
    base = base_of(head)
    if isinstance(head, SparseLoraLinear | QaSparseLoraLinear):
        return hidden, head.effective_weight(), None, base.bias
    untyped: Any = head
    features = untyped.lora_A[NAME](untyped.lora_dropout[NAME](hidden.to(factors(head)[0].dtype)))
    read = torch.cat([hidden, (features * head.scaling[NAME]).to(hidden.dtype)], dim=-1)
    return read, base.weight, factors(head)[1].to(base.weight.dtype), base.bias
