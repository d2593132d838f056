"""Mean token cross-entropy -1/N sum log p(x_t | x_<t) in nats, over the N labelled tokens of all batches.

Logits have shape (batch, sequence, vocabulary); those at t are held against the label at t + 1. Labels of -100 do not
count. Every token weighs the same, however the batches are cut: sums are exact in float64, the softmax is float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from nas_llm.architecture import Architecture
from nas_llm.models.modes import evaluating
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.protocol import Batch, Direction

IGNORED = -100


@dataclass(frozen=True, eq=False)
class Loss:
    """Cross-entropy of the sub-network inside the super-network.

    Raises:
        ValueError: no batches, or no labelled token in them.
    """

    name: ClassVar[str] = "loss"
    unit: ClassVar[str] = "nats/token"
    direction: ClassVar[Direction] = "min"

    batches: Sequence[Batch] = field(repr=False)

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        with supernet.activate(architecture) as model:
            return mean_token_loss(model, self.batches)


@torch.inference_mode()
def mean_token_loss(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """Nats per token of a causal language model, which is put into evaluation mode for the time of it.

    Raises:
        ValueError: no batches, or no labelled token in them.
    """
    with evaluating(model):
        sums = [summed_token_loss(model, batch) for batch in batches]
    tokens = sum(count for _, count in sums)
    if tokens == 0:
        raise ValueError(
            f"objectives=[loss]: there is no labelled token in {len(sums)} batches, so there is no loss to measure"
        )
    return sum(loss.item() for loss, _ in sums) / tokens


def summed_token_loss(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
    """Sum of the labelled tokens' losses, a float64 scalar that can be differentiated, and their number.

    Without any such token no forward pass is run.
    """
    if not bool((batch["labels"][:, 1:] != IGNORED).any()):
        return torch.zeros((), dtype=torch.float64, device=model.device), 0
    logits, labels = labelled_logits(model, batch)
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.double().sum(), int((labels != IGNORED).sum())


def labelled_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (batch, sequence - 1, vocabulary) and the labels that they are held against (batch, sequence - 1)."""
    device = model.device
    logits = model(
        input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device), use_cache=False
    ).logits[:, :-1]
    return logits, batch["labels"].to(device)[:, 1:]
