"""Nothing stands in the way of FSDP2: sandwich passes on sharded weights give the gradients of whole ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "fsdp_passes.py"


def start(folder: Path, mode: str, tied: str, rank: int = 0, world: int = 1) -> subprocess.Popen[str]:
    paths = [str(SCRIPT.parent.parent), str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
    }
    arguments = [sys.executable, str(SCRIPT), str(folder), mode, tied]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("tied", ["untied", "tied"])
def test_sharded_gradients_are_the_whole_ones(tmp_path, tied):
    processes = [start(tmp_path, "whole", tied), *(start(tmp_path, "shard", tied, rank, 2) for rank in range(2))]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    whole, sharded = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "sharded"))
    assert whole.keys() == sharded.keys()
    for name, gradient in whole.items():  # both ranks saw the same batch, and FSDP2 averages over ranks
        torch.testing.assert_close(sharded[name], gradient, rtol=1e-4, atol=1e-5)
