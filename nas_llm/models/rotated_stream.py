"""A residual stream whose basis changes at every sublayer, as SliceGPT leaves it (Ashkboos et al., "SliceGPT: Compress
Large Language Models by Deleting Rows and Columns", 2024, sections 3.2 to 3.4).

    y = x S + f(norm(x)),    S = Q^T Q' (width, width),    norm(x) = x / sqrt(sum(x^2) / norm_width + eps)

x (tokens, width) is in the basis Q (hidden, width) of what the sublayer reads, y in the basis Q' of what the next one
reads; f is the family's own attention or feed-forward network with rotated weights. Norms have neither weights nor
means any more: :func:`fold_norms` puts their weights and biases into the projections that read them and the
subtraction of a LayerNorm's mean into the weights that write the stream. The blocks' own code adds x to what its
sublayer wrote, so that a norm keeps x and a hook adds x (S - I) behind the sublayer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from nas_llm.models.families import HIDDEN, Family, family_of

KEY = "rotated_stream"  # in the description of a cut model: the arguments of place_norms
DROPOUTS = ("hidden_dropout", "resid_pdrop", "dropout")  # of what a sublayer writes, to which x (S - I) belongs here


class StreamNorm(nn.Module):
    """x (..., width) -> x / sqrt(sum(x^2) / norm_width + eps); ``norm_width`` is the width before it was sliced.

    ``shortcut`` holds (S - I)^T (width, width), for the sublayer behind which ``add_shortcut`` is a forward hook; None
    where the sublayers of a block share their input and another norm has it.
    """

    def __init__(self, norm_width: int, eps: float, shortcut: nn.Linear | None) -> None:
        super().__init__()
        self.norm_width, self.eps, self.shortcut = norm_width, eps, shortcut
        self._read: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.shortcut is not None:
            self._read = hidden_states
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        squares = wide.square().sum(-1, keepdim=True) / self.norm_width
        return (wide * torch.rsqrt(squares + self.eps)).to(hidden_states.dtype)

    def add_shortcut(self, sublayer: nn.Module, args: Any, output: Any) -> Any:
        """What the sublayer wrote, (..., width) or a tuple that begins with it, and x (S - I)."""
        read, self._read = self._read, None
        assert read is not None, "the sublayer ran without its norm"
        assert self.shortcut is not None
        moved = self.shortcut(read)
        return (output[0] + moved, *output[1:]) if isinstance(output, tuple) else output + moved

    def extra_repr(self) -> str:
        return f"norm_width={self.norm_width}, eps={self.eps}"


@dataclass(frozen=True)
class Signal:
    """The residual stream at a place of a block, under the names of modules in the block.

    Args:
        norms: that read it, each with the projections behind it; the first one holds the rotation.
        writers: projections that add to it on its way to the next signal.
        sublayer: behind which x (S - I) is added.
    """

    norms: Mapping[str, tuple[str, ...]]
    writers: tuple[str, ...]
    sublayer: str

    @property
    def rotation(self) -> str:
        """The norm that holds the rotation."""
        return next(iter(self.norms))


@dataclass(frozen=True)
class _Places:
    """The norm before attention, that before the feed-forward network, and the last module of the latter."""

    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    mlp: str = "mlp"


_PLACES = {
    "llama": _Places(),
    "mistral": _Places(),
    "qwen2": _Places(),
    "qwen3": _Places(),
    "phi3": _Places(),
    "phi": _Places(mlp_norm="input_layernorm"),  # one norm for both
    "gpt_neox": _Places(),
    "opt": _Places("self_attn_layer_norm", "final_layer_norm", "fc2"),
}
_OTHER_OPT = {"do_layer_norm_before": False, "_remove_final_layer_norm": True}  # opt-350m


def refuse_stream(config: PreTrainedConfig) -> None:
    """Raises:
    ValueError: the residual stream of this family, or of this variant of it, cannot be rotated.
    """
    family = config.model_type
    if family not in _PLACES:
        raise ValueError(
            f"a model of family {family!r} cannot be rotated by sublayer; set model.path to one of "
            f"{', '.join(sorted(_PLACES))}, or choose another baseline="
        )
    if family == "opt":
        wrong = [f"{key}={value}" for key, value in _OTHER_OPT.items() if getattr(config, key) == value]
        if "model.decoder.project_in" in family_of(config).shared:
            wrong.append("word_embed_proj_dim unlike hidden_size")
        if wrong:
            raise ValueError(
                f"an opt model with {' and '.join(wrong)} cannot be rotated by sublayer, for its norms do not stand "
                "before its sublayers: set model.path to another size of opt"
            )


def is_rotated(model: PreTrainedModel) -> bool:
    """Whether the model's own description says so."""
    return KEY in (getattr(model.config, "nas_llm", None) or {})


