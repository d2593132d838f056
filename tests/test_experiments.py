"""The sweep files of experiments/: every run that an agent would start composes, and one runs offline."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nas_llm.composition import checked

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SWEEPS = sorted(EXPERIMENTS.glob("*/sweep.yaml"))


def runs(sweep: Path) -> list[list[str]]:
    """What the agent's command becomes for every point of the grid."""
    file = yaml.safe_load(sweep.read_text())
    names = list(file["parameters"])
    points = itertools.product(*(file["parameters"][name]["values"] for name in names))
    found = []
    for point in points:
        given = [f"{name}={value}" for name, value in zip(names, point, strict=True)]
        found.append([word for part in file["command"] for word in (given if part.startswith("${") else [part])])
    return found


@pytest.mark.parametrize("sweep", SWEEPS, ids=[path.parent.name for path in SWEEPS])
def test_every_run_of_a_sweep_composes(sweep, tmp_path):
    arms: dict[tuple[str, ...], list[str]] = {}  # the seeds of one arm make the same configuration
    for program, stage, *overrides in runs(sweep):
        assert (program, stage) == ("nas-llm", "train")
        seeds = [override for override in overrides if override.startswith("seed=")]
        arms.setdefault(tuple(o for o in overrides if o not in seeds), []).extend(seeds)
    for overrides, seeds in arms.items():
        cfg = checked([*overrides, seeds[-1], "stage=train", f"run_dir={tmp_path}/run"])
        assert cfg.logger["_target_"].endswith("WandbLogger")
        assert seeds == [f"seed={number}" for number in range(len(seeds))]
        assert cfg.seed == len(seeds) - 1


def test_a_run_of_a_sweep_logs_offline(tmp_path):
    _, *arguments = runs(EXPERIMENTS / "ablation_samplers" / "sweep.yaml")[-1]
    small = ["debug=fast", "logger.offline=true", "search_space.steps=2", "objectives=[params,loss]"]
    small += ["sampler.candidates.bins=3", "sampler.candidates.candidates_per_bin=2", "data.train_size=40"]
    small += ["data.validation_size=4", "data.calibration_size=12", "data.test_size=2"]
    environment = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nas_llm", *arguments, *small, f"run_dir={tmp_path}/run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "run").rglob("*.wandb"))
