"""Adapters made part of the weights they stand beside: W + scaling B A, and a check that the function stayed.

What was promised is kept or refused: a dense adapter would fill the zeros of a sparse weight, and cannot be added to
the codes of a quantised one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.quantized_weight import QuantizedWeight
from nas_llm.peft.adapters import base_of, factors, is_sparse, lora_layers, strip
from nas_llm.peft.qa_sparse_lora import QaSparseLoraLinear
from nas_llm.peft.sparse_lora import SparseLoraLinear

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer

# of float16 ten units in the last place (2^-10): its roundings alone make up to seven at rank 32
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
PROBES, LENGTH = 4, 32  # random tokens on which both are compared


class MergeDifference(ValueError):
    """The merged model's logits differ from the unmerged one's by more than the precision explains."""


@dataclass(frozen=True)
class Merged:
    """``difference``: the largest of the logits of random tokens, relative to the largest logit; ``sparse``: some of
    the weights are, which have ``zeros_before`` and ``zeros_after`` among ``size`` entries."""

    difference: float
    tolerance: float
    modules: int
    sparse: bool
    zeros_before: int
    zeros_after: int
    size: int

    @property
    def summary(self) -> str:
        """One sentence for the model card."""
        before, after = self.zeros_before / self.size, self.zeros_after / self.size
        kept = "" if not self.sparse else f"; {before:.2%} of the weights were zero before, {after:.2%} are after"
        return (
            f"The low-rank adapters of {self.modules} matrices are merged into the weights: the logits differ from the "
            f"unmerged ones by {self.difference:.1e} of their scale (at most {self.tolerance:.0e} is allowed){kept}."
        )


@torch.no_grad()
def merge(model: PreTrainedModel, tolerances: Mapping[torch.dtype, float] | None = TOLERANCES) -> Merged:
    """Merges the adapters of an extracted model in place and takes them off.

    ``tolerances`` of the logits, by the model's precision; None: whatever the difference is.

    Raises:
        ValueError: there are none (they may have been merged before), a merge would lose what the base promises, or
            the merged model's logits differ from the unmerged one's by more than the precision explains. The model is
            as it was in the first two cases.
    """
    layers = list(lora_layers(model))
    if not layers:
        raise ValueError("the model has no adapters to merge: they were merged before, or it never had any")
    for name, layer in layers:
        refuse_lossy(name, layer)
    weights: list[torch.Tensor] = [base_of(layer).weight for _, layer in layers]
    zeros_before, size = sum(map(_zeros, weights)), sum(weight.numel() for weight in weights)
    sparse = any(is_sparse(layer) for _, layer in layers)
    kept = [(layer, _promised(layer)) for _, layer in layers]
    before = _probe(model)
    _untie(model)
    for _, layer in layers:
        if isinstance(layer, QaSparseLoraLinear):
            layer.base_layer = layer.merged_base()
        else:
            layer.merge(safe_merge=True)
    strip(model)
    after = _probe(model)
    difference = ((before - after).abs().max() / before.abs().max()).item()
    tolerance = math.inf if tolerances is None else tolerances[model.dtype]
    if not difference <= tolerance:
        raise MergeDifference(
            f"the merged model's logits differ from the unmerged one's by {difference:.2g} of their scale; "
            f"{model.dtype} explains {tolerance:.0e}: export the adapters apart, export.adapters=separate"
        )
    for layer, promised in kept:
        _refuse_broken(layer, promised)
    zeros_after = sum(_zeros(base_of(layer).weight) for _, layer in layers)
    return Merged(difference, tolerance, len(layers), sparse, zeros_before, zeros_after, size)


def mergeable(model: nn.Module) -> bool:
    """Whether every adapter can become part of its weight without loss, whatever its values are."""
    return not any(_is_apart(layer) for _, layer in lora_layers(model))


def _is_apart(layer: LoraLayer) -> bool:
    """Whether the sum of the weight and a dense adapter would lose zeros or codes."""
    if isinstance(base_of(layer), QuantizedLinear):
        return not isinstance(layer, QaSparseLoraLinear)
    return is_sparse(layer) and not isinstance(layer, SparseLoraLinear)


def stock_adapters(model: nn.Module) -> bool:
    """Whether peft's own layers compute what these do."""
    return not any(isinstance(layer, SparseLoraLinear | QaSparseLoraLinear) for _, layer in lora_layers(model))


def refuse_lossy(name: str, layer: LoraLayer) -> None:
    """Raises ValueError where merging would lose the zeros of a sparse weight, or the codes of a quantised one."""
    reason = lossy(name, layer)
    if reason is None:
        return
    option = "qa_sparse_peft" if isinstance(base_of(layer), QuantizedLinear) else "sparse_peft"
    raise ValueError(
        f"{reason}. Export them apart, export.adapters=separate, or train with adapters that keep that, peft={option}"
    )


def lossy(name: str, layer: LoraLayer) -> str | None:
    """What a weight would lose by merging; None where it loses nothing."""
    if not _is_apart(layer):
        return None
    if isinstance(base_of(layer), QuantizedLinear):
        return f"{name} is quantised, and the sum of it and a dense adapter has no codes"
    a, b = factors(layer)
    if not (a.any() and b.any()):
        return None
    weight = base_of(layer).weight
    share = _zeros(weight) / weight.numel()
    return f"{name} is sparse ({share:.0%} zeros) and its adapter dense: merging would fill the zeros"


def _promised(layer: LoraLayer) -> tuple[torch.Tensor | None, QuantizedWeight | None]:
    """What a merge has to keep: where the weight is zero, and the grid of its codes."""
    base = base_of(layer)
    masked = isinstance(layer, SparseLoraLinear) or (isinstance(layer, QaSparseLoraLinear) and layer.keep_zeros)
    return base.weight == 0 if masked else None, base.quantized if isinstance(layer, QaSparseLoraLinear) else None


def _refuse_broken(layer: LoraLayer, promised: tuple[torch.Tensor | None, QuantizedWeight | None]) -> None:
    """Raises ValueError where a merged weight has lost a zero, or its codes their grid: a defect of this program."""
    zeros, before = promised
    base = base_of(layer)
    if zeros is not None and bool(base.weight[zeros].any()):
        raise ValueError("a merged weight has lost zeros of its base: export the adapters apart, and report this")
    if before is not None:
        after: QuantizedWeight = base.quantized
        grid = torch.equal(before.scales, after.scales) and torch.equal(before.zeros, after.zeros)
        if not grid or int(after.codes.min()) < 0 or int(after.codes.max()) > 2**after.bits - 1:
            raise ValueError("a merged weight has other scales, zero points or codes than its base allows: report this")


def _untie(model: PreTrainedModel) -> None:
    """An adapted output head or embedding gets a weight of its own where the two share one."""
    shared: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        shared[id(parameter)] = shared.get(id(parameter), 0) + 1
    for _, layer in lora_layers(model):
        base = base_of(layer)
        if not isinstance(base, QuantizedLinear) and shared[id(base.weight)] > 1:
            shared[id(base.weight)] -= 1
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=base.weight.requires_grad)
            model.config.tie_word_embeddings = False
            origin = getattr(model.config, "nas_llm", None)
            if origin is not None:
                origin["base_config"] = {**origin["base_config"], "tie_word_embeddings": False}


def _zeros(weight: torch.Tensor) -> int:
    return int((weight == 0).sum())


def _probe(model: PreTrainedModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (PROBES, LENGTH), generator=generator).to(model.device)
    was_training = model.training
    model.eval()
    logits = model(input_ids=ids, use_cache=False).logits.float()
    model.train(was_training)
    return logits
