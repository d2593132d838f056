"""The elastic mixin: a module whose weights are sliced where they are read; its forward pass stays Hugging Face's own.

``make_elastic`` changes the class of a module in place to a subclass whose ``weight`` and ``bias`` are properties.
While no sub-network is active they are the parameters themselves, so that state dicts, optimizers, hooks and
adapters see nothing new. The slices are made inside forward, never before, so that sharded weights stay sharded
outside of it. A quantised layer's weight is never cut: ``Supernet`` refuses architectures that would.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nas_llm.models.axes import Layout, Sizes, take
from nas_llm.models.quantized_linear import QuantizedLinear

Layouts = dict[str, tuple[Layout, ...]]


class ElasticModule(nn.Module):
    """What :func:`make_elastic` adds to a module."""

    elastic_layouts: Layouts  # parameter name -> one layout per dimension
    elastic_full: Sizes
    elastic_active: Sizes | None  # None: the whole module
    elastic_plain_class: type[nn.Module]

    def __reduce__(self) -> tuple[Any, ...]:
        """Its class has no name to be pickled by: it is made again from the plain one."""
        return _blank, (self.elastic_plain_class, tuple(self._parameters)), self.__dict__


def _blank(plain: Any, parameters: tuple[str, ...]) -> nn.Module:
    made = _elastic_class(plain, parameters)
    return made.__new__(made)


def make_elastic(module: nn.Module, layouts: Layouts, full: Sizes) -> None:
    """Gives ``module`` sliced parameters, in place."""
    module.__dict__.update(elastic_layouts=layouts, elastic_full=full, elastic_active=None)
    plain: Any = type(module)
    module.__class__ = _elastic_class(plain, tuple(module._parameters))


def make_plain(module: nn.Module) -> None:
    """Gives a module, whose parameters have been replaced by their slices, its own class and right sizes back."""
    if not isinstance(module, ElasticModule):
        return
    for name in ("elastic_layouts", "elastic_full", "elastic_active"):
        del module.__dict__[name]
    plain: Any = module.elastic_plain_class
    module.__class__ = plain
    for name, size in _sizes(module).items():
        module.__dict__[name] = size


def active_parameters(module: ElasticModule) -> dict[str, Tensor]:
    """The active slice of every parameter by name."""
    return {name: getattr(module, name) for name, value in module._parameters.items() if value is not None}


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The active network as a plain model that shares nothing with this one; tied weights stay tied."""
    replaced: dict[int, Any] = {}
    for module in model.modules():
        if not isinstance(module, ElasticModule):
            continue
        for name, active in active_parameters(module).items():
            full = module._parameters[name]
            assert full is not None
            if id(full) not in replaced:
                small_weight = active.detach().clone(memory_format=torch.contiguous_format)
                replaced[id(full)] = nn.Parameter(small_weight, requires_grad=full.requires_grad)
    small = copy.deepcopy(model, replaced)
    for module in small.modules():
        make_plain(module)
    return small


def whole_weights(module: ElasticModule) -> dict[str, tuple[int, Tensor]]:
    """Every whole weight by name, after a number that tied weights share; that of a quantised layer is dequantised."""
    found = {name: (id(value), value.detach()) for name, value in module._parameters.items() if value is not None}
    if isinstance(module, QuantizedLinear):
        found["weight"] = (id(module), module.weight)
    return found


def _sliced(name: str) -> property:
    def active(self: ElasticModule) -> Tensor | None:
        parameter = self._parameters[name]
        if self.elastic_active is None or parameter is None:
            return parameter
        return take(parameter, self.elastic_layouts[name], self.elastic_full, self.elastic_active)

    return property(active)


def _told(size: str) -> property:
    def active(self: nn.Module) -> Any:
        return _sizes(self)[size]

    return property(active)


def _sizes(module: nn.Module) -> dict[str, Any]:
    """The attributes in which a module repeats the shape of its weight."""
    if isinstance(module, QuantizedLinear):  # never cut, and its weight is costly to look at
        return {}
    weight = module.weight if "weight" in module._parameters else None
    if not isinstance(weight, Tensor):
        return {}
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    if isinstance(module, Conv1D):
        return {"nx": weight.shape[0], "nf": weight.shape[1]}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": weight.shape[1]}
    if isinstance(module, nn.LayerNorm):
        return {"normalized_shape": tuple(weight.shape)}
    return {}


@cache
def _elastic_class(plain: type[nn.Module], parameters: tuple[str, ...]) -> type[nn.Module]:
    members: dict[str, Any] = {name: _sliced(name) for name in parameters}
    told = issubclass(plain, nn.Linear) and not issubclass(plain, QuantizedLinear)
    for size in ("out_features", "in_features") if told else ():
        members[size] = _told(size)
    for size in ("nx", "nf") if issubclass(plain, Conv1D) else ():
        members[size] = _told(size)
    if issubclass(plain, nn.LayerNorm):
        members["normalized_shape"] = _told("normalized_shape")
    members["elastic_plain_class"] = plain
    return type(f"Elastic{plain.__name__}", (ElasticModule, plain), members)
