"""Small integers in 32-bit words: the layout of compressed-tensors' ``pack-quantized`` files.

A value takes 2, 4 or 8 bits of a word, the first one the lowest: sixteen, eight or four a word, four, two or one a
byte. Integers of 3 bits are stored in 4, those of 5 to 7 bits in 8: the three widths alone lie the same way in every
version of the format and in the runtimes that read it. A row ends on a whole word.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BYTE = 8
_WORD = 32


def stored_bits(bits: int) -> int:
    """The bits that an integer of 2 to 8 bits takes: 2, 4 or 8."""
    return next(width for width in (2, 4, 8) if bits <= width)


def packed_width(count: int, bits: int) -> int:
    """Words that a row of ``count`` integers of 2 to 8 bits takes."""
    return -(-count * stored_bits(bits) // _WORD)


def pack(values: Tensor, bits: int) -> Tensor:
    """(rows, count) uint8, each below 2 ** bits, to (rows, words) int32."""
    count, words = values.shape[1], packed_width(values.shape[1], bits)
    padded = torch.nn.functional.pad(values, (0, words * _WORD // stored_bits(bits) - count))
    shifts = _shifts(bits, values.device)
    octets = padded.unflatten(1, (-1, len(shifts))) << shifts  # the values of one byte do not overlap
    return octets.sum(-1, dtype=torch.uint8).view(torch.int32)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of :func:`pack`: (rows, words) int32 to (rows, count) uint8."""
    # flat first: of a transposed row of one word torch says that it is contiguous, and keeps its stride
    octets = packed.contiguous().flatten().view(torch.uint8).unflatten(0, (len(packed), -1))
    shifted = octets.unsqueeze(-1) >> _shifts(bits, packed.device)
    return shifted.bitwise_and_(2 ** stored_bits(bits) - 1).flatten(1)[:, :count]


def _shifts(bits: int, device: torch.device) -> Tensor:
    """Of the values of one byte."""
    return torch.arange(0, _BYTE, stored_bits(bits), dtype=torch.uint8, device=device)
