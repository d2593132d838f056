"""Local losses in closed form, and what padding does to them: nothing."""

from __future__ import annotations

import math

import pytest
import torch

from nas_llm.operators.local_losses import L1, MSE, Cosine, LocalLoss, Mix, SquareHead

LOSSES = [SquareHead(), MSE(), L1(), Cosine(), Mix(0.5, 0.25, 2.0, 3.0)]


def pair(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 5, 3, generator=generator, dtype=dtype)
    return student, torch.randn(2, 5, 3, generator=generator, dtype=dtype)


MASK = torch.tensor([[True, True, True, False, False], [False, True, True, True, True]])


def test_losses_are_what_plain_loops_give():
    student, teacher = pair()
    tokens = [(student[i, j].tolist(), teacher[i, j].tolist()) for i in range(2) for j in range(5) if MASK[i, j]]
    numbers = [(a, b) for s, t in tokens for a, b in zip(s, t, strict=True)]
    squares, own = sum((a - b) ** 2 for a, b in numbers), sum(b * b for _, b in numbers)
    mse, l1 = squares / len(numbers), sum(abs(a - b) for a, b in numbers) / len(numbers)
    cosines = [
        sum(a * b for a, b in zip(s, t, strict=True)) / math.sqrt(sum(a * a for a in s) * sum(b * b for b in t))
        for s, t in tokens
    ]
    cosine = 1 - sum(cosines) / len(cosines)
    expected = [squares / own, mse, l1, cosine, 0.5 * squares / own + 0.25 * mse + 2 * l1 + 3 * cosine]
    found = [loss(student, teacher, MASK).item() for loss in LOSSES]
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_counts_neither_in_the_loss_nor_in_the_gradient(loss: LocalLoss):
    student, teacher = pair()
    clean = student.clone().requires_grad_()
    loss(clean, teacher, MASK).backward()
    dirty, other = student.clone(), teacher.clone()
    dirty[~MASK], other[~MASK] = float("nan"), float("inf")
    dirty.requires_grad_()
    loss(dirty, other, MASK).backward()
    assert torch.equal(dirty.grad, clean.grad)
    assert (clean.grad[~MASK] == 0).all()
    assert (clean.grad[MASK] != 0).any()


def test_square_head_is_one_where_nothing_is_written_and_zero_at_the_teacher():
    for dtype in (torch.float32, torch.bfloat16):
        _, teacher = pair(dtype)
        every = torch.ones(2, 5, dtype=torch.bool)
        for mask in (MASK, every):
            assert SquareHead()(torch.zeros_like(teacher), teacher, mask).item() == 1.0
            assert SquareHead()(teacher, teacher, mask).item() == 0.0
        assert SquareHead()(teacher, teacher, every).dtype == torch.float32


def test_square_head_of_a_silent_sublayer_is_finite():
    student, teacher = pair(torch.float32)
    assert SquareHead()(torch.zeros_like(student), torch.zeros_like(teacher), MASK).item() == 0.0


def test_weights_that_teach_nothing_are_refused():
    with pytest.raises(ValueError, match=r"local_loss\.l1=-1"):
        Mix(l1=-1)
    with pytest.raises(ValueError, match=r"local_loss\.square_head=1"):
        Mix(square_head=0)
    with pytest.raises(ValueError, match="padding"):
        SquareHead()(*pair(), torch.zeros(2, 5, dtype=torch.bool))
