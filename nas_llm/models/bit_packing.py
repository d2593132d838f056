"""Integers of 2 to 8 bits, one behind the other in 32-bit words: the layout of compressed-tensors' ``pack-quantized``.

Value i of a row takes the bits [i * bits, (i + 1) * bits) of the row's bit stream, the lowest first; a row ends on a
whole word, a value may lie across two. int4 is eight per word (two per byte), 2 bits are sixteen, 3 bits thirty-two in
three words: no bits of a word but a row's last are left unused.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BYTE = 8
_WORD = 32


def packed_width(count: int, bits: int) -> int:
    """Words that a row of ``count`` values takes."""
    return -(-count * bits // _WORD)


def pack(values: Tensor, bits: int) -> Tensor:
    """(rows, count) uint8, each below 2 ** bits, to (rows, words) int32."""
    rows, count = values.shape
    stream = (values.unsqueeze(-1) >> _steps(bits, values)).bitwise_and_(1).reshape(rows, count * bits)
    padded = torch.nn.functional.pad(stream, (0, packed_width(count, bits) * _WORD - count * bits))
    octets = padded.reshape(rows, -1, _BYTE) << _steps(_BYTE, values)
    return octets.sum(-1, dtype=torch.uint8).view(torch.int32)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of :func:`pack`: (rows, words) int32 to (rows, count) uint8."""
    octets = packed.contiguous().view(torch.uint8)
    if bits == _BYTE:
        return octets[:, :count]
    if _BYTE % bits == 0:  # no value lies across two bytes
        shifted = octets.unsqueeze(-1) >> _steps(_BYTE // bits, octets).mul_(bits)
        return shifted.bitwise_and_(2**bits - 1).flatten(1)[:, :count]
    first = torch.arange(count, device=packed.device) * bits
    place, shift = first // _BYTE, (first % _BYTE).to(torch.int16)
    wide = torch.nn.functional.pad(octets, (0, 1)).to(torch.int16)  # a value takes at most two bytes
    pairs = wide[:, place] | (wide[:, place + 1] << _BYTE)
    # the sign that a high second byte gives is shifted in above the bits that are kept
    return (pairs >> shift).bitwise_and_(2**bits - 1).to(torch.uint8)


def _steps(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=like.device)
