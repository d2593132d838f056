"""Batches: right padding to the longest record, a train loader that resumes exactly, and a plain one for evaluation.

Neither loader is a torch DataLoader, so Lightning never puts a sampler of its own into them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from nas_llm.data.records import IGNORE_INDEX

Record = dict[str, torch.Tensor]
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Collate:
    """Records of any length -> `{"input_ids", "attention_mask", "labels"}`, LongTensors (batch, longest record)."""

    pad_token_id: int

    def __call__(self, records: Sequence[Record]) -> Batch:
        longest = max(len(record["input_ids"]) for record in records)
        input_ids = torch.full((len(records), longest), self.pad_token_id)
        attention_mask = torch.zeros(len(records), longest, dtype=torch.long)
        labels = torch.full((len(records), longest), IGNORE_INDEX)
        for row, record in enumerate(records):
            length = len(record["input_ids"])
            input_ids[row, :length] = record["input_ids"]
            attention_mask[row, :length] = 1
            labels[row, :length] = record["labels"]
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def _torch_loader(
    records: Any, collate: Collate, batches: Iterator[list[int]], num_workers: int, pin_memory: bool
) -> DataLoader:
    # An own generator: a DataLoader draws a seed for its workers, which would move torch's global generator.
    return DataLoader(
        records,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of index lists will do
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


class TrainLoader:
    """An endless stream of global batches, cut into epochs of `len(self)` batches.

    Global batch s is order(seed, s // len(self))[position * batch_size : (position + 1) * batch_size] of the records,
    position = s % len(self), whatever the number of ranks; rank r yields the records r::world_size of it. An incomplete
    last batch of an epoch is dropped. Each iterator goes on where the stream stands and yields `len(self)` batches, so
    that the loader may be left and re-entered at any step.

    Raises ValueError if batch_size is not divisible by world_size, or exceeds the number of records.
    """

    def __init__(
        self,
        records: Any,
        collate: Collate,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        fingerprint: str = "",
        start: int = 0,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(
                f"data.batch_size={batch_size} is the size of the global batch and not divisible by the {world_size} "
                f"processes; set data.batch_size={-(-batch_size // world_size) * world_size} or change trainer.devices"
            )
        if batch_size > len(records):
            raise ValueError(
                f"data.batch_size={batch_size} exceeds the {len(records)} training records; "
                f"set data.batch_size to at most {len(records)} or give more data"
            )
        self._records, self._collate = records, collate
        self._batch_size, self._seed, self._fingerprint = batch_size, seed, fingerprint
        self._rank, self._world_size = rank, world_size
        self._num_workers, self._pin_memory = num_workers, pin_memory
        self._step = start

    def __len__(self) -> int:
        return len(self._records) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        indices = self.indices(self._step, len(self))
        for batch in _torch_loader(self._records, self._collate, indices, self._num_workers, self._pin_memory):
            self._step += 1  # counts batches handed out, not those that workers have prefetched
            yield batch

    def indices(self, start: int, count: int) -> Iterator[list[int]]:
        """This rank's record indices of the global batches start ... start + count - 1."""
        epoch, order = -1, np.zeros(0, dtype=np.int64)
        for step in range(start, start + count):
            if step // len(self) != epoch:
                epoch = step // len(self)
                order = np.random.default_rng([self._seed, epoch]).permutation(len(self._records))
            first = step % len(self) * self._batch_size
            yield order[first : first + self._batch_size][self._rank :: self._world_size].tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the saved step. Raises ValueError if the order of this loader's batches is another one."""
        for key, value in self._identity().items():
            if state[key] != value:
                raise ValueError(
                    f"cannot resume: the data differ from the checkpoint's in {key} ({value!r} now, {state[key]!r} in "
                    f"the checkpoint); use the run's own data settings and seed, or start anew with another run_dir"
                )
        self._step = int(state["step"])

    def _identity(self) -> dict[str, Any]:
        return {
            "batch_size": self._batch_size,
            "seed": self._seed,
            "records": len(self._records),
            "fingerprint": self._fingerprint,
        }


class EvalLoader:
    """Every record once, in order, the last batch as short as it comes; the same on every rank."""

    def __init__(
        self, records: Any, collate: Collate, *, batch_size: int, num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        self._records, self._collate, self._batch_size = records, collate, batch_size
        self._num_workers, self._pin_memory = num_workers, pin_memory

    def __len__(self) -> int:
        return -(-len(self._records) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        size = self._batch_size
        indices = (list(range(i, min(i + size, len(self._records)))) for i in range(0, len(self._records), size))
        yield from _torch_loader(self._records, self._collate, indices, self._num_workers, self._pin_memory)
