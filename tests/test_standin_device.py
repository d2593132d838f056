"""Everything that a network does is done where it lies: commands on a device that refuses what CUDA refuses."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("standin_device.py")
ON = "model.path=microworld_llama trainer.accelerator=standin"
DATA = "data.calibration_size=4 data.validation_size=8 data.test_size=8 data.train_size=24 data.batch_size=4"
SHORT = f"{DATA} trainer.max_steps=2 trainer.limit_val_batches=1 search.evaluations=3"
PRUNED = (
    "sparsegpt baseline.pattern=2:4 baseline.targets=[v_proj]",
    "slicegpt baseline.sparsity=0.25",
    "minitron baseline.max_params=0.75",
    "gptq baseline.group_size=8 baseline.targets=[v_proj]",
)
COMMANDS = {
    "a super-network": [
        f"train {ON} run_dir=RUN {SHORT} trainer.precision=bf16-mixed training.gradient_checkpointing=true "
        "importance=activation_block sampler=calibrated distillation=forward_kl",
        "evaluate run_dir=RUN objectives=[loss,accuracy,perplexity] objectives.accuracy.test_sets.items_per_set=2",
        "search run_dir=RUN search.evaluations=5",
    ],
    "adapters on integers": [
        f"train experiment=low_rank_adapters/sqft_qa_sparse_peft trainer.accelerator=standin run_dir=RUN {SHORT} "
        "objectives.accuracy.sets.items_per_set=2"
    ],
    "networks of operators": [
        f"distill {ON} run_dir=RUN {DATA} trainer.limit_val_batches=1 distill.steps=2 distill.score_batches=1 "
        "'pool.attention=[teacher,identity,linear,heads-0.5x1.0x1.0]' 'pool.mlp=[teacher,linear,ffn-0.5]' search=none",
        "search run_dir=RUN search=ilp search.number=2 select.steps=2 budget.params=0.7",
    ],
    "baselines": [
        *(f"prune {ON} run_dir=RUN/{place} {DATA} baseline={each}" for place, each in enumerate(PRUNED)),
        "bench latency bench.paths=[microworld_llama,RUN/3/model] bench.device=standin run_dir=RUN/latency "
        "bench.measures=[prefill,decode,throughput] bench.rounds=2 bench.generation_rounds=1 bench.memory=false "
        "bench.sequence_length=16 bench.new_tokens=4 bench.generation_batch_size=2",
    ],
    "scores of importance": [
        f"analyse importance {ON} run_dir=RUN {DATA} analysis.compare=[activation_block,wanda,taylor] "
        "analysis.subnetworks=2 analysis.batches=1"
    ],
}
REFUSED = """
import torch, standin_device
there, here = torch.arange(6.0, device="standin").view(2, 3), torch.ones(2, 3)
assert there.device.type == "standin" and torch.equal((there + 1).cpu(), torch.arange(6.0).view(2, 3) + 1)
for wrong in (
    lambda: there + here,
    lambda: torch.cat([there, here]),
    lambda: here[there.long()],
    lambda: torch.nn.functional.linear(there, here),
    lambda: torch.rand(3, device="standin", generator=torch.Generator()),
    lambda: there.numpy(),
    lambda: there.index_select(0, torch.tensor([1])),
):
    try:
        wrong()
    except (RuntimeError, TypeError):
        continue
    raise AssertionError("taken")
assert torch.equal(there[torch.tensor([1])].cpu(), torch.tensor([[3.0, 4.0, 5.0]]))
layer = torch.nn.Linear(3, 2).to("standin")
layer(there).sum().backward()
torch.optim.AdamW(layer.parameters()).step()
assert layer.weight.grad.device.type == "standin"
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", COMMANDS)
def test_commands_keep_to_the_device(what, tmp_path):
    lines = [json.dumps(shlex.split(line.replace("RUN", str(tmp_path / "run")))) for line in COMMANDS[what]]
    done = python(str(PROGRAM), lines="\n".join(lines))
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_device_refuses_what_cuda_refuses():
    done = python("-c", REFUSED)
    assert done.returncode == 0, done.stderr[-2000:]


def python(*words: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        input=lines,
        cwd=PROGRAM.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=550,
    )
