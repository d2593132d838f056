"""A run directory as the train stage leaves it, with made-up measurements over the real search space."""

import csv
import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from search_fixtures import Sizes, count

from nas_llm.atomic_files import write_json, write_text
from nas_llm.metrics import add_metrics
from nas_llm.run_directory import IMPORTANCE_FILE
from nas_llm.search import NSGA2, search_run_directory
from nas_llm.search_space import SearchSpace

CONFIGURATION = """\
model: {path: microworld_llama, dtype: null}
data: {_target_: nas_llm.data.text.TextDataModule, path: stories.jsonl, batch_size: 16}
importance: {_target_: nas_llm.importance.activation.ActivationImportance}
sampler: {_target_: nas_llm.samplers.sandwich.SandwichSampler, k: 2}
distillation: {_target_: nas_llm.distillation.forward_kl.ForwardKL, alpha: 0.5}
trainer: {max_steps: 150, precision: 32-true}
search: {_target_: nas_llm.search.nsga2.NSGA2, evaluations: 60, seed: "${seed}"}
stage: train
name: quickstart
seed: 0
run_dir: runs/quickstart
note: <script>alert("not run")</script>
"""
FULL = Sizes(hidden=256, layers=6, kv_groups=4, ffn=768)
UNITS = {"params": "parameters", "loss": "nats/token", "latency": "ms"}


def measure(architecture, known=None):
    params = float(count(architecture)) + 512.0 * architecture.hidden
    fraction = params / (count(FULL.largest()) + 512 * 256)
    wobble = 0.03 * math.sin(int(architecture.id, 16) % 97)
    loss = (
        0.42 + 0.18 * (1 / fraction**0.7 - 1) * (1 + 0.4 * abs(wobble) * 30) + 0.05 * (6 - len(architecture.layers)) / 6
    )
    return {"params": params, "loss": loss, "latency": 1.5 + 9 * fraction + 10 * abs(wobble)}


def untrained():
    def truncated(architecture, known):
        values = measure(architecture)
        return {"params": values["params"], "loss": min(7.5, 0.5 + 9 * (values["loss"] - 0.42) ** 0.5)}

    return truncated


def write_importance(run_dir: Path, *, method="Combined()", without=()) -> dict[str, np.ndarray]:
    """Made-up scores of every axis of FULL, two heads in a group; axes ``without`` are left out."""
    rng, full = np.random.default_rng(0), FULL.largest()
    scores = {"hidden": rng.random(full.hidden), "layers": np.array([5.0, 2.0, 0.5, 1.0, 3.0, 4.0])}
    for layer in full.layers:
        scores[f"layers.{layer.index}.ffn"] = rng.random(layer.ffn) ** 4
        scores[f"layers.{layer.index}.kv_groups"] = rng.random(4) - 0.2
        scores[f"layers.{layer.index}.heads_per_group"] = rng.random((4, 2))
    kept = {key: value.astype(np.float32) for key, value in scores.items() if key.rpartition(".")[2] not in without}
    save_file(kept, run_dir / IMPORTANCE_FILE, metadata={"method": method})
    return kept


def make_run(run_dir: Path, *, per_layer=False, evaluations=60, latency=False, exports=True) -> Path:
    space = SearchSpace.per_layer(FULL, depth=[3, 4, 5, 6]) if per_layer else SearchSpace.joint(FULL)
    directions = {"params": "min", "loss": "min", **({"latency": "min"} if latency else {})}
    search = NSGA2(space, directions, evaluations=evaluations, population=20)
    settings = {"units": UNITS, "full": FULL.largest(), "split": "validation", "samples": 256, "step": 150}
    outcome = search_run_directory(run_dir, search, measure, untrained=untrained, progress=False, **settings)
    write_text(run_dir / ".hydra" / "config.yaml", CONFIGURATION)
    write_json(run_dir / "search_space.json", space.to_dict())
    write_json(run_dir / "provenance.json", {"stages": [_provenance()]})
    write_importance(run_dir)
    _write_log(run_dir / "logs" / "version_0" / "metrics.csv", range(0, 90, 10))
    _write_log(run_dir / "logs" / "version_1" / "metrics.csv", range(80, 151, 10))
    for fraction in (0.75, 0.5, 0.25) if exports else ():
        _export(run_dir, outcome.front.pick(max_params=fraction).architecture, stock=not per_layer)
    accuracy = {"name": "accuracy", "value": 0.914, "unit": "1", "split": "test", "samples": 400, "data": "containment"}
    add_metrics(run_dir, [{**accuracy, "architecture": outcome.front.evaluations[-1].id}])
    return run_dir


def _provenance():
    return {
        "stage": "train",
        "argv": ["nas-llm", "train", "experiment=quickstart"],
        "seed": 0,
        "status": "finished",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 187.2,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "pymoo": "0.6.2"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        "hardware": {"platform": "Linux", "cpu": "A processor", "cores": 2, "memory_gib": 15.6, "gpus": []},
    }


def _write_log(path, steps):
    path.parent.mkdir(parents=True)
    columns = ["epoch", "step", "train/loss_sampled", "val/loss_largest", "val/loss_middle", "val/loss_smallest"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for step in steps:
            decay = math.exp(-step / 40)
            writer.writerow([0, step, 0.9 + 3 * decay + 0.1 * math.sin(step), "", "", ""])
            writer.writerow([0, step, "", 0.42 + 0.1 * decay, 0.7 + 3 * decay, 1.1 + 5 * decay])


def _export(run_dir, architecture, stock):
    config = {"model_type": "llama" if stock else "nas_llm", "architectures": ["LlamaForCausalLM"]}
    write_text(run_dir / "subnets" / architecture.id / "config.json", json.dumps(config))
