"""How much a baseline that drops whole pieces of a network (layers, sublayers) drops: so many of them, or until at most
so many parameters are left. The pieces that matter least go first, all at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

THREE_QUARTERS = 0.75
Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Budget:
    """``max_params`` (up to 1: a fraction of the whole network's) or ``removed`` pieces; ``key`` is the setting of the
    latter."""

    max_params: float | None
    removed: int | None
    key: str

    @classmethod
    def of(cls, max_params: float | None, removed: int | None, key: str) -> Budget:
        """From the settings of a baseline; three quarters of the parameters where they say nothing.

        Raises:
            ValueError: both are given, or one is out of range.
        """
        if max_params is not None and removed is not None:
            raise ValueError(
                f"baseline.max_params={max_params} and baseline.{key}={removed}: allowed is one of them; set "
                f"baseline.{key}=null, or baseline.max_params=null"
            )
        if removed is not None:
            if removed < 1:
                raise ValueError(f"baseline.{key}={removed}: allowed is 1 or more, as baseline.{key}=1")
            return cls(None, removed, key)
        refuse_max_params(max_params)
        return cls(THREE_QUARTERS if max_params is None else max_params, None, key)

    def first(
        self, order: Sequence[Piece], params_without: Callable[[Sequence[Piece]], int], whole: int
    ) -> list[Piece]:
        """So many of the pieces of ``order``, the least important first, that the budget is met.

        Args:
            order: all pieces that may go.
            params_without: parameters of the network without some of them.
            whole: parameters of the network.

        Raises:
            ValueError: the budget cannot be met by these pieces, or leaves nothing to remove.
        """
        if self.removed is not None:
            if self.removed > len(order):
                raise ValueError(
                    f"baseline.{self.key}={self.removed}: {len(order)} of this network may go; allowed is "
                    f"{f'1 to {len(order)}' if order else 'none'}"
                )
            return list(order[: self.removed])
        assert self.max_params is not None
        if not order:
            raise ValueError(f"baseline.max_params={self.max_params}: nothing of this network may go")
        limit = limit_of(self.max_params, whole)
        for count in range(1, len(order) + 1):
            if params_without(order[:count]) <= limit:
                return list(order[:count])
        least = params_without(order)
        raise ValueError(
            f"baseline.max_params={self.max_params}: without all {len(order)} that may go the network has {least:,} "
            f"parameters, {least / whole:.4f} of {whole:,}: set "
            f"baseline.max_params={math.ceil(1000 * least / whole) / 1000} or more"
        )


def refuse_max_params(max_params: float | None) -> None:
    """Raises:
    ValueError: no number above 0, or 1, which is the whole network.
    """
    if max_params is not None and (max_params <= 0 or max_params == 1):
        raise ValueError(
            f"baseline.max_params={max_params}: allowed is a fraction of the network's parameters, above 0 and below "
            "1, or their number, as baseline.max_params=0.75"
        )


def limit_of(max_params: float, whole: int) -> int:
    """The largest number of parameters.

    Raises:
        ValueError: the whole network has no more.
    """
    limit = int(max_params * whole) if max_params <= 1 else int(max_params)
    if limit >= whole:
        raise ValueError(
            f"baseline.max_params={max_params}: the network has {whole:,} parameters, so that nothing would go; set "
            f"fewer, as baseline.max_params={THREE_QUARTERS}"
        )
    return limit
