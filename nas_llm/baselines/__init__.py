"""Baselines: what a network is compared with that other methods have made small, one method a file; the protocol is
here.

A method is a frozen dataclass whose fields are its YAML. It uses the super-network up that it is given: what it makes
may be that network, changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from nas_llm.architecture import Architecture

if TYPE_CHECKING:
    from nas_llm.models.supernet import Supernet

Batch = Mapping[str, Tensor]
"""``input_ids``, ``attention_mask`` and ``labels``, (batch, sequence)."""
Batches = Callable[[], Iterable[Batch]]
"""The calibration batches, as often as they are asked for: a method that needs no data makes none."""


@dataclass(frozen=True)
class Pruned:
    """What a method made of a network.

    ``model`` is a plain one, which :func:`nas_llm.save_pretrained` writes. ``summary`` is one
    sentence for its model card. ``records``, JSON-able, are what the method found on its way (scores, kept units).
    ``architecture`` says which units of the whole network it keeps, where it is one of its sub-networks.
    """

    model: PreTrainedModel
    summary: str
    records: Mapping[str, Any] = field(default_factory=dict)
    architecture: Architecture | None = None


class Baseline(Protocol):
    """Makes a network small, or sparse, or quantised, and trains nothing."""

    def refuse(self, supernet: Supernet) -> None:
        """Called before any data are gone through.

        Raises:
            ValueError: what can be seen from the network alone: a family or a shape that the method does not go with,
                sizes out of range. The key, the value, what is allowed and the override that mends it.
        """

    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        """``supernet`` is the whole network in its own order, in evaluation mode.

        Raises:
            ValueError: as :meth:`refuse`; no batch, or one on which the network overflows, where the method looks at
                data.
        """
