"""Width and depth together: the scores of the units by one method, those of the layers by another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from nas_llm.importance.recording import Batches
from nas_llm.models.supernet import Supernet

Importance = Callable[[Supernet, Batches], dict[str, Tensor]]


@dataclass(frozen=True)
class Combined:
    """``width`` scores hidden channels, groups, heads and neurons, ``depth`` the layers; both see every batch.

    Raises:
        ValueError: when called: ``width`` scores layers, or ``depth`` anything else.
    """

    width: Importance
    depth: Importance

    def __call__(self, supernet: Supernet, batches: Batches) -> dict[str, Tensor]:
        """The scores of both."""
        calibration = _Once(batches)
        width, depth = self.width(supernet, calibration), self.depth(supernet, calibration)
        if "layers" in width or depth.keys() != {"layers"}:
            wrong, key = (self.width, "width") if "layers" in width else (self.depth, "depth")
            allowed = "activation, magnitude, taylor, wanda, random" if key == "width" else "block"
            raise ValueError(
                f"importance.{key}={type(wrong).__name__} scores {'layers' if key == 'width' else 'units'}: "
                f"allowed here are {allowed}; set importance@importance.{key}={allowed.partition(',')[0]}"
            )
        return {**width, **depth}


class _Once:
    """Batches that can be gone through again, and are not made before someone does."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._kept: list[Mapping[str, Tensor]] | None = None

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        if self._kept is None:
            self._kept = list(self._batches)
        return iter(self._kept)
