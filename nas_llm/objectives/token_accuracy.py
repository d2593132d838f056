"""Share of the labelled tokens, in percent, that the network finds the likeliest after those before them.

Logits have shape (batch, sequence, vocabulary); those at t are held against the label at t + 1. It tells of any text
what multiple-choice accuracy tells of test sets, in a unit that a reader knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from nas_llm.architecture import Architecture
from nas_llm.models.modes import evaluating
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.loss import IGNORED, labelled_logits
from nas_llm.objectives.protocol import Batch, Direction


@dataclass(frozen=True, eq=False)
class TokenAccuracy:
    """Top-1 accuracy of the sub-network inside the super-network; every labelled token weighs the same.

    Raises:
        ValueError: no batches, or no labelled token in them.
    """

    name: ClassVar[str] = "token_accuracy"
    unit: ClassVar[str] = "%"
    direction: ClassVar[Direction] = "max"

    batches: Sequence[Batch] = field(repr=False)

    @torch.inference_mode()
    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        right = tokens = 0
        with supernet.activate(architecture) as model, evaluating(model):
            for batch in self.batches:
                logits, labels = labelled_logits(model, batch)
                right += int((logits.argmax(-1) == labels).sum())
                tokens += int((labels != IGNORED).sum())
        if tokens == 0:
            raise ValueError(
                f"objectives=[token_accuracy]: there is no labelled token in {len(self.batches)} batches, so there is "
                "nothing to measure"
            )
        return 100 * right / tokens
