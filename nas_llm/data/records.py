"""Tokenised records in flat arrays: one token stream, the offsets in it, and how many leading tokens bear no loss.

Shapes: tokens (total,), offsets (records + 1,), masked (records,); record i is tokens[offsets[i] : offsets[i + 1]].
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

IGNORE_INDEX = -100


@dataclass(frozen=True)
class TokenRecords:
    """A sized, indexable sequence of `{"input_ids", "labels"}`, LongTensors of shape (length of the record,)."""

    tokens: np.ndarray
    offsets: np.ndarray
    masked: np.ndarray

    @classmethod
    def from_lists(
        cls, input_ids: Iterable[Sequence[int] | np.ndarray], masked: Sequence[int] | None = None
    ) -> "TokenRecords":
        """Records from token lists; the labels of the first `masked[i]` tokens of record i become -100."""
        arrays = [np.asarray(ids, dtype=np.int32) for ids in input_ids]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in arrays], out=offsets[1:])
        tokens = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)
        return cls(tokens, offsets, np.asarray([0] * len(arrays) if masked is None else masked, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.masked)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        input_ids = torch.from_numpy(self.ids(index % len(self)).astype(np.int64))
        labels = input_ids.clone()
        labels[: int(self.masked[index])] = IGNORE_INDEX
        return {"input_ids": input_ids, "labels": labels}

    def ids(self, index: int) -> np.ndarray:
        """The tokens of one record, a view of shape (length,)."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each record, shape (records,)."""
        return np.diff(self.offsets)

    def take(self, indices: Iterable[int]) -> "TokenRecords":
        """The chosen records, in the order given."""
        chosen = [int(index) for index in indices]
        return TokenRecords.from_lists([self.ids(index) for index in chosen], [int(self.masked[i]) for i in chosen])

    def update_hash(self, digest: Any) -> None:
        """Feed the content to a `hashlib` digest."""
        for array in (self.tokens, self.offsets, self.masked):
            digest.update(np.ascontiguousarray(array).tobytes())

    def keys(self) -> list[bytes]:
        """A content key of each record: equal tokens, equal key (whatever their mask)."""
        return [
            hashlib.blake2b(np.ascontiguousarray(self.ids(index)).tobytes(), digest_size=16).digest()
            for index in range(len(self))
        ]
