"""What the methods that quantise can be told, each setting once: the methods and the baselines made of them have it."""

from __future__ import annotations

from dataclasses import dataclass

from nas_llm.models.quantized_weight import refuse_bits
from nas_llm.quantization.targets import Targets


@dataclass(frozen=True)
class QuantizationSettings:
    """Of every method: ``bits`` (2 to 8), ``group_size`` (input channels that share a scale and a zero point) and
    ``targets`` (None: all of the transformer blocks).

    Raises:
        ValueError: ``bits`` outside of 2 to 8, or a ``group_size`` below 1.
    """

    bits: int = 4
    group_size: int = 128
    targets: Targets = None

    def __post_init__(self) -> None:
        refuse_bits(self.bits, "quantization.bits")
        if self.group_size < 1:
            raise ValueError(
                f"quantization.group_size={self.group_size}: allowed is 1 or more, as quantization.group_size=128"
            )


@dataclass(frozen=True)
class GPTQSettings(QuantizationSettings):
    """Of GPTQ, beside those: ``damping``, added to the Hessian's diagonal as a fraction of its mean; ``act_order``: the
    most active input channels first; ``keep_zeros``: weights that are exactly zero stay so, no error is passed on to
    them; ``block_size`` columns whose errors are passed on at once (whole groups are taken; it changes the time, not
    the result).

    Raises:
        ValueError: as of every method; ``damping`` below 0, ``block_size`` below 1.
    """

    damping: float = 0.01
    act_order: bool = False
    keep_zeros: bool = True
    block_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping < 0:
            raise ValueError(f"quantization.damping={self.damping}: allowed is 0 or more, as quantization.damping=0.01")
        if self.block_size < 1:
            raise ValueError(f"quantization.block_size={self.block_size}: allowed is 1 or more columns")
