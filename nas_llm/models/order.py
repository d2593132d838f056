"""The order of the units of a sorted super-network: for every axis, the original place of each unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nas_llm.architecture import Architecture
from nas_llm.models.axes import Orders

FILE_NAME = "axes_order.safetensors"
_LAYER_AXES = ("kv_groups", "heads_per_group", "ffn")


@dataclass(frozen=True)
class Order:
    """``units[key]`` lists old places in new order (keys of :meth:`nas_llm.Supernet.sort`); axes left out keep theirs.

    ``layers`` lists the blocks, most important first; None while nothing is known of them.
    """

    units: Mapping[str, Tensor]
    layers: tuple[int, ...] | None = None

    @classmethod
    def by_importance(cls, importance: Mapping[str, Tensor], full: Architecture) -> Order:
        """Descending importance; equal scores keep their order.

        Raises:
            ValueError: an unknown key, a wrong shape, or scores that are not finite.
        """
        shapes = axis_shapes(full)
        for key, scores in importance.items():
            if key not in shapes:
                raise ValueError(
                    f"importance of {key!r}: no such axis; this network has hidden, layers, layers.0.ffn ... "
                )
            if tuple(scores.shape) != shapes[key]:
                raise ValueError(
                    f"importance of {key!r} has the shape {tuple(scores.shape)}, this network needs {shapes[key]}"
                )
            if not torch.isfinite(scores).all():
                raise ValueError(f"importance of {key!r} holds values that are not finite")
        units = {k: torch.argsort(s.float().cpu(), dim=-1, descending=True, stable=True) for k, s in importance.items()}
        layers = units.pop("layers", None)
        return cls(units, None if layers is None else tuple(layers.tolist()))

    def shared(self) -> Orders:
        """Orders of the axes outside of the blocks."""
        return {"hidden": self.units["hidden"]} if "hidden" in self.units else {}

    def of_layer(self, index: int) -> Orders:
        """Orders of the axes of one block."""
        own = {
            axis: self.units[f"layers.{index}.{axis}"] for axis in _LAYER_AXES if f"layers.{index}.{axis}" in self.units
        }
        return {**self.shared(), **own}

    def then(self, later: Order) -> Order:
        """This order, sorted once more."""
        units = dict(self.units)
        for key, order in later.units.items():
            if not key.endswith("heads_per_group"):
                units[key] = self.units[key][order] if key in self.units else order
                continue
            # rows of the later order are indexed by the place that a group had before the groups moved
            before = self.units.get(key, torch.arange(order.shape[1]).expand_as(order))
            units[key] = before.gather(1, order)
        for key in [key for key in units if key.endswith("heads_per_group")]:
            groups = later.units.get(key.replace("heads_per_group", "kv_groups"))
            if groups is not None:
                units[key] = units[key][groups]
        return Order(units, self.layers if later.layers is None else later.layers)

    def again(self) -> Order:
        """What sorts a network that never was sorted into this order: rows of heads are indexed by the place that
        their group had before the groups moved."""
        units = dict(self.units)
        for key in [key for key in units if key.endswith("heads_per_group")]:
            groups = units.get(key.replace("heads_per_group", "kv_groups"))
            if groups is not None:
                units[key] = units[key][groups.argsort()]
        return Order(units, self.layers)

    def inverse(self) -> Order:
        """What brings a sorted network back into its own order."""
        return Order({key: places.argsort(dim=-1) for key, places in self.units.items()})


def axis_shapes(full: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of the scores of every axis that can be sorted."""
    shapes: dict[str, tuple[int, ...]] = {"hidden": (full.hidden,), "layers": (full.num_layers,)}
    for layer in full.layers:
        shapes[f"layers.{layer.index}.kv_groups"] = (layer.kv_groups,)
        shapes[f"layers.{layer.index}.heads_per_group"] = (layer.kv_groups, layer.heads_per_group)
        shapes[f"layers.{layer.index}.ffn"] = (layer.ffn,)
    return shapes


def write_order(order: Order, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {key: value.contiguous() for key, value in order.units.items()}
    if order.layers is not None:
        tensors["layers"] = torch.tensor(order.layers)
    save_file(tensors, folder / FILE_NAME)


def read_order(folder: Path, full: Architecture) -> Order:
    """Inverse of :func:`write_order`; the identity where the file is missing.

    Raises:
        ValueError: the file is damaged, or belongs to a network of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / FILE_NAME).is_file():
        return Order({})
    try:
        tensors = load_file(folder / FILE_NAME)
    except SafetensorError as error:
        raise ValueError(
            f"{folder / FILE_NAME} is damaged ({error}): copy it anew, or train the super-network again"
        ) from error
    shapes = axis_shapes(full)
    if any(shapes.get(key) != tuple(value.shape) for key, value in tensors.items()):
        raise ValueError(f"{folder / FILE_NAME} belongs to a network of another shape")
    layers = tensors.pop("layers", None)
    return Order(tensors, None if layers is None else tuple(layers.tolist()))
