"""Learning-rate schedules per optimizer step, with the warm-up given as a fraction of the steps.

cosine: lr(s) = lr * (final + (1 - final) * (1 + cos(pi * p)) / 2), p the done fraction of the steps after the warm-up.
"""

import math
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


def cosine(optimizer: "Optimizer", *, steps: int, warmup: float = 0.05, final: float = 0.0) -> "LambdaLR":
    """Linear warm-up over `warmup * steps`, then half a cosine down to `final` of the learning rate at `steps`.

    Raises:
        ValueError: `steps` is not positive, or a fraction is not one.
    """
    from torch.optim.lr_scheduler import LambdaLR

    _check(steps, warmup=warmup, final=final)
    return LambdaLR(optimizer, partial(_cosine, steps=steps, warmup_steps=round(warmup * steps), final=final))


def constant(optimizer: "Optimizer", *, steps: int, warmup: float = 0.0) -> "LambdaLR":
    """Linear warm-up over `warmup * steps`, then the learning rate itself.

    Raises:
        ValueError: `steps` is not positive, or `warmup` is no fraction.
    """
    from torch.optim.lr_scheduler import LambdaLR

    _check(steps, warmup=warmup)
    return LambdaLR(optimizer, partial(_ramp, warmup_steps=round(warmup * steps)))


def _ramp(step: int, *, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / (warmup_steps + 1))


def _cosine(step: int, *, steps: int, warmup_steps: int, final: float) -> float:
    if step < warmup_steps:
        return _ramp(step, warmup_steps=warmup_steps)
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2


def _check(steps: int, **fractions: float) -> None:
    if steps < 1:
        raise ValueError(f"scheduler.steps={steps}: the schedule needs trainer.max_steps=N, N > 0, or scheduler=none")
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ValueError(f"scheduler.{name}={value} is no fraction: it must be in [0, 1]")
