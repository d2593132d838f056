"""Distillation losses against the plain formulas in float64, and the chunked output layer against full logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nas_llm.distillation import CrossEntropy, ForwardKL, Labels, ReverseKL
from nas_llm.distillation.chunked import OutputLayer, chunked_loss
from nas_llm.distillation.mix import hard_loss

TOKENS, VOCABULARY, HIDDEN = 11, 23, 6


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, TOKENS, VOCABULARY, dtype=torch.float64, generator=generator) * 3
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    labels[[2, 7]] = -100
    return student.requires_grad_(), teacher, labels


def by_hand(kind: str, student, teacher, labels, alpha: float, beta: float, temperature: float) -> float:
    """Token by token, number by number."""
    total = 0.0
    for z, t, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        if label == -100:
            continue
        plain = [math.exp(v) for v in z]
        total += alpha * -math.log(plain[label] / sum(plain))
        s, q = ([math.exp(v / temperature) for v in row] for row in (z, t))
        s, q = [v / sum(s) for v in s], [v / sum(q) for v in q]
        pairs = list(zip(s, q, strict=True))
        soft = {
            "forward": sum(b * math.log(b / a) for a, b in pairs),
            "reverse": sum(a * math.log(a / b) for a, b in pairs),
            "soft": -sum(b * math.log(a) for a, b in pairs),
            "hard": -math.log(s[max(range(len(q)), key=q.__getitem__)]),
        }[kind]
        total += beta * temperature**2 * soft
    return total


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("forward", ForwardKL(0.5, 2.0, 0.9)),
        ("forward", ForwardKL(0.0, 1.0, 1.0)),
        ("forward", ForwardKL(0.3, 2.0, 1.0)),
        ("soft", CrossEntropy(0.5, 0.5, 1.0)),
        ("reverse", ReverseKL(0.3, 0.7, 2.0)),
        ("soft", CrossEntropy(0.5, 0.5, 1.5)),
        ("hard", CrossEntropy(0.25, 0.75, 1.0, "hard")),
    ],
)
def test_losses_are_the_formulas(kind, loss, logits):
    student, teacher, labels = logits
    value = loss(student, teacher, labels)
    assert value.item() == pytest.approx(
        by_hand(kind, student, teacher, labels, loss.alpha, loss.beta, loss.temperature), rel=1e-12
    )
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, labels), student)


def test_divergences_of_equal_networks_are_zero_and_ordered_otherwise(logits):
    student, teacher, labels = logits
    for loss in (ForwardKL(0.0, 1.0), ReverseKL(0.0, 1.0)):
        assert loss(teacher, teacher, labels).item() == pytest.approx(0, abs=1e-12)
        assert loss(student, teacher, labels).item() > 1


def test_labels_alone_never_read_the_teacher(logits):
    student, teacher, labels = logits
    assert not Labels().uses_teacher
    assert Labels()(student, None, labels).item() == pytest.approx(by_hand("hard", student, teacher, labels, 1, 0, 1))
    assert not ForwardKL(alpha=1, beta=0).uses_teacher
    assert ForwardKL(alpha=1, beta=0)(student, None, labels) == Labels()(student, None, labels)


def test_half_precision_logits_are_summed_in_single(logits):
    student, teacher, labels = logits
    for loss in (ForwardKL(), ReverseKL(), CrossEntropy(), Labels()):
        value = loss(student.bfloat16(), teacher.bfloat16(), labels)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(loss(student, teacher, labels).item(), rel=2e-2)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ForwardKL(alpha=-1), "distillation.alpha=-1"),
        (lambda: ForwardKL(alpha=0, beta=0), "distillation.beta=0"),
        (lambda: ReverseKL(temperature=0), "distillation.temperature=0"),
        (lambda: CrossEntropy(targets="hard", temperature=2), "no effect on hard targets"),
        (lambda: CrossEntropy(targets="both"), "soft and hard"),
    ],
)
def test_meaningless_settings_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 4, TOKENS, 100])
def test_chunked_loss_equals_full_logits(softcap, bias, chunk_tokens):
    torch.manual_seed(1)
    leaves = [
        torch.randn(TOKENS, HIDDEN, dtype=torch.float64),
        torch.randn(VOCABULARY, HIDDEN + 2, dtype=torch.float64),
    ]
    leaves += [torch.randn(VOCABULARY, dtype=torch.float64)] if bias else []
    teacher, labels = torch.randn(TOKENS, VOCABULARY, dtype=torch.float64), torch.randint(0, VOCABULARY, (TOKENS,))
    distillation = ForwardKL(0.5, 2.0, 0.9)

    def full(hidden, weight, bias=None):
        logits = F.linear(hidden, weight[:, :HIDDEN], bias)
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        return distillation(logits, teacher, labels)

    def chunked(hidden, weight, bias=None):
        return chunked_loss(
            hidden,
            OutputLayer(weight[:, :HIDDEN], bias, softcap),
            lambda z, a, b: distillation(z, teacher[a:b], labels[a:b]),
            chunk_tokens=chunk_tokens,
            gradient_scale=64.0,
        )

    results = []
    for loss in (full, chunked):
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        value = loss(*inputs)
        results.append([value.detach(), *torch.autograd.grad(3 * value, inputs)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(chunked(*leaves), results[0][0])


def test_chunked_loss_leaves_out_what_needs_no_gradient():
    hidden, weight = torch.randn(TOKENS, HIDDEN, requires_grad=True), torch.randn(VOCABULARY, HIDDEN)
    labels = torch.zeros(TOKENS, dtype=torch.long)
    loss = chunked_loss(hidden, OutputLayer(weight), lambda z, a, b: hard_loss(z, labels[a:b]), chunk_tokens=3)
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is None
    with pytest.raises(RuntimeError):
        loss.backward()


def test_chunked_loss_without_tokens_is_zero_with_zero_gradients():
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=True)
    hidden = torch.randn(0, HIDDEN, requires_grad=True)
    loss = chunked_loss(hidden, OutputLayer(weight), lambda z, a, b: hard_loss(z, z), chunk_tokens=3)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chunked_loss_under_autocast_stays_near_single_precision(dtype):
    torch.manual_seed(2)
    hidden, weight = torch.randn(TOKENS, HIDDEN), torch.randn(VOCABULARY, HIDDEN)
    labels = torch.randint(0, VOCABULARY, (TOKENS,))
    gradients = []
    for enabled in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            loss = chunked_loss(h, OutputLayer(w), lambda z, a, b: hard_loss(z, labels[a:b]), chunk_tokens=4)
        loss.backward()
        assert w.grad.dtype == h.grad.dtype == torch.float32
        gradients.append((w.grad, h.grad))
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)
        assert not torch.equal(got, expected)
