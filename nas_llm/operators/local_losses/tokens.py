"""The tokens that a local loss counts."""

from __future__ import annotations

import torch
from torch import Tensor


def counted(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, hidden) both, in float32 or wider, without padding.

    Padding is left out, not multiplied by zero: what stands there may be NaN, and so would the gradient be.

    Raises:
        ValueError: no token counts.
    """
    dtype = torch.promote_types(teacher.dtype, torch.float32)
    if not mask.any():
        raise ValueError("a batch holds nothing but padding: no token counts in a local loss")
    chosen = (student.flatten(0, -2), teacher.flatten(0, -2)) if mask.all() else (student[mask], teacher[mask])
    return chosen[0].to(dtype), chosen[1].to(dtype)
