"""The settings of data read from files: where each split comes from, how large it is, where tokens are cached."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nas_llm.data.cache import cached_records
from nas_llm.data.records import TokenRecords
from nas_llm.data.sources import Source, open_source
from nas_llm.data.splits import HELD_OUT, check_size, split_records


@dataclass(frozen=True)
class DataFiles:
    """A main path that is split by size, and a path of its own for each held-out split that has one.

    Raises ValueError for a missing path, sizes that are neither counts nor fractions, or max_records < 1.
    """

    path: str
    paths: Mapping[str, str | None]  # held-out split -> its own file, which makes its size void
    sizes: Mapping[str, float]  # held-out split -> fraction of `path`, or count
    seed: int
    subset: str | None
    max_records: int | None
    cache_dir: str | None

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError(
                f"data.path={self.path!r} names no data; set data.path to a file, a folder or a hub dataset"
            )
        for split, size in self.sizes.items():
            check_size(split, size)
        if self.max_records is not None and self.max_records < 1:
            raise ValueError(
                f"data.max_records={self.max_records} must be at least 1; set data.max_records=null for all"
            )

    def tokenise(
        self, read: Callable[[Source, int | None], TokenRecords], signature: Mapping[str, Any]
    ) -> dict[str, TokenRecords]:
        """`train` (all of `path`) and each held-out split that has a path of its own, read once and cached."""
        own = [split for split in HELD_OUT if self.paths[split]]
        records = {}
        for split in ("train", *own):
            limit = self.max_records if split == "train" else None
            source = self.source(split)
            key = {**signature, "source": source.digest(), "limit": limit}
            records[split] = cached_records(lambda s=source, n=limit: read(s, n), key, self.cache_dir)  # type: ignore[misc]
        return records

    def source(self, split: str) -> Source:
        """What `split` is read from: `path` for "train", a held-out split's own path where it has one."""
        path = self.path if split == "train" else self.paths[split]
        assert path, f"{split} has no path of its own"
        return open_source(path, "data.path" if split == "train" else f"data.{split}_path", self.subset)

    def split(self, records: Mapping[str, TokenRecords], block_length: int | None = None) -> dict[str, TokenRecords]:
        """The four disjoint splits of what `tokenise` gave."""
        files = {split: records[split] for split in HELD_OUT if split in records}
        return split_records(records["train"], files, self.sizes, seed=self.seed, block_length=block_length)


def check_sequence_length(sequence_length: int, model_max_length: int | None) -> None:
    """Raises ValueError for fewer than 8 tokens, or more than the model has positions for."""
    allowed = "8 or more" if model_max_length is None else f"between 8 and the model's {model_max_length}"
    if sequence_length < 8 or (model_max_length is not None and sequence_length > model_max_length):
        mend = 512 if model_max_length is None else min(512, model_max_length)
        raise ValueError(
            f"data.sequence_length={sequence_length} must be {allowed} tokens; set data.sequence_length={mend}"
        )
