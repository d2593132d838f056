"""Multiple-choice accuracy in percent: the mean over the sets of the share of items whose right option is likeliest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from nas_llm.architecture import Architecture
from nas_llm.evaluation.multiple_choice import Choice, accuracies
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.protocol import Direction


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Accuracy of the sub-network inside the super-network; every set weighs the same.

    sets: name -> items, as ``nas_llm.data.microworld.multiple_choice_sets`` makes them; normalised: compare the options
    by their mean log-likelihood per token instead of by its sum; tokenizer: the model's, a runtime argument.

    Raises:
        ValueError: batch_size < 1; an empty set or an item that cannot be scored.
    """

    name: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "%"
    direction: ClassVar[Direction] = "max"

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    sets: Mapping[str, Sequence[Choice]] = field(repr=False)
    normalised: bool = False
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"objectives.accuracy.batch_size={self.batch_size} must be at least 1")
        for name, items in self.sets.items():
            if not items:
                raise ValueError(
                    f"objectives.accuracy.sets: the set {name!r} is empty; give it items, as "
                    "objectives.accuracy.sets.items_per_set=50"
                )

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        with supernet.activate(architecture) as model:
            scores = accuracies(model, self.tokenizer, self.sets, batch_size=self.batch_size)
        return 100 * float(np.mean([s.normalised if self.normalised else s.summed for s in scores.values()]))
