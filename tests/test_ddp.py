"""Two processes train to the same weights as one on the same global batch, and stop together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "ddp_training.py"


def run(folder: Path, devices: int, accumulate: int = 1, mode: str = "clean") -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    paths = [str(SCRIPT.parent.parent), str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(SCRIPT), str(folder), str(devices), str(accumulate), mode]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.parametrize("mode", ["clean", "frozen"])
def test_two_processes_equal_one(tmp_path, mode):
    found = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        done = run(folder, devices, accumulate=2, mode=mode)
        assert done.returncode == 0, done.stderr
        assert "sync_dist" not in done.stderr, "validation is summed over the ranks already"
        found.append((torch.load(folder / "weights.pt"), torch.load(folder / "metrics.pt")))
    (one, one_metrics), (two, two_metrics) = found
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
    assert one_metrics.keys() == two_metrics.keys()
    for name, value in one_metrics.items():
        assert two_metrics[name] == pytest.approx(value, rel=1e-4), name
    drawn = [(tmp_path / "2" / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0].split()) == 16


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(tmp_path):
    done = run(tmp_path, 2, mode="poison")
    assert done.returncode != 0
    assert "the loss of optimizer step 2 is not finite" in done.stderr
    assert "a batch of another rank" in done.stderr  # rank 0's word
    assert not (tmp_path / "weights.pt").exists()
