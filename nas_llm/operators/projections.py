"""The linear modules of a sublayer: the first read the residual stream, the last write into it (UNAST, appendix H)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from nas_llm.models.block_walk import Projection
from nas_llm.models.operator_modules import sublayer_of, sublayer_path
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Projections, Sublayer


@dataclass(frozen=True)
class SublayerProjections:
    """``first``: queries, keys and values, or gate and up; ``last``: the output projection, or down. By their names
    inside the sublayer's module."""

    first: dict[str, Projection]
    last: dict[str, Projection]

    def of(self, which: Projections) -> dict[str, Projection]:
        return {"in": self.first, "out": self.last, "both": self.first | self.last}[which]

    def dense(self, which: Projections) -> dict[str, Projection]:
        """Those of them that can be quantised: ``nn.Linear``, and not integers yet."""
        return {
            name: projection
            for name, projection in self.of(which).items()
            if isinstance(projection.module, nn.Linear) and not isinstance(projection.module, QuantizedLinear)
        }


def sublayer_projections(supernet: Supernet, layer: int, sublayer: Sublayer) -> SublayerProjections:
    """Of the teacher's own module. Raises ValueError where the family has no module for the sublayer."""
    names = {module: name for name, module in sublayer_of(supernet, layer, sublayer).named_modules()}
    prefix = f"{supernet.layers_path}.{layer}.{sublayer_path(supernet, sublayer)}"
    first: dict[str, Projection] = {}
    last: dict[str, Projection] = {}
    for module in supernet.layer_modules[layer]:
        if module in names and isinstance(module, nn.Linear | Conv1D):
            reads = module.elastic_layouts["weight"][0 if isinstance(module, Conv1D) else 1]
            name = names[module]
            (first if reads.carries(("hidden",)) else last)[name] = Projection(f"{prefix}.{name}", module)
    return SublayerProjections(first, last)
