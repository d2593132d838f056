"""Two processes train to the same weights as one on the same global batch, and stop together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ddp_training
import pytest
import torch

SCRIPT = Path(__file__).parent / "ddp_training.py"


def run(folder: Path, accumulate: int, mode: str) -> subprocess.CompletedProcess[str]:
    """Two processes."""
    paths = [str(SCRIPT.parent.parent), str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(SCRIPT), str(folder), "2", str(accumulate), mode]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.parametrize("mode", ["clean", "frozen"])
def test_two_processes_equal_one(tmp_path, mode):
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
    ddp_training.main(folders[0], 1, 2, mode)
    done = run(folders[1], 2, mode)
    assert done.returncode == 0, done.stderr
    assert "sync_dist" not in done.stderr, "validation is summed over the ranks already"
    one, two = (torch.load(folder / "weights.pt") for folder in folders)
    one_metrics, two_metrics = (torch.load(folder / "metrics.pt") for folder in folders)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
    assert one_metrics.keys() == two_metrics.keys()
    for name, value in one_metrics.items():
        assert two_metrics[name] == pytest.approx(value, rel=1e-4), name
    drawn = [(tmp_path / "2" / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0].split()) == 16


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(tmp_path):
    done = run(tmp_path, 1, "poison")
    assert done.returncode != 0
    assert "the loss of optimizer step 2 is not finite" in done.stderr
    assert "a batch of another rank" in done.stderr  # rank 0's word
    assert not (tmp_path / "weights.pt").exists()
