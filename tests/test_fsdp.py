"""Nothing stands in the way of FSDP2: sandwich passes on sharded weights give the gradients of whole ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fsdp_passes import gradients

SCRIPT = Path(__file__).parent / "fsdp_passes.py"


def start(folder: Path, rank: int) -> subprocess.Popen[str]:
    paths = [str(SCRIPT.parent.parent), str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "WORLD_SIZE": "2",
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have written: the gradients without and with tied embeddings."""
    folder = tmp_path_factory.mktemp("sharded")
    for process in [start(folder, rank) for rank in range(2)]:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_sharded_gradients_are_the_whole_ones(sharded, tied):
    whole, found = gradients(tied), torch.load(sharded / f"{'tied' if tied else 'untied'}.pt")
    assert whole.keys() == found.keys()
    for name, gradient in whole.items():  # both ranks saw the same batch, and FSDP2 averages over ranks
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
