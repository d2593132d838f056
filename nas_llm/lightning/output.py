"""From a causal language model to the loss of its next tokens, without its full logits.

Every family computes logits = cap(W h + b) from the hidden states h (batch, sequence, hidden) that its body returns;
here are that body, that output layer and the positions that count, so that the loss can be taken in chunks of tokens.
``check_output_layer`` compares with the model's own logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nas_llm.distillation.chunked import ChunkLoss, OutputLayer, chunked_loss
from nas_llm.distillation.mix import IGNORED, hard_loss

# Logits held at a time: small enough for a CPU's cache, large enough to fill a GPU.
_CHUNK_NUMBERS = {"cpu": 2**22}
_CHUNK_NUMBERS_GPU = 2**26


@dataclass(frozen=True)
class Targets:
    """The counted positions of a batch: ``positions`` (tokens,) into the flattened (batch x sequence), ``labels``
    (tokens,) their next tokens."""

    positions: Tensor
    labels: Tensor

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Targets:
        """Labels are aligned with ``input_ids`` and shifted here; -100 is not counted."""
        labels = batch["labels"]
        following = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], dim=1).flatten()
        positions = (following != IGNORED).nonzero().squeeze(1)
        return cls(positions, following[positions])

    def __len__(self) -> int:
        return len(self.labels)


def hidden_states(model: PreTrainedModel, batch: Mapping[str, Tensor], targets: Targets) -> Tensor:
    """What the output layer reads at the counted positions: (tokens, hidden)."""
    outputs = model.base_model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, return_dict=True
    )
    return outputs.last_hidden_state.flatten(0, 1).index_select(0, targets.positions)


def output_loss(model: PreTrainedModel, hidden: Tensor, loss: ChunkLoss, *, gradient_scale: float = 1.0) -> Tensor:
    """Sum of ``loss`` over tokens, from ``hidden`` (tokens, hidden); an output layer that is not linear gives all its
    logits at once."""
    head = model.get_output_embeddings()
    softcap = _softcap(model)
    if not isinstance(head, nn.Linear):
        return loss(OutputLayer(hidden, softcap=softcap).cap(head(hidden)), 0, len(hidden))
    layer = OutputLayer(head.weight, head.bias, softcap)
    budget = _CHUNK_NUMBERS.get(hidden.device.type, _CHUNK_NUMBERS_GPU)
    chunk_tokens = max(16, budget // layer.weight.shape[0])
    return chunked_loss(hidden, layer, loss, chunk_tokens=chunk_tokens, gradient_scale=gradient_scale)


def next_token_loss(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Sum of the cross-entropies of the counted tokens (a scalar), and their number."""
    targets = Targets.of(batch)
    hidden = hidden_states(model, batch, targets)
    return output_loss(model, hidden, lambda z, a, b: hard_loss(z, targets.labels[a:b])), len(targets)


@torch.no_grad()
def check_output_layer(model: PreTrainedModel) -> None:
    """Compare the logits taken in chunks with the model's own, on eight tokens.

    Raises:
        ValueError: the model computes its logits in a way that this package does not know.
    """
    tokens = torch.arange(8, device=model.device)[None] % model.config.vocab_size
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    was_training = model.training
    model.eval()
    own = model(input_ids=tokens, attention_mask=batch["attention_mask"], use_cache=False).logits[0, :-1]
    ours = torch.empty_like(own)

    def keep(logits: Tensor, start: int, stop: int) -> Tensor:
        ours[start:stop] = logits
        return logits.new_zeros(())

    output_loss(model, hidden_states(model, batch, Targets.of(batch)), keep)
    model.train(was_training)
    difference, scale = (own - ours).abs().max().item(), own.abs().max().item()
    if difference > 1e-2 * scale:
        raise ValueError(
            f"model.path: the logits of {type(model).__name__} are not those of its output layer (they differ by "
            f"{difference:.3g} of {scale:.3g}); training knows linear output layers, with a bias and a softcap"
        )


def _softcap(model: PreTrainedModel) -> float | None:
    return getattr(model.config, "final_logit_softcapping", None)
