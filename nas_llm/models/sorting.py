"""Sorting: the weights of a network permuted in place, along every axis that an order of units names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedModel

from nas_llm.models.attached import Attached, attached_to
from nas_llm.models.axes import Orders, reorder
from nas_llm.models.elastic import ElasticModule
from nas_llm.models.network_parts import NetworkParts, name_of
from nas_llm.models.order import Order
from nas_llm.models.quantized_linear import QuantizedLinear

Ordered = tuple[ElasticModule, Orders]
"""A module with the orders of the axes that it sees."""


def with_orders(order: Order, parts: NetworkParts, attached: Sequence[Attached]) -> list[Ordered]:
    """Every module with weights of a network, and those attached to it."""
    modules = [(module, order.shared()) for module in parts.shared]
    modules += [(module, order.of_layer(i)) for i, layer in enumerate(parts.in_layer) for module in layer]
    return modules + attached_with_orders(order, parts, attached)


def attached_with_orders(order: Order, parts: NetworkParts, attached: Sequence[Attached]) -> list[Ordered]:
    """The modules attached to a network."""
    modules = [(module, order.shared()) for module in attached_to(None, attached)]
    layers = range(len(parts.blocks))
    return modules + [(module, order.of_layer(i)) for i in layers for module in attached_to(i, attached)]


def refuse_permuted(model: PreTrainedModel, modules: Iterable[Ordered]) -> None:
    """Refuses orders that would move channels of a quantised weight, whose groups and packed codes are whole.

    Raises:
        ValueError: naming the weight.
    """
    for module, orders in modules:
        if not isinstance(module, QuantizedLinear):
            continue
        for dimension in module.elastic_layouts["weight"]:
            places = dimension.order(module.elastic_full, orders)
            if not torch.equal(places.cpu(), torch.arange(len(places))):
                raise ValueError(
                    f"{name_of(model, module)} is quantised, so that its channels cannot be sorted: sort before "
                    "quantising, or order the layers alone, importance=block or importance=none"
                )


@torch.no_grad()
def permute(modules: Iterable[Ordered]) -> None:
    """Brings every weight into its order, in place; one that several modules share once."""
    done: set[int] = set()
    for module, orders in modules:
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in done:
                continue
            done.add(id(parameter))
            parameter.copy_(reorder(parameter, module.elastic_layouts[name], module.elastic_full, orders))
