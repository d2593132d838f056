"""Disjoint train / calibration / validation / test splits, a function of the seed and of the records' order alone.

Records with equal tokens never land in two splits. A size is a fraction of `data.path` or a count of records; for
packed text a record is a block, and whole documents are taken until they fill that many blocks.
"""

import logging
from collections.abc import Iterable, Mapping

import numpy as np

from nas_llm.data.records import TokenRecords

log = logging.getLogger(__name__)

HELD_OUT = ("test", "validation", "calibration")  # in this order a shared record is given away


def check_size(split: str, size: float) -> None:
    """Raises ValueError unless size is a count (an int >= 0) or a fraction (a float in [0, 1))."""
    key = f"data.{split}_size"
    fraction = isinstance(size, float) and 0 <= size < 1
    count = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    if not fraction and not count:
        raise ValueError(f"{key}={size!r} must be a count (an integer >= 0) or a fraction (0.0 to 1.0); set {key}=0.05")


def split_records(
    main: TokenRecords,
    files: Mapping[str, TokenRecords],
    sizes: Mapping[str, float],
    *,
    seed: int,
    block_length: int | None = None,
) -> dict[str, TokenRecords]:
    """The four splits: those in `files` as they are, the others drawn from `main` by `sizes`, the rest to train on.

    With `block_length` sizes count blocks of that many tokens. Held-out splits drawn from `main` hold distinct records.
    Raises ValueError if the sizes leave nothing to train on.
    """
    taken: set[bytes] = set()
    splits: dict[str, TokenRecords] = {}
    for name in HELD_OUT:
        if name in files:
            file_keys = files[name].keys()
            splits[name] = _without(files[name], file_keys, taken, name)
            taken.update(file_keys)
    keys = main.keys()
    lengths = main.lengths if block_length else np.ones(len(main), dtype=np.int64)
    remaining = iter(np.random.default_rng(seed).permutation(len(main)).tolist())
    for name in HELD_OUT:
        if name not in files:
            target = _target(sizes[name], int(lengths.sum()), block_length or 1)
            chosen = _draw(remaining, keys, lengths, target, taken)
            if chosen is None:
                raise _too_large(sizes, files, len(main), int(lengths.sum()), block_length)
            splits[name] = main.take(sorted(chosen))
    splits["train"] = _without(main, keys, taken, "train")
    if not len(splits["train"]):
        raise _too_large(sizes, files, len(main), int(lengths.sum()), block_length)
    return splits


def _target(size: float, total: int, unit: int) -> int:
    if isinstance(size, int):
        return size * unit
    return max(unit, round(size * total)) if size else 0


def _draw(
    remaining: Iterable[int], keys: list[bytes], lengths: np.ndarray, target: int, taken: set[bytes]
) -> list[int] | None:
    """Distinct records until their lengths reach the target, noted in `taken`; None if there are too few."""
    chosen: list[int] = []
    filled = 0
    if target == 0:
        return chosen
    for index in remaining:
        if keys[index] in taken:
            continue
        taken.add(keys[index])
        chosen.append(index)
        filled += int(lengths[index])
        if filled >= target:
            return chosen
    return None


def _without(records: TokenRecords, keys: list[bytes], taken: set[bytes], name: str) -> TokenRecords:
    kept = [index for index, key in enumerate(keys) if key not in taken]
    if len(kept) < len(records):
        log.info("%s: %d of %d records belong to another split", name, len(records) - len(kept), len(records))
    return records if len(kept) == len(records) else records.take(kept)


def _too_large(
    sizes: Mapping[str, float], files: Mapping[str, TokenRecords], records: int, total: int, block_length: int | None
) -> ValueError:
    asked = ", ".join(f"data.{name}_size={sizes[name]}" for name in reversed(HELD_OUT) if name not in files)
    asked = ", ".join(filter(None, [asked, *(f"data.{name}_path" for name in reversed(HELD_OUT) if name in files)]))
    held = (
        f"{records} documents, {total // block_length} blocks of data.sequence_length={block_length}"
        if block_length
        else f"{records} records"
    )
    return ValueError(
        f"the held-out splits ({asked}) leave nothing of data.path ({held}, duplicates counted) to train on; "
        "make them smaller or give more data"
    )
