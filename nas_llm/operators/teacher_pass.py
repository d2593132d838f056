"""What the teacher's sublayers read and write for a batch: one forward pass feeds every candidate of all (UNAST, paper
3, section 3.1).

The blocks behind the last sublayer in work do not run, nor does the output head. A sublayer's candidates are served
while the pass stands at it, so that nothing of a batch is kept: what is held is what one sublayer reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas_llm.architecture import Architecture
from nas_llm.models.block_walk import Batch
from nas_llm.models.modes import evaluating
from nas_llm.models.operator_modules import sublayer_of
from nas_llm.models.supernet import Supernet
from nas_llm.operators import Place


@dataclass(frozen=True)
class Visit:
    """The pass at one sublayer.

    ``args`` and ``kwargs`` are the sublayer's own (what it reads (batch, sequence, hidden), mask, rotary embeddings, no
    cache), ``written`` (batch, sequence, hidden) what it writes before the residual addition, ``mask`` (batch,
    sequence) bool, False at padding. All are detached.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    written: Tensor
    mask: Tensor

    def run(self, module: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
        """What a candidate writes in the sublayer's place, (batch, sequence, hidden); ``dtype``: what it is given."""
        args = tuple(_cast(value, dtype) for value in self.args)
        kwargs = {name: _cast(value, dtype) for name, value in self.kwargs.items()}
        return _written(module(*args, **kwargs))


@contextmanager
def teacher_pass(supernet: Supernet, places: Iterable[Place]) -> Iterator[Callable[[Batch, Callable[..., None]], None]]:
    """Gives a function (batch, serve) that runs the teacher up to the last of the sublayers and calls ``serve(place,
    visit)`` at each of them, in the order in which they run.

    No gradient is recorded but inside ``serve``, where it is as usual. Within the block the teacher is in evaluation
    mode; afterwards, and on errors, it is as it was and no hook is left.
    """
    chosen = list(places)
    full = supernet.largest()
    needed = Architecture(full.hidden, full.layers[: 1 + max(layer for layer, _ in chosen)])
    now: list[tuple[Tensor, Callable[..., None]]] = []

    def hook_of(place: Place) -> Callable[..., None]:
        def serve(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            mask, serve = now[0]
            with torch.enable_grad():
                serve(place, Visit(args, kwargs, _written(output), mask))

        return serve

    def run(batch: Batch, serve: Callable[..., None]) -> None:
        device = supernet.model.device
        mask = batch["attention_mask"].to(device)
        now[:] = [(mask.bool(), serve)]
        with torch.no_grad():
            model.base_model(input_ids=batch["input_ids"].to(device), attention_mask=mask, use_cache=False)

    handles = []
    with evaluating(supernet.model), supernet.activate(needed) as model:
        try:
            for place in chosen:
                sublayer = sublayer_of(supernet, *place)
                handles.append(sublayer.register_forward_hook(hook_of(place), with_kwargs=True))
            yield run
        finally:
            for handle in handles:
                handle.remove()


def _written(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    """Floating tensors in the candidate's precision: attention takes queries and masks of one only."""
    if isinstance(value, tuple):
        return tuple(_cast(part, dtype) for part in value)
    if dtype is not None and isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value
