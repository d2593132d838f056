"""The networks of a space that losses are told of by name: the largest, the middle and the smallest."""

from __future__ import annotations

import torch
from torch import Tensor

from nas_llm.architecture import Architecture
from nas_llm.search_space import SearchSpace


def references(space: SearchSpace) -> dict[str, Architecture]:
    """What validation measures; one network alone is the largest."""
    largest, middle, smallest = space.largest(), space.middle(), space.smallest()
    if largest == smallest:
        return {"largest": largest}
    return {"largest": largest, "middle": middle, "smallest": smallest}


def losses_by_name(architectures: list[Architecture], losses: Tensor, space: SearchSpace) -> dict[str, Tensor]:
    """Losses (architectures,) of a training step by what they are of: largest, smallest, and the mean of the others as
    sampled."""
    largest, smallest = space.largest(), space.smallest()
    named: dict[str, Tensor] = {}
    sampled = []
    for position, (architecture, loss) in enumerate(zip(architectures, losses, strict=True)):
        if position == 0 and architecture == largest:
            named["largest"] = loss
        elif position == len(architectures) - 1 and architecture == smallest:
            named["smallest"] = loss
        else:
            sampled.append(loss)
    if sampled:
        named["sampled"] = torch.stack(sampled).mean()
    return named
