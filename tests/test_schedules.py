"""Learning-rate schedules against their formula."""

import math
import pickle

import pytest
import torch

from nas_llm.schedules import constant, cosine


def rates(schedule, steps, **settings):
    """The learning rate of every step, of a base rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, steps=steps, **settings)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_warms_up_and_falls_to_its_end() -> None:
    found = rates(cosine, 100, warmup=0.2, final=0.1)
    assert found[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 80)) / 2 for step in range(80)]
    assert found[20:] == pytest.approx(expected)


def test_constant_stays_after_the_warm_up() -> None:
    assert rates(constant, 10, warmup=0.2) == pytest.approx([1 / 3, 2 / 3, *[1.0] * 8])
    assert rates(constant, 3) == [1.0] * 3


def test_one_step_is_trained_at_a_rate_that_is_not_zero() -> None:
    assert rates(cosine, 1)[0] > 0


def test_the_state_can_be_saved() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert pickle.loads(pickle.dumps(cosine(optimizer, steps=5).state_dict()))["last_epoch"] == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": -1}, "scheduler.steps=-1: the schedule needs trainer.max_steps=N"),
        ({"steps": 5, "warmup": 2.0}, "scheduler.warmup=2.0 is no fraction"),
        ({"steps": 5, "final": -0.1}, "scheduler.final=-0.1 is no fraction"),
    ],
)
def test_impossible_settings_are_refused(settings, says) -> None:
    with pytest.raises(ValueError, match=says):
        cosine(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), **settings)
