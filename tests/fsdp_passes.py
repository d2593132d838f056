"""Sandwich passes on a super-network, whole or sharded by FSDP2 over two CPU processes: run by test_fsdp.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from training_fixtures import records, tiny_supernet

from nas_llm.data.loader import Collate
from nas_llm.distillation import ForwardKL, HiddenMatching
from nas_llm.lightning.sandwich import sandwich_passes
from nas_llm.samplers import SandwichSampler
from nas_llm.search_space import SearchSpace

torch.set_num_threads(1)


def gradients(tied: bool, mesh: DeviceMesh | None = None) -> dict[str, torch.Tensor]:
    """Those of two optimizer steps, name -> whole gradient; with a mesh, the passes see sharded weights."""
    supernet = tiny_supernet(tie_word_embeddings=tied)
    space = SearchSpace.joint(supernet)
    if mesh is not None:
        for block in supernet.model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(supernet.model, mesh=mesh)
    batch = Collate(0)(records(6))
    for step in range(2):  # the second step meets weights that were sharded again
        sandwich_passes(
            supernet,
            SandwichSampler(space, k=2)(step, np.random.default_rng(step)),
            batch,
            teacher=space.largest(),
            distillation=ForwardKL(),
            backward=lambda loss: loss.backward(),
            hidden_matching=HiddenMatching(100.0),
            teacher_logits="recomputed" if tied else "recorded",
        )
    if mesh is not None:
        outside = [type(p).__name__ for p in supernet.model.parameters()]
        assert set(outside) == {"DTensor"}, "weights lie sharded between the passes"
    return {
        name: p.grad if mesh is None else p.grad.full_tensor()
        for name, p in supernet.model.named_parameters()
        if p.grad is not None
    }


def main(folder: Path) -> None:
    """One rank: the sharded gradients without and with tied embeddings, which rank 0 writes."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    for tied in (False, True):
        found = gradients(tied, mesh)
        if rank == 0:
            torch.save(found, folder / f"{'tied' if tied else 'untied'}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
