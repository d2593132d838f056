"""What importance methods see of a forward pass: which modules read an axis, and hooks that hand on what they read.

``observe`` runs a calibration set through the whole network once, in evaluation mode; its hooks are gone when it ends,
also by an error. Nothing is kept of a batch but what ``record`` keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nas_llm.models.axes import Layout
from nas_llm.models.elastic import ElasticModule, whole_weights
from nas_llm.models.modes import evaluating
from nas_llm.models.supernet import Supernet

Batches = Iterable[Mapping[str, Tensor]]
Record = Callable[[str, Tensor, Tensor, Tensor], None]
"""key of the module, what it read, what it wrote (as the model has them), mask (batch, sequence)."""


@dataclass(frozen=True)
class Reader:
    """A projection that reads whole units of an axis; ``layer`` None: outside of the blocks."""

    layer: int | None
    module: ElasticModule

    @property
    def inputs(self) -> Layout:
        """The layout of what it reads."""
        return self.module.elastic_layouts["weight"][0 if isinstance(self.module, Conv1D) else 1]

    @property
    def weight(self) -> Tensor:
        """Shape (out, in), whichever way the module stores it."""
        _, weight = whole_weights(self.module)["weight"]
        return weight.T if isinstance(self.module, Conv1D) else weight


def readers(supernet: Supernet, axis: str) -> list[Reader]:
    """Every projection that reads ``axis``: the residual stream, the FFN's intermediate, the heads' outputs."""
    layers: list[tuple[int | None, tuple[ElasticModule, ...]]] = [(None, supernet.shared_modules)]
    layers += list(enumerate(supernet.layer_modules))
    found = [Reader(i, m) for i, modules in layers for m in modules if isinstance(m, nn.Linear | Conv1D)]
    return [reader for reader in found if reader.inputs.carries((axis,))]


def hidden_norms(supernet: Supernet) -> list[ElasticModule]:
    """Every normalisation of the residual stream; those of queries and keys are not among them."""
    modules = [module for layer in (supernet.shared_modules, *supernet.layer_modules) for module in layer]
    layouts = [(module, module.elastic_layouts["weight"]) for module in modules]
    return [module for module, layout in layouts if len(layout) == 1 and layout[0].carries(("hidden",))]


@torch.no_grad()
def observe(supernet: Supernet, batches: Batches, modules: Mapping[str, nn.Module], record: Record) -> None:
    """Hands what ``modules`` read and wrote to ``record``, batch by batch.

    Raises:
        ValueError: there is no batch.
    """
    mask: list[Tensor] = []

    def hook(key: str) -> Callable[..., None]:
        def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            read = args[0] if args else kwargs["hidden_states"]
            record(key, read, output[0] if isinstance(output, tuple) else output, mask[0])

        return watch

    with evaluating(supernet.model), _hooked({key: (module, hook(key)) for key, module in modules.items()}):
        for batch in batches:
            moved = {key: batch[key].to(supernet.model.device) for key in ("input_ids", "attention_mask")}
            mask[:] = [moved["attention_mask"]]
            supernet.model(**moved, use_cache=False)
    if not mask:
        raise no_batches()


def per_token(values: Tensor, mask: Tensor) -> Tensor:
    """Float32 of the shape (batch, sequence, units): some families flatten the first two."""
    return values.float().reshape(*mask.shape, values.shape[-1])


def no_batches() -> ValueError:
    return ValueError("importance needs calibration data, there is no batch; set data.calibration_size above 0")


@contextmanager
def _hooked(hooks: Mapping[str, tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    handles = []
    try:
        for module, hook in hooks.values():
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
