"""The hidden states of a calibration set, batch by batch: in memory, or in a temporary file where they are many.

They grow with the data, not with the model: 128 records of 2,048 tokens of a LLaMA-7B are 2 GiB in half precision,
five of its blocks. The file has no name, so that it goes with the process, and lies where temporary files do (TMPDIR).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import BinaryIO

import torch
from torch import Tensor


class HiddenStates:
    """One tensor per batch, read and replaced by the batch's number, all of one dtype on one device.

    Args:
        sizes: numbers of each batch's tensor, (batch, sequence, hidden).
        in_memory: whether they are held as they are; otherwise they are written as bytes.
    """

    def __init__(self, sizes: Sequence[int], *, in_memory: bool) -> None:
        self._starts = list(accumulate(sizes, initial=0))
        self._held: dict[int, Tensor] = {}
        self._kept: dict[int, tuple[torch.Size, torch.dtype, torch.device]] = {}
        self._closing, self._file = ExitStack(), None
        if not in_memory:
            self._file = self._closing.enter_context(_temporary_file())

    def __getitem__(self, number: int) -> Tensor:
        if self._file is None:
            return self._held[number]
        shape, dtype, device = self._kept[number]
        read = torch.empty(shape, dtype=dtype)
        self._file.seek(self._starts[number] * dtype.itemsize)
        self._file.readinto(_bytes(read))  # type: ignore[attr-defined]
        return read.to(device)

    def __setitem__(self, number: int, states: Tensor) -> None:
        """Raises:
        ValueError: the file cannot be written.
        """
        assert states.numel() == self._starts[number + 1] - self._starts[number]
        if self._file is None:
            self._held[number] = states
            return
        self._kept[number] = (states.shape, states.dtype, states.device)
        try:
            self._file.seek(self._starts[number] * states.dtype.itemsize)
            self._file.write(_bytes(states.cpu().contiguous()))
        except OSError as error:
            gib = self._starts[-1] * states.dtype.itemsize / 2**30
            raise ValueError(
                f"the hidden states of the calibration data ({gib:.1f} GiB) cannot be written to "
                f"{tempfile.gettempdir()} ({error.strerror}): set the environment variable TMPDIR to a folder with "
                "room, or calibrate on less, data.calibration_size="
            ) from error

    def close(self) -> None:
        """Lets the file go; nothing can be read then."""
        self._held.clear()
        self._closing.close()


def _temporary_file() -> BinaryIO:
    return tempfile.TemporaryFile(buffering=0)  # type: ignore[return-value]  # a raw file, of no buffer of its own


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
