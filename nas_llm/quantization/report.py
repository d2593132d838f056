"""What quantisation did to each layer, in bytes and errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from nas_llm.models.quantized_linear import QuantizedLinear


@dataclass(frozen=True)
class LayerReport:
    """``bytes_before`` and ``bytes_after`` of the weight, scales and zero points among them; ``weight_error`` is
    ||W - W~|| / ||W||; ``output_error``, ||W X - W~ X|| / ||W X|| on the calibration data, where a method looks at it.
    """

    bits: int
    group_size: int
    weights: int
    zeros: int
    bytes_before: int
    bytes_after: int
    weight_error: float
    output_error: float | None = None

    @classmethod
    def of(cls, weight: Tensor, layer: QuantizedLinear, hessian: Tensor | None = None) -> LayerReport:
        """``weight`` (out, in) as it was; ``hessian`` (in, in), of what the layer reads."""
        after, before = layer.weight.float(), weight.float()  # the first is a tensor of its own
        zeros, whole = int((after == 0).sum()), float(before.square().sum())
        whole_output = None if hessian is None else _energy(before, hessian)
        difference = after.neg_().add_(before)
        del after, before
        output_error = None
        if hessian is not None and whole_output is not None:
            output_error = _ratio(_energy(difference, hessian), whole_output)
        return cls(
            bits=layer.bits,
            group_size=layer.group_size,
            weights=layer.num_weights,
            zeros=zeros,
            bytes_before=weight.nbytes,
            bytes_after=layer.weight_bytes,
            weight_error=_ratio(float(difference.square_().sum()), whole),
            output_error=output_error,
        )


@dataclass(frozen=True)
class QuantizationReport:
    """Layers by name."""

    layers: Mapping[str, LayerReport]

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers.values())

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
        }


def _energy(weight: Tensor, hessian: Tensor) -> float:
    """tr(W H W^T), which is 2 ||W X||^2."""
    return float((weight @ hessian).mul_(weight).sum())


def _ratio(error: float, whole: float) -> float:
    return max(error / whole, 0.0) ** 0.5 if whole > 0 else 0.0
