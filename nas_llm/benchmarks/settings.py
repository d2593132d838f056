"""What the settings of every benchmark allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any


def refuse_below_one(benchmark: Any, but: Sequence[str] = ()) -> None:
    """Looks at the fields of a benchmark, a dataclass; those whose default is None may be None.

    Raises:
        ValueError: the first number below 1, of those that are not named in ``but``.
    """
    for field in fields(benchmark):
        value = getattr(benchmark, field.name)
        if field.name in but or not isinstance(value, int | float) or value >= 1:
            continue
        null = ", or null for one per core" if field.name == "threads" and field.default is None else ""
        raise ValueError(f"bench.{field.name}={value}: allowed is 1 or more{null}")
