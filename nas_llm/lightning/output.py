"""From a causal language model to the loss of its next tokens, without its full logits.

Every family computes logits = cap(W h + b) from the hidden states h (batch, sequence, hidden) of its body. The
loss is taken in chunks of tokens inside the forward pass of that output layer, so that its weight is read where a
sharding strategy has gathered it, and nowhere else. ``check_output_layer`` compares with the model's own logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nas_llm.distillation.chunked import ChunkLoss, OutputLayer, chunked_loss
from nas_llm.distillation.mix import IGNORED, hard_loss
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.peft.head import linear_parts

# Logits held at a time: small enough for a CPU's cache, large enough to fill a GPU.
_CHUNK_NUMBERS = {"cpu": 2**22}
_CHUNK_NUMBERS_GPU = 2**26
# Every chunk reads and writes the gradient of the whole weight: with fewer tokens than this that takes the time.
_CHUNK_TOKENS = 128


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


def output_loss(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    targets: Targets,
    loss: ChunkLoss,
    *,
    gradient_scale: float = 1.0,
    keep_hidden: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Sum of ``loss`` over the counted tokens of a forward pass; an output layer that is not linear gives all their
    logits at once. ``keep_hidden`` is given what the output layer reads, (tokens, hidden), before.

    Raises:
        ValueError: the model does not call its output layer.
    """
    head, softcap = model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)
    plain_forward = head.forward

    def total(hidden: Tensor) -> Tensor:
        if keep_hidden is not None:
            keep_hidden(hidden)
        parts = linear_parts(head, hidden)
        if parts is not None:
            read, weight, low_rank, bias = parts
            layer = OutputLayer(weight, bias, softcap, low_rank)
            chunk = chunk_tokens(weight.shape[0], hidden.device.type)
            return chunked_loss(read, layer, loss, chunk_tokens=chunk, gradient_scale=gradient_scale)
        return loss(OutputLayer(hidden, softcap=softcap).cap(plain_forward(hidden)), 0, len(hidden))

    return _inside_output_layer(model, batch, targets, total)


def output_hidden(model: PreTrainedModel, batch: Mapping[str, Tensor], targets: Targets) -> Tensor:
    """What the output layer reads of the counted tokens, (tokens, hidden), without its products.

    Raises:
        ValueError: the model does not call its output layer.
    """
    return _inside_output_layer(model, batch, targets, lambda hidden: hidden)


def output_layer(model: PreTrainedModel, hidden: int, dtype: torch.dtype) -> OutputLayer:
    """The output layer of a network of this width, for products in ``dtype``, whatever sub-network is active.

    Where weights are sharded, it can be read inside the output layer's forward alone, as the loss is.

    Raises:
        ValueError: the layer is not linear.
    """
    head, softcap = model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"training.teacher_logits=recomputed: the output layer of {type(model).__name__} is not linear; "
            "set training.teacher_logits=recorded"
        )
    quantized = isinstance(head, QuantizedLinear)
    weight = head.weight if quantized else head._parameters["weight"]  # whole: the attributes are slices
    bias = head._parameters.get("bias")
    assert weight is not None
    return OutputLayer(
        weight.detach()[:, :hidden].to(dtype), None if bias is None else bias.detach().to(dtype), softcap
    )


def chunk_tokens(vocabulary: int, device: str) -> int:
    """Tokens whose logits are held at a time, on this kind of device."""
    return max(_CHUNK_TOKENS, _CHUNK_NUMBERS.get(device, _CHUNK_NUMBERS_GPU) // vocabulary)


def _inside_output_layer(
    model: PreTrainedModel, batch: Mapping[str, Tensor], targets: Targets, compute: Callable[[Tensor], Tensor]
) -> Tensor:
    """Run the model; ``compute`` gets the hidden states of the counted tokens in its output layer's place."""
    found: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        found.append(compute(hidden.flatten(0, 1).index_select(0, targets.positions)))
        return hidden[..., :0]  # no logits: what the model still does with them costs nothing

    with _replaced_forward(model.get_output_embeddings(), forward):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    if len(found) != 1:
        raise ValueError(
            f"model.path: {type(model).__name__} calls its output layer {len(found)} times in a forward pass; "
            "training knows models that call it once"
        )
    return found[0]


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before


def next_token_loss(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Sum of the cross-entropies of the counted tokens (a scalar), and their number."""
    targets = Targets.of(batch)
    return output_loss(model, batch, targets, lambda z, a, b: hard_loss(z, targets.labels[a:b])), len(targets)


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

    output_loss(model, batch, Targets.of(batch), keep)
    model.train(was_training)
    difference, scale = (own - ours).abs().max().item(), own.abs().max().item()
    if difference > 1e-2 * scale:
        raise ValueError(
            f"model.path: the logits of {type(model).__name__} are not those of its output layer (they differ by "
            f"{difference:.3g} of {scale:.3g}); training knows linear output layers, with a bias and a softcap"
        )
