"""A stopped and resumed run has, bit by bit, the weights of one that never stopped; other checkpoints are refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from training_fixtures import eval_loader, tiny_module, tiny_supernet, train_loader, trainer, weights

from nas_llm.lightning.checkpoint import LAST, SaveCheckpoints, read_checkpoint
from nas_llm.run_directory import locked
from nas_llm.samplers import SandwichSampler
from nas_llm.schedules import cosine
from nas_llm.search_space import SearchSpace

ROOT = Path(__file__).parents[1]


def module(**changes):
    settings = {"scheduler": partial(cosine, steps=9, warmup=0.3), "accumulate_grad_batches": 2, "seed": 3}
    return tiny_module(**{**settings, **changes})


def run(folder: Path, steps: int, ckpt_path: Path | None = None, **changes) -> dict[str, torch.Tensor]:
    trained = module(**changes)
    fitted = trainer(folder, max_steps=steps, max_epochs=-1)
    fitted.fit(trained, train_loader(4), eval_loader(), ckpt_path=ckpt_path)
    assert fitted.global_step == steps
    return weights(trained)


@pytest.mark.parametrize("interrupted_after", [1, 3, 4, 6])  # an epoch has 3 steps: inside one, and at its end
def test_resumed_equals_uninterrupted(tmp_path, interrupted_after):
    uninterrupted = run(tmp_path / "whole", 9)
    checkpoint = tmp_path / "whole" / "checkpoints" / f"step-{interrupted_after}.ckpt"
    resumed = run(tmp_path / "rest", 9, checkpoint)
    for name, value in uninterrupted.items():
        assert torch.equal(resumed[name], value), name


def test_dropout_is_repeated_too(tmp_path):
    def dropping():
        return tiny_supernet(attention_dropout=0.3)

    uninterrupted = run(tmp_path / "whole", 4, supernet=dropping())
    torch.manual_seed(99)
    resumed = run(tmp_path / "rest", 4, tmp_path / "whole" / "checkpoints" / "step-2.ckpt", supernet=dropping())
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())
    other = run(tmp_path / "other", 4, supernet=dropping(), seed=4)
    assert not all(torch.equal(other[name], value) for name, value in uninterrupted.items())


def test_killed_between_checkpoints_goes_on_from_the_last(tmp_path):
    uninterrupted = run(tmp_path / "whole", 5)

    class Killed(RuntimeError):
        pass

    victim = module()
    step = victim.training_step

    def dying(batch, batch_idx):
        if victim.global_step == 4:
            raise Killed
        step(batch, batch_idx)

    victim.training_step = dying
    stopped = trainer(None, max_steps=5, max_epochs=-1, callbacks=[SaveCheckpoints(tmp_path / "checkpoints", 3)])
    with pytest.raises(Killed):
        stopped.fit(victim, train_loader(4))
    resumed = run(tmp_path / "rest", 5, tmp_path / "checkpoints" / LAST)
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())


def test_the_end_is_saved_and_a_finished_run_resumes_to_itself(tmp_path):
    finished = trainer(None, max_steps=5, max_epochs=-1, callbacks=[SaveCheckpoints(tmp_path / "checkpoints", 3)])
    trained = module()
    finished.fit(trained, train_loader(4))
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == [LAST]
    again = run(tmp_path / "again", 5, tmp_path / "checkpoints" / LAST)
    assert all(torch.equal(again[name], value) for name, value in weights(trained).items())
    assert not (tmp_path / "again" / "checkpoints").exists()


def test_another_model_or_space_is_refused(tmp_path):
    run(tmp_path, 1)
    checkpoint = tmp_path / "checkpoints" / LAST
    with pytest.raises(
        ValueError, match=re.escape("model.intermediate_size=48, this run has model.intermediate_size=64")
    ):
        run(tmp_path / "a", 2, checkpoint, supernet=tiny_supernet(intermediate_size=64))
    supernet = tiny_supernet()
    space = SearchSpace.joint(supernet, hidden=[16, 32])
    from nas_llm.lightning.module import SupernetModule

    other = SupernetModule(supernet, space, SandwichSampler(space), None, partial(torch.optim.SGD, lr=0.1))
    with pytest.raises(ValueError, match=re.escape("search_space.hidden=")):
        trainer(max_steps=2).fit(other, train_loader(4), ckpt_path=checkpoint)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, kept):
    run(tmp_path, 1)
    whole = (tmp_path / "checkpoints" / LAST).read_bytes()
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    with pytest.raises(ValueError, match=r"ckpt_path=.*torn\.ckpt is not a whole checkpoint"):
        run(tmp_path / "rest", 2, torn)


def test_a_missing_checkpoint_and_a_foreign_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        read_checkpoint(tmp_path / "none.ckpt")
    for foreign in ({"path": tmp_path}, torch.zeros(3), {"state_dict": {}}):  # code, and content of other programs
        torch.save(foreign, tmp_path / "foreign.ckpt")
        with pytest.raises(ValueError, match="not a whole checkpoint"):
            read_checkpoint(tmp_path / "foreign.ckpt")


def test_damaged_content_of_a_checkpoint_is_refused_however_it_fails(tmp_path):
    run(tmp_path, 1)
    whole = (tmp_path / "checkpoints" / LAST).read_bytes()
    for place in range(200, 3000, 50):  # in the description of the tensors
        (tmp_path / "damaged.ckpt").write_bytes(whole[:place] + b"\xff" * 40 + whole[place + 40 :])
        with pytest.raises(ValueError, match="is not a whole checkpoint"):
            read_checkpoint(tmp_path / "damaged.ckpt")


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path, file_size_limit, size):
    run(tmp_path, 1)
    last = tmp_path / "checkpoints" / LAST
    before = last.read_bytes()
    with (
        file_size_limit(size),
        pytest.raises(ValueError, match=r"step-2\.ckpt could not be written \(File too large\)"),
    ):
        run(tmp_path, 2, last)
    assert last.read_bytes() == before
    assert sorted(file.name for file in last.parent.iterdir()) == [LAST, "step-1.ckpt"]


SAVING = """
import resource, signal, sys, torch
from nas_llm.lightning.checkpoint import AtomicCheckpointIO
save = AtomicCheckpointIO().save_checkpoint
checkpoint = {"pytorch-lightning_version": "2", "state_dict": {}, "global_step": 1}
save(checkpoint, sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the system then kills the process where its file is at the limit
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save({**checkpoint, "global_step": 2, "state_dict": {"weight": torch.zeros(100, 1000)}}, sys.argv[1])
"""


def test_a_process_killed_in_the_middle_of_a_checkpoint_leaves_the_one_before_it(tmp_path):
    last = tmp_path / "checkpoints" / LAST
    done = subprocess.run([sys.executable, "-c", SAVING, str(last)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGXFSZ
    (half,) = (file for file in last.parent.iterdir() if file != last)
    assert half.stat().st_size == 100_000
    assert read_checkpoint(last)["global_step"] == 1
    with locked(tmp_path):  # as the process does that resumes
        assert [file.name for file in last.parent.iterdir()] == [LAST]


def test_every_n_steps_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every_n_steps=0"):
        SaveCheckpoints(tmp_path, 0)
