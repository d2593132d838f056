"""The micro-batches of one optimizer step, whose losses and gradients are sums until the step divides them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from nas_llm.architecture import Architecture
from nas_llm.lightning.sandwich import Passes


@dataclass
class StepWindow:
    """``architectures`` that every micro-batch trains, and its ``passes``; ``batches``: where each is from, in words.
    ``factor`` divides the sums of the gradients, ``norm`` is that of the divided ones; both are known when the step is
    made."""

    architectures: list[Architecture] = field(default_factory=list)
    passes: list[Passes] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)
    factor: Tensor | None = None
    norm: Tensor | None = None

    def add(self, passes: Passes, batch: str) -> None:
        self.passes.append(passes)
        self.batches.append(batch)

    def blamed(self, architecture: int) -> str:
        """The batches of this rank in which the loss of an architecture is not finite."""
        found = [b for p, b in zip(self.passes, self.batches, strict=True) if not p.losses[architecture].isfinite()]
        return ", ".join(found) or "a batch of another rank"
