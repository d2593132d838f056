"""Which linear modules become sparse: all of the transformer blocks, or those that the settings name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nas_llm.models.block_walk import Projection, projections
from nas_llm.models.supernet import Supernet
from nas_llm.sparsity.amount import Amount

if TYPE_CHECKING:
    from nas_llm.sparsity import Sparsity

Targets = Sequence[str] | None
"""Names of modules, or ends of names at a dot (``q_proj``, ``layers.0.mlp.up_proj``); None: all of the blocks."""


def chosen(supernet: Supernet, method: Sparsity) -> tuple[Projection, ...]:
    """The projections that a method makes sparse, in the order of the model.

    Raises:
        ValueError: a target matches nothing (the names that there are are listed), or the pattern does not divide a
            width; nothing has been changed then.
    """
    targets, amount = method.targets, Amount.of(method.sparsity, method.pattern)
    every = [projection for of_block in projections(supernet) for projection in of_block]
    for target in ("",) if targets is not None and not targets else targets or ():
        if not any(_matches(projection.name, target) for projection in every):
            given = f"sparsity.targets=[{','.join(targets or ())}]"
            raise ValueError(
                f"{given}: {target or 'nothing'} is no linear module of the blocks; allowed are "
                f"{', '.join(_ends(every))}, longer ends of names as {every[0].name}, or sparsity.targets=null for "
                "all (the output head and the embeddings stay dense)"
            )
    found = tuple(p for p in every if targets is None or any(_matches(p.name, target) for target in targets))
    for projection in found:
        amount.refuse_width(projection)
    return found


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _ends(every: Sequence[Projection]) -> list[str]:
    return list(dict.fromkeys(projection.name.rpartition(".")[2] for projection in every))
