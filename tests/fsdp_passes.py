"""Sandwich passes on a super-network sharded by FSDP2 over two CPU processes: run by test_fsdp.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training_fixtures import records, tiny_supernet

from nas_llm.data.loader import Collate
from nas_llm.distillation import ForwardKL, HiddenMatching
from nas_llm.lightning.sandwich import sandwich_passes
from nas_llm.samplers import SandwichSampler
from nas_llm.search_space import SearchSpace

torch.set_num_threads(1)


def main(folder: Path, shard: bool, tied: bool) -> None:
    supernet = tiny_supernet(tie_word_embeddings=tied)
    space = SearchSpace.joint(supernet)
    if shard:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
        mesh = init_device_mesh("cpu", (world,))
        for block in supernet.model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(supernet.model, mesh=mesh)
    else:
        rank = 0
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
    whole = {
        name: p.grad.full_tensor() if shard else p.grad
        for name, p in supernet.model.named_parameters()
        if p.grad is not None
    }
    if shard:
        outside = [type(p).__name__ for p in supernet.model.parameters()]
        assert set(outside) == {"DTensor"}, "weights lie sharded between the passes"
    if rank == 0:
        torch.save(whole, folder / ("sharded.pt" if shard else "whole.pt"))
    if shard:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "shard", sys.argv[3] == "tied")
