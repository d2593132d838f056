"""An initialisation of attention that looks back: the first two layers begin as an induction circuit, not as noise.

From random weights, attention takes thousands of steps without visible progress to learn "find where this was said
before and read on from there" (Olsson et al., "In-context Learning and Induction Heads", 2022); a small model on a CPU
has no such time. In the spirit of mimetic initialisation (Trockman & Kolter, 2023), the weights are drawn such that

- in layer 0 a head of offset s (1, 2, ...) attends to token t - s alone; the first ``offsets`` write its code
  write_s @ read @ x[t - s] into the residual stream;
- in layer 1 group g attends where the code at offset g + 1 is that of the query's own token at offset g, and copies
  the token that it finds there.

Shapes: x (hidden,), read (head_dim, hidden), write_s (hidden, head_dim). All weights are trained further as any other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class LookBack:
    """Norms of codes and copies relative to an embedding's, and the attention logits of a right match and position.

    Raises:
        ValueError: a model that is neither a Llama with attention_bias nor a GPT-NeoX, or is too small: of
            less than four key-value heads, or a hidden size of less than four heads.
    """

    seed: int = 0
    offsets: int = 4
    code: float = 0.9
    copy: float = 4.0
    match: float = 16.0
    position: float = 120.0
    embedding_std: float = 0.05

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel) -> None:
        """Initialises the embeddings and the first two layers of ``model`` in place; the rest stays as it is."""
        shape = _Shape.of(model.config, self.offsets)
        generator = torch.Generator().manual_seed(self.seed)
        (embeddings,) = model.get_input_embeddings().parameters()
        embeddings.normal_(0, self.embedding_std, generator=generator)
        length = self.embedding_std * shape.hidden**0.5
        embeddings.mul_(length / embeddings.norm(dim=1, keepdim=True))
        read = torch.randn(shape.size, shape.hidden, generator=generator) / shape.hidden**0.5
        mixed = torch.randn(shape.hidden, self.offsets * shape.size, generator=generator)
        writes = torch.linalg.qr(mixed).Q.reshape(shape.hidden, self.offsets, shape.size).unbind(1)
        _assign(model, 0, self._positions(shape, read, writes, length, generator))
        _assign(model, 1, self._matches(shape, read, writes, length, generator))

    def _positions(
        self, shape: "_Shape", read: Tensor, writes: tuple[Tensor, ...], length: float, generator: torch.Generator
    ) -> "_Attention":
        """Layer 0: constant queries and keys, which rotary embeddings turn into a peak at the head's offset."""
        weights = _Attention.noise(shape, generator)
        frequencies = shape.rope_theta ** (-torch.arange(shape.size // 2) / (shape.size // 2))
        strength = (self.position * 2 / shape.size**0.5) ** 0.5
        for group in range(shape.groups):
            weights.key_bias[group, : shape.size // 2] = strength
            for member in range(shape.per_group):
                turn = (group + 1 + member * shape.groups) * frequencies
                weights.query_bias[group * shape.per_group + member] = strength * torch.cat([turn.cos(), -turn.sin()])
        for offset, write in enumerate(writes):
            weights.value[offset] = read
            weights.output[:, offset * shape.per_group] = self.code * length / shape.size**0.5 * write
        return weights

    def _matches(
        self, shape: "_Shape", read: Tensor, writes: tuple[Tensor, ...], length: float, generator: torch.Generator
    ) -> "_Attention":
        """Layer 1: queries and keys read codes of neighbouring offsets; values and outputs together copy the token."""
        weights = _Attention.noise(shape, generator)
        stream = (1 + self.offsets * self.code**2) ** 0.5 * length  # norm of the residual stream
        own, code = (part / stream * shape.hidden**0.5 for part in (length, self.code * length))  # after normalisation
        slow = shape.size // 2 * 3 // 8  # pairs from here on turn slowly enough to carry content over a story
        content = torch.cat([torch.arange(slow, shape.size // 2), torch.arange(slow + shape.size // 2, shape.size)])
        gain = (self.match * shape.size**0.5 / len(content) * shape.size) ** 0.5
        columns = min(shape.hidden, shape.groups * shape.size)
        copies = torch.linalg.qr(
            torch.randn(shape.hidden, shape.groups * shape.size, generator=generator)[:, :columns]
        ).Q.T
        for group, write in enumerate(writes):
            mix = torch.randn(len(content), shape.size, generator=generator) / shape.size**0.5
            weights.key[group, content] = gain / code * mix @ write.T
            block = copies[group * shape.size : (group + 1) * shape.size]
            weights.value[group, : len(block)] = block
            for head in range(group * shape.per_group, (group + 1) * shape.per_group):
                from_token = gain / own * (shape.hidden / shape.size) ** 0.5 * mix @ read
                weights.query[head, content] = gain / code * mix @ writes[group - 1].T if group else from_token
                strength = self.copy * length / (own * self.offsets**0.5 * shape.per_group)
                weights.output[:, head, : len(block)] = strength * block.T
        return weights


@dataclass(frozen=True)
class _Shape:
    hidden: int
    heads: int
    groups: int
    size: int  # of a head
    rope_theta: float

    @classmethod
    def of(cls, config: PretrainedConfig, offsets: int) -> "_Shape":
        heads, hidden, groups, size = config.num_attention_heads, config.hidden_size, 0, 0
        if config.model_type == "llama" and config.attention_bias:
            groups, size = config.num_key_value_heads, config.head_dim
        if config.model_type == "gpt_neox":
            groups, size = heads, hidden // heads
        if groups >= offsets and hidden >= offsets * size:
            return cls(hidden, heads, groups, size, config.rope_parameters["rope_theta"])
        raise ValueError(
            f"pretrain.initialisation cannot start a {config.model_type} of this shape: it takes gpt_neox, or llama "
            f"with pretrain.model.attention_bias=true, of {offsets} key-value heads or more and a hidden "
            f"size of {offsets} heads or more"
        )

    @property
    def per_group(self) -> int:
        return self.heads // self.groups


@dataclass(frozen=True)
class _Attention:
    """Of one layer: query (heads, size, hidden), key and value (groups, size, hidden), output (hidden, heads, size)."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    query_bias: Tensor
    key_bias: Tensor

    @classmethod
    def noise(cls, shape: _Shape, generator: torch.Generator) -> "_Attention":
        return cls(
            query=torch.zeros(shape.heads, shape.size, shape.hidden),
            key=torch.zeros(shape.groups, shape.size, shape.hidden),
            value=0.02 * torch.randn(shape.groups, shape.size, shape.hidden, generator=generator),
            output=0.002 * torch.randn(shape.hidden, shape.heads, shape.size, generator=generator),
            query_bias=torch.zeros(shape.heads, shape.size),
            key_bias=torch.zeros(shape.groups, shape.size),
        )


def _assign(model: PreTrainedModel, layer: int, weights: _Attention) -> None:
    # Queries are noisy too, so that heads that begin alike can part.
    noise = torch.randn(weights.query.shape, generator=torch.Generator().manual_seed(layer))
    query = weights.query + 0.005 * noise
    llama = model.config.model_type == "llama"
    block = model.get_submodule(f"model.layers.{layer}" if llama else f"gpt_neox.layers.{layer}")
    parameters = dict(block.named_parameters())
    if llama:
        assigned = {
            "self_attn.q_proj.weight": query,
            "self_attn.q_proj.bias": weights.query_bias,
            "self_attn.k_proj.weight": weights.key,
            "self_attn.k_proj.bias": weights.key_bias,
            "self_attn.v_proj.weight": weights.value,
            "self_attn.o_proj.weight": weights.output,
        }
    else:
        values = torch.zeros_like(weights.query_bias)
        assigned = {
            "attention.query_key_value.weight": torch.stack([query, weights.key, weights.value], 1),
            "attention.query_key_value.bias": torch.stack([weights.query_bias, weights.key_bias, values], 1),
            "attention.dense.weight": weights.output,
        }
    for name, value in assigned.items():
        parameters[name].copy_(value.reshape(parameters[name].shape))
    if layer == 0:  # its feed-forward network would drown the codes
        parameters["mlp.down_proj.weight" if llama else "mlp.dense_4h_to_h.weight"].mul_(0.1)
