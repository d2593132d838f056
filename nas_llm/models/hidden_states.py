"""The hidden states of a calibration set, batch by batch: in memory, or in a temporary file where they are many.

They grow with the data, not with the model: 128 records of 2,048 tokens of a LLaMA-7B are 2 GiB in half precision,
five of its blocks. The file has no name, so that it goes with the process, and lies where temporary files do (TMPDIR).
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
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
        self._file = None if in_memory else _temporary_file()
        if self._file is not None:
            weakref.finalize(self, _close, self._file)  # blocks of a walk that has ended may be asked for more

    def __getitem__(self, number: int) -> Tensor | None:
        """None where none has been put yet."""
        if self._file is None or number not in self._kept:
            return self._held.get(number)
        shape, dtype, device = self._kept[number]
        read = torch.empty(shape, dtype=dtype)
        self._file.seek(self._starts[number] * dtype.itemsize)
        count = self._file.readinto(_bytes(read))  # type: ignore[attr-defined]
        assert count == read.nbytes
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
            self._file.flush()
        except OSError as error:
            gib = self._starts[-1] * states.dtype.itemsize / 2**30
            raise ValueError(
                f"the hidden states of the calibration data ({gib:.1f} GiB) cannot be written to "
                f"{tempfile.gettempdir()} ({error.strerror}): set the environment variable TMPDIR to a folder with "
                "room, or calibrate on less, data.calibration_size="
            ) from error


def _temporary_file() -> BinaryIO:
    return tempfile.TemporaryFile()  # type: ignore[return-value]  # buffered: it writes all, or raises


def _close(file: BinaryIO) -> None:
    with suppress(OSError):  # of a full disk, which has been said
        file.close()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.flatten().view(torch.uint8).numpy().data
