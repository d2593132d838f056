"""Multiple-choice accuracy in percent: the mean over the sets of the share of items whose right option is likeliest.

A search chooses by the items of ``sets``; those of ``test_sets``, none of which is among them, measure what it chose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from nas_llm.architecture import Architecture
from nas_llm.evaluation.multiple_choice import Choice, accuracies
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.protocol import Direction

GROUP = "objectives.accuracy."

Sets = Mapping[str, Sequence[Choice]]


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Accuracy of the sub-network inside the super-network; every set weighs the same.

    tokenizer, split: runtime arguments: the model's tokenizer, and "validation" where networks are chosen, "test" where
    they are measured.
    sets, test_sets: name -> items, as ``nas_llm.data.microworld.multiple_choice_sets`` makes them, of either split.
    normalised: compare the options by their mean log-likelihood per token instead of by its sum.

    Raises:
        ValueError: batch_size < 1; an empty set, or an item of the test that chooses networks too; from a call, an
            item that cannot be scored.
    """

    name: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "%"
    direction: ClassVar[Direction] = "max"

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    split: Literal["validation", "test"] = field(repr=False)
    sets: Sets = field(repr=False)
    test_sets: Sets = field(repr=False)
    normalised: bool = False
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"{GROUP}batch_size={self.batch_size} must be at least 1")
        for key in ("sets", "test_sets"):
            for name, items in getattr(self, key).items():
                if not items:
                    raise ValueError(
                        f"{GROUP}{key}: the set {name!r} is empty; give it items, as {GROUP}{key}.items_per_set=50"
                    )
        asked = [item for items in self.test_sets.values() for item in items]
        chosen = {(item.context, tuple(item.options)) for items in self.sets.values() for item in items}
        shared = sum((item.context, tuple(item.options)) in chosen for item in asked)
        if shared:
            raise ValueError(
                f"{GROUP}test_sets: {shared} of its {len(asked)} items are among those of {GROUP}sets, and what "
                f"chooses networks cannot measure them; set another {GROUP}test_sets.seed"
            )

    @property
    def samples(self) -> int:
        """Items of the split, over all sets."""
        return sum(map(len, self._asked.values()))

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        with supernet.activate(architecture) as model:
            scores = accuracies(model, self.tokenizer, self._asked, batch_size=self.batch_size)
        return 100 * float(np.mean([s.normalised if self.normalised else s.summed for s in scores.values()]))

    @property
    def _asked(self) -> Sets:
        return self.test_sets if self.split == "test" else self.sets
