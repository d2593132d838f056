"""What the tests of operators share: first weights without calibration, a pool of one of each kind, batches."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping, Sequence

import torch
from test_families import build

from nas_llm.models.block_walk import Batch
from nas_llm.models.operator_modules import build_sublayer
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import SUBLAYERS, Ffn, Heads, Identity, Linear, Operator, Sparse, Teacher
from nas_llm.operators import Place
from nas_llm.operators.distilling import Distilling, Job, Modules, Splits
from nas_llm.operators.groups import Group, groups_of
from nas_llm.operators.library import Library
from nas_llm.operators.local_losses import LocalLoss, SquareHead
from nas_llm.operators.needs import Needs


def slices(supernet: Supernet, operators: Mapping[Place, Sequence[Operator]], batches: Iterable[Batch]) -> Modules:
    """The first units of the teacher: what needs no calibration."""
    return {place: {o: build_sublayer(supernet, *place, o) for o in found} for place, found in operators.items()}


def pool(supernet: Supernet) -> dict[Place, tuple[Operator, ...]]:
    full = supernet.largest().layers[0]
    attention: list[Operator] = [Teacher(), Heads(full.kv_groups - 1, full.heads_per_group, full.head_dim)]
    if "head_dim" in supernet.elastic_axes:
        attention.append(Heads(full.kv_groups, 1, full.head_dim // 2))
    if not supernet.mixes_attention:
        attention += [Identity(), Linear()]
    mlp = (Teacher(), Identity(), Linear(), Ffn(full.ffn // 2), Sparse("2:4", "in"))
    found: dict[Place, tuple[Operator, ...]] = {}
    for layer in range(supernet.largest().num_layers):
        for sublayer in SUBLAYERS:
            found[layer, sublayer] = tuple(attention) if sublayer == "attention" else mlp
    return found


def batches(count: int, seed: int = 0, *, padded: bool = True) -> list[dict[str, torch.Tensor]]:
    """Of 3 x 10 tokens, the second record's last ones padding."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        ids = torch.randint(3, 96, (3, 10), generator=generator)
        mask = torch.ones_like(ids)
        if padded:
            mask[1, 6:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


SPLITS = Splits(train=batches(6), calibration=batches(2, 1), held_out=batches(2, 2))


def teacher(name: str = "llama") -> Supernet:
    return build(name, num_hidden_layers=2, **({"layer_types": None} if name == "gemma3_text" else {}))


def grouped(supernet: Supernet, operators: Mapping[Place, Sequence[Operator]], **changes) -> list[Group]:
    return groups_of(operators, Needs(supernet, 3, 10), **{"memory_gib": None, **changes})


def distilled(
    supernet: Supernet,
    path,
    settings: Distilling = Distilling(steps=3, lr=1e-2),  # noqa: B008  # a value
    loss: LocalLoss = SquareHead(),  # noqa: B008
    operators: Mapping[Place, Sequence[Operator]] | None = None,
    **changes,
) -> Library:
    """The pool, in one process."""
    library = Library(path)
    library.begin(supernet, settings=settings.of_results, pool={})
    job = Job(library, SPLITS, settings, loss, slices)
    job(supernet, grouped(supernet, operators or pool(supernet), **changes), lambda flops, finished: None)
    return library


def again() -> Supernet:
    """The teacher in another process."""
    torch.set_num_threads(1)
    return teacher()


def killed_behind_the_first(
    supernet: Supernet, operators: Mapping[Place, Sequence[Operator]], batches: Iterable[Batch]
) -> Modules:
    """First weights of the first group; a kill, that no clean-up can follow, in place of those of the others."""
    if (0, "attention") not in operators:
        os.kill(os.getpid(), signal.SIGKILL)
    return slices(supernet, operators, batches)