def signals_of(config: PreTrainedConfig) -> tuple[Signal, ...]:
    """The two signals of a block, or the one that both sublayers read in parallel.

    Raises:
        ValueError: as :func:`refuse_stream`.
    """
    refuse_stream(config)
    row, places = family_of(config), _PLACES[config.model_type]
    reads = [name for name, layout in row.layer.items() if len(layout) == 2 and layout[1] == HIDDEN]
    writes = [name for name, layout in row.layer.items() if len(layout) == 2 and layout[0] == HIDDEN]
    inside = f"{row.attention}."
    attention = tuple(name for name in reads if name.startswith(inside))
    mlp = tuple(name for name in reads if not name.startswith(inside))
    if places.mlp_norm == places.attention_norm:
        return (Signal({places.attention_norm: attention + mlp}, tuple(writes), row.attention),)
    if config.model_type == "gpt_neox" and config.use_parallel_residual:
        return (Signal({places.attention_norm: attention, places.mlp_norm: mlp}, tuple(writes), row.attention),)
    return (
        Signal({places.attention_norm: attention}, tuple(n for n in writes if n.startswith(inside)), row.attention),
        Signal({places.mlp_norm: mlp}, tuple(n for n in writes if not n.startswith(inside)), places.mlp),
    )


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    return list(model.get_submodule(family_of(model.config).layers).children())


def embeddings_of(model: PreTrainedModel) -> list[nn.Embedding]:
    """Tables (entries, width) whose rows the stream begins with: of tokens, and of learned positions."""
    shared = family_of(model.config).shared
    return [module for name, module in model.named_modules() if name in shared and isinstance(module, nn.Embedding)]


def output_layer_of(model: PreTrainedModel) -> nn.Linear:
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head


@torch.no_grad()
def fold_norms(model: PreTrainedModel) -> None:
    """Gives every norm of the stream weights of one and a bias of zero, in place; the model's function stays.

    Tied embeddings get a weight each. Computed in float64, one weight at a time.

    Raises:
        ValueError: as :func:`refuse_stream`.
    """
    head, embeddings = output_layer_of(model), embeddings_of(model)
    if any(head.weight is embedding.weight for embedding in embeddings):
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        model.config.tie_word_embeddings = False
    centred = False
    for _, _, norm, readers, _ in _norms(model):
        centred = centred or isinstance(norm, nn.LayerNorm)
        bias = norm._parameters.get("bias")
        _add_missing_biases(norm, readers)
        for reader in readers:
            weight = reader.weight.double()
            if bias is not None:
                reader.bias.add_((weight @ bias.double()).to(reader.bias.dtype))
            reader.weight.copy_(weight * norm.weight.double())
        norm.weight.fill_(1)
        if bias is not None:
            bias.zero_()
    if not centred:
        return
    for embedding in embeddings:
        table = embedding.weight.double()
        embedding.weight.copy_(table - table.mean(1, keepdim=True))
    for block in blocks_of(model):
        for name in (name for signal in signals_of(model.config) for name in signal.writers):
            for parameter in block.get_submodule(name).parameters():  # (width, in) and (width,)
                wide = parameter.double()
                parameter.copy_(wide - wide.mean(0, keepdim=True))


def place_norms(model: PreTrainedModel, norm_width: int) -> None:
    """Puts :class:`StreamNorm` in the place of every norm of the stream, in place, with rotations of zero (S = I).

    Of a model whose norms are folded the function stays, if ``norm_width`` is its width.

    Raises:
        ValueError: as :func:`refuse_stream`.
    """
    for place, name, norm, readers, sublayer in list(_norms(model)):
        _add_missing_biases(norm, readers)
        eps = norm.eps if isinstance(norm, nn.LayerNorm) else norm.variance_epsilon
        shortcut = None
        if sublayer is not None:
            width, like = norm.weight.shape[0], norm.weight
            shortcut = nn.Linear(width, width, bias=False, device=like.device, dtype=like.dtype)
            nn.init.zeros_(shortcut.weight)
        made = StreamNorm(norm_width, eps, shortcut).train(norm.training)
        setattr(place, name, made)
        if sublayer is not None:
            sublayer.register_forward_hook(made.add_shortcut)


def _norms(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, Any, list[Any], nn.Module | None]]:
    """Every norm of the stream: (the module it lies in, its name there, the norm, the projections behind it, the
    sublayer behind which it adds x (S - I))."""
    for block in blocks_of(model):
        for signal in signals_of(model.config):
            for name, readers in signal.norms.items():
                sublayer = block.get_submodule(signal.sublayer) if name == signal.rotation else None
                yield block, name, getattr(block, name), [block.get_submodule(reader) for reader in readers], sublayer
    parent, _, name = final_norm(family_of(model.config)).rpartition(".")
    place = model.get_submodule(parent)
    yield place, name, getattr(place, name), [output_layer_of(model)], None


def final_norm(row: Family) -> str:
    """Name of the norm behind the last block."""
    return next(name for name, layout in row.shared.items() if layout == (HIDDEN,))


def _add_missing_biases(norm: nn.Module, readers: list[Any]) -> None:
    """A norm's bias needs one in every projection that reads it."""
    for reader in readers if norm._parameters.get("bias") is not None else ():
        if reader.bias is None:
            bias = reader.weight.detach().new_zeros(reader.weight.shape[0])
            reader.bias = nn.Parameter(bias, requires_grad=reader.weight.requires_grad)
