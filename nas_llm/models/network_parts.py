"""The modules of a model by their place, made elastic as the table of families says (``models/families.py``)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.axes import Fixed, Sizes, sizes_of
from nas_llm.models.elastic import ElasticModule, Layouts, make_elastic
from nas_llm.models.families import HIDDEN, Family, Row, family_of
from nas_llm.models.quantized_linear import QuantizedLinear


@dataclass(frozen=True)
class NetworkParts:
    """The modules of a whole network; its blocks in their own order, and by block what lies in them."""

    row: Family
    config: PreTrainedConfig  # the whole network's: activation changes the one that the modules share
    blocks: tuple[nn.Module, ...]
    attention: tuple[nn.Module, ...]  # the network's own, whatever stands in its place
    indexed: tuple[tuple[nn.Module, ...], ...]  # those that know the index of their layer's cache
    shared: list[ElasticModule]  # with weights, outside of the blocks
    in_layer: tuple[list[ElasticModule], ...]  # with weights, of each block

    @classmethod
    def of(cls, model: PreTrainedModel, full: Architecture, *, has_operators: bool) -> NetworkParts:
        """Makes the modules of ``model`` elastic, in place; ``full`` are its sizes.

        Raises:
            ValueError: a module is not in the table, or has another shape than it says. None is elastic then.
        """
        row = family_of(model.config)
        blocks = tuple(model.get_submodule(row.layers).children())
        attention = tuple(block.get_submodule(row.attention) for block in blocks)
        indexed = tuple(tuple(m for m in block.modules() if "layer_idx" in vars(m)) for block in blocks)
        shared: list[ElasticModule] = []
        in_layer: tuple[list[ElasticModule], ...] = tuple([] for _ in blocks)
        for module, layouts, sizes, layer in _found(model, row, full, has_operators):
            make_elastic(module, layouts, sizes)
            (shared if layer is None else in_layer[layer]).append(module)  # type: ignore[arg-type]
        return cls(row, copy.copy(model.config), blocks, attention, indexed, shared, in_layer)

    def attention_constants(self, choice: LayerChoice, config: PreTrainedConfig) -> dict[str, Any]:
        """Attributes that the attention module of a block of this shape reads beside its weights."""
        return {name: constant(choice, config) for name, constant in self.row.constants.items()}

    def replace(self, before: nn.Module, after: ElasticModule) -> None:
        """Puts a module with weights in the place of another."""
        for modules in (self.shared, *self.in_layer):
            modules[:] = [after if module is before else module for module in modules]


def name_of(model: nn.Module, module: nn.Module) -> str:
    """The name of a module inside the model."""
    return next(name for name, found in model.named_modules() if found is module)


def _found(
    model: PreTrainedModel, row: Family, full: Architecture, has_operators: bool
) -> list[tuple[nn.Module, Layouts, Sizes, int | None]]:
    """Every module with weights, with its layouts, the sizes of the whole one, and the block that it lies in."""
    prefix = row.layers + "."
    hidden = {"hidden": full.hidden}
    layer_sizes = [sizes_of(full.hidden, choice) for choice in full.layers]
    layer_rows = dict(row.layer)
    if has_operators:
        layer_rows |= {f"{path}.linear": (HIDDEN, HIDDEN) for path in (row.attention, row.mlp)}
    norms = [name for name, layout in row.layer.items() if layout == (HIDDEN,)]
    layer_rows |= {f"{norm}.shortcut": (HIDDEN, HIDDEN) for norm in norms}  # of a rotated stream
    found: list[tuple[nn.Module, Layouts, Sizes, int | None]] = []
    for name, module in model.named_modules():
        if not _weight_shapes(module):
            continue
        index, _, inside = name.removeprefix(prefix).partition(".")
        layer = int(index) if name.startswith(prefix) else None
        rows = row.shared.get(name) if layer is None else layer_rows.get(inside)
        sizes = hidden if layer is None else layer_sizes[layer]
        if rows is None:
            raise ValueError(
                f"{type(model).__name__}: the module {name!r} is not in the table of family "
                f"{model.config.model_type!r} (nas_llm/models/families.py); this variant of the family is not supported"
            )
        found.append((module, _layouts(name, module, rows, sizes), sizes, layer))
    return found


def _weight_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a module by name; that of a quantised layer is no parameter."""
    shapes = {name: tuple(value.shape) for name, value in module._parameters.items() if value is not None}
    if isinstance(module, QuantizedLinear):
        return {"weight": (module.out_features, module.in_features), **shapes}
    return shapes


def _layouts(name: str, module: nn.Module, row: Row, full: Sizes) -> Layouts:
    """Layouts of a module's parameters, checked against their shapes."""
    weight = tuple(reversed(row)) if isinstance(module, Conv1D) else row
    found: Layouts = {}
    for parameter_name, shape in _weight_shapes(module).items():
        rows: Row = weight if parameter_name == "weight" else row[:1]
        layout = tuple(
            Fixed(size) if dimension is None else dimension for dimension, size in zip(rows, shape, strict=True)
        )
        expected = tuple(dimension.size(full) for dimension in layout)
        if expected != shape:
            raise ValueError(
                f"{name}.{parameter_name} has the shape {shape}, the table expects {expected}; "
                "this variant of the family is not supported"
            )
        found[parameter_name] = layout
    return found
