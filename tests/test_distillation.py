"""Distillation losses against the plain formulas in float64, and the chunked output layer against full logits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nas_llm.distillation import (
    MSE,
    Cosine,
    CrossEntropy,
    ForwardKL,
    HiddenMatching,
    JensenShannon,
    Labels,
    ReverseKL,
    SymmetricKL,
    TopK,
)
from nas_llm.distillation.chunked import OutputLayer, chunked_loss
from nas_llm.distillation.mix import hard_loss

TOKENS, VOCABULARY, HIDDEN = 11, 23, 6
RATIO_WEIGHTED = {
    "forward": ForwardKL(0.5, 0.8, 0.9),
    "reverse": ReverseKL(0.5, 0.8, 2.0),
    "symmetric": SymmetricKL(0.5, 0.8, reverse=0.25),
    "jensen_shannon": JensenShannon(0.5, 0.8, 1.5),
    "probabilities": Cosine(0.5, 0.8),
    "mse": MSE(0.5, 0.8),
    "bucket": TopK(5, alpha=0.5, beta=0.8),
}
LOSSES = [*RATIO_WEIGHTED.values(), Cosine(of="logits"), TopK(5, "renormalise"), ForwardKL(max_ratio=2.0)]


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, TOKENS, VOCABULARY, dtype=torch.float64, generator=generator) * 3
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    labels[[2, 7]] = -100
    return student.requires_grad_(), teacher, labels


def kl(first: list[float], second: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(first, second, strict=True))


def cosine(first: list[float], second: list[float]) -> float:
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))


def top(student: list[float], teacher: list[float], k: int) -> tuple[list[float], list[float]]:
    best = sorted(range(len(teacher)), key=teacher.__getitem__)[-k:]
    return [student[v] for v in best], [teacher[v] for v in best]


def by_hand(
    kind: str, student, teacher, labels, alpha: float, beta: float, temperature: float = 1.0, max_ratio=None
) -> float:
    """Token by token, number by number."""
    total = 0.0
    for z, t, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        if label == -100:
            continue
        plain = [math.exp(v) for v in z]
        hard = -math.log(plain[label] / sum(plain))
        s, q = ([math.exp(v / temperature) for v in row] for row in (z, t))
        s, q = [v / sum(s) for v in s], [v / sum(q) for v in q]
        m = [(a + b) / 2 for a, b in zip(s, q, strict=True)]
        top_s, top_q = top(s, q, 5)
        soft = (
            temperature**2
            * {
                "forward": kl(q, s),
                "reverse": kl(s, q),
                "symmetric": 0.25 * kl(s, q) + 0.75 * kl(q, s),
                "jensen_shannon": (kl(s, m) + kl(q, m)) / 2,
                "probabilities": 1 - cosine(s, q),
                "logits": 1 - cosine(z, t),
                "mse": sum((a - b) ** 2 for a, b in zip(z, t, strict=True)) / len(z),
                "bucket": kl([*top_q, 1 - sum(top_q)], [*top_s, 1 - sum(top_s)]),
                "renormalise": kl([v / sum(top_q) for v in top_q], [v / sum(top_s) for v in top_s]),
                "soft": -sum(b * math.log(a) for a, b in zip(s, q, strict=True)),
                "hard": -math.log(s[max(range(len(q)), key=q.__getitem__)]),
            }[kind]
        )
        ratio = 1.0 if max_ratio is None else min(hard / soft, max_ratio)
        total += alpha * hard + beta * ratio * soft
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
        ("symmetric", SymmetricKL(0.3, 0.7, 2.0, reverse=0.25)),
        ("jensen_shannon", JensenShannon(0.3, 0.7, 1.5)),
        ("jensen_shannon", JensenShannon(0.0, 1.0)),
        ("probabilities", Cosine(0.3, 0.7, 2.0)),
        ("logits", Cosine(0.3, 0.7, of="logits")),
        ("mse", MSE(0.3, 0.7)),
        ("bucket", TopK(5, alpha=0.3, beta=0.7, temperature=0.9)),
        ("renormalise", TopK(5, "renormalise", alpha=0.3, beta=0.7, temperature=0.9)),
    ],
)
def test_losses_are_the_formulas(kind, loss, logits):
    student, teacher, labels = logits
    value = loss(student, teacher, labels)
    weights = {"alpha": loss.alpha, "beta": loss.beta, "temperature": getattr(loss, "temperature", 1.0)}
    assert value.item() == pytest.approx(by_hand(kind, student, teacher, labels, **weights), rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, labels), student)


@pytest.mark.parametrize("kind", RATIO_WEIGHTED)
def test_the_ratio_of_the_losses_weighs_the_divergence_as_a_constant(kind, logits):
    student, teacher, labels = logits
    loss = replace(RATIO_WEIGHTED[kind], max_ratio=1.7)
    value = loss(student, teacher, labels)
    weights = {"alpha": loss.alpha, "beta": loss.beta, "temperature": getattr(loss, "temperature", 1.0)}
    assert value.item() == pytest.approx(by_hand(kind, student, teacher, labels, **weights, max_ratio=1.7), rel=1e-12)
    assert value.item() != pytest.approx(by_hand(kind, student, teacher, labels, **weights), rel=1e-3)
    (gradient,) = torch.autograd.grad(value, student)
    for i, label in enumerate(labels.tolist()):  # each token's gradient is that of fixed weights with its own ratio
        row, taught, only = student[i : i + 1], teacher[i : i + 1], labels[i : i + 1]
        if label == -100:
            assert torch.equal(gradient[i], torch.zeros(VOCABULARY, dtype=torch.float64))
            continue
        hard = by_hand(kind, row, taught, only, 1.0, 0.0, weights["temperature"])
        soft = by_hand(kind, row, taught, only, 0.0, 1.0, weights["temperature"])
        fixed = replace(RATIO_WEIGHTED[kind], beta=loss.beta * min(hard / soft, 1.7))
        (expected,) = torch.autograd.grad(fixed(row, taught, only), student)
        torch.testing.assert_close(gradient[i], expected[i])


def test_the_ratio_is_bounded_where_student_and_teacher_agree(logits):
    _, teacher, labels = logits
    student = teacher.float().requires_grad_()
    for loss in (ForwardKL(max_ratio=10.0), MSE(max_ratio=10.0)):
        value = loss(student, teacher.float(), labels)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.item() == pytest.approx(0.5 * Labels()(student, None, labels).item(), rel=1e-5)
        assert gradient.isfinite().all()


def test_top_k_of_the_whole_vocabulary_is_the_whole_divergence(logits):
    student, teacher, labels = logits
    full = ForwardKL(0.3, 0.7, 0.9)(student, teacher, labels)
    values = {k: TopK(k, alpha=0.3, beta=0.7, temperature=0.9)(student, teacher, labels) for k in (1, 4, 12, 22, 23)}
    torch.testing.assert_close(values[23], full)
    torch.testing.assert_close(
        TopK(23, "renormalise", alpha=0.3, beta=0.7, temperature=0.9)(student, teacher, labels), full
    )
    grown = [value.item() for value in values.values()]
    assert grown == sorted(grown)
    torch.testing.assert_close(values[22], values[23])  # the bucket is the last token then
    with pytest.raises(ValueError, match=r"distillation\.k=24: allowed are at most the 23"):
        TopK(24)(student, teacher, labels)


def test_only_the_bucket_sees_what_the_student_puts_outside(logits):
    student, teacher, labels = logits
    tokens = teacher.topk(5, -1).indices
    moved = (student + 4).scatter(-1, tokens, student.gather(-1, tokens)).detach()
    for rest, sees in (("bucket", True), ("renormalise", False)):
        loss = TopK(5, rest, alpha=0.0, beta=1.0)
        same = math.isclose(loss(student, teacher, labels).item(), loss(moved, teacher, labels).item())
        assert same is not sees


def test_a_constant_on_the_logits_matters_to_the_squared_difference_alone(logits):
    student, teacher, labels = logits
    for loss in (JensenShannon(0.0, 1.0), SymmetricKL(0.0, 1.0), TopK(4, alpha=0.0, beta=1.0), Cosine(0.0, 1.0)):
        torch.testing.assert_close(loss(student + 3, teacher, labels), loss(student, teacher, labels))
    assert MSE(0.0, 1.0)(teacher + 3, teacher, labels).item() == pytest.approx(9 * 9)  # tokens, of 11


def states(tokens: int = TOKENS) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    student = [torch.randn(tokens, 4, dtype=torch.float64, generator=generator) for _ in range(3)]
    return student, [torch.randn(tokens, 6, dtype=torch.float64, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_hidden_matching_is_the_formula_on_the_first_channels(distance):
    student, teacher = states()
    expected = 0.0
    for own, taught in zip(student, teacher, strict=True):
        for s, t in zip(own.tolist(), taught.tolist(), strict=True):
            t = t[:4]
            squares = sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / 4
            expected += squares if distance == "mse" else 1 - cosine(s, t)
    matching = HiddenMatching(2.0, distance)
    assert matching(student, teacher).item() == pytest.approx(2.0 * expected / 3, rel=1e-12)
    leaves = [own.requires_grad_() for own in student]
    assert torch.autograd.gradcheck(lambda *own: matching(own, teacher), leaves)
    halves = [[half[rows] for half in side] for rows in (slice(0, 4), slice(4, None)) for side in (student, teacher)]
    torch.testing.assert_close(matching(*halves[:2]) + matching(*halves[2:]), matching(student, teacher))


def test_hidden_matching_names_the_blocks_that_it_compares():
    assert HiddenMatching().blocks([0, 2, 5]) == (0, 2, 5)
    assert HiddenMatching(layers="last").blocks([0, 2, 5]) == (5,)


def test_divergences_of_equal_networks_are_zero_and_ordered_otherwise(logits):
    student, teacher, labels = logits
    for loss in (replace(loss, alpha=0.0, beta=1.0, max_ratio=None) for loss in LOSSES):
        assert loss(teacher, teacher, labels).item() == pytest.approx(0, abs=1e-12)
        assert loss(student, teacher, labels).item() > 1


def test_labels_alone_never_read_the_teacher(logits):
    student, teacher, labels = logits
    assert not Labels().uses_teacher
    assert Labels()(student, None, labels).item() == pytest.approx(by_hand("hard", student, teacher, labels, 1, 0, 1))
    assert not ForwardKL(alpha=1, beta=0).uses_teacher
    for loss in (replace(loss, alpha=1, beta=0, max_ratio=None) for loss in LOSSES):
        assert not loss.uses_teacher
        assert loss(student, None, labels) == Labels()(student, None, labels)


def test_half_precision_logits_are_summed_in_single(logits):
    student, teacher, labels = logits
    for loss in (*LOSSES, CrossEntropy(), Labels()):
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
        (lambda: ForwardKL(max_ratio=0), "distillation.max_ratio=0"),
        (lambda: MSE(beta=0, max_ratio=2), "cannot take effect with distillation.beta=0"),
        (lambda: SymmetricKL(reverse=1), "distillation.reverse=1"),
        (lambda: Cosine(of="angles"), "probabilities and logits"),
        (lambda: Cosine(of="logits", temperature=2), "no effect on the angle"),
        (lambda: TopK(k=0), "distillation.k=0"),
        (lambda: TopK(k=1, rest="renormalise"), "2 or more"),
        (lambda: TopK(rest="half"), "bucket and renormalise"),
        (lambda: HiddenMatching(weight=0), "hidden_matching.weight=0"),
        (lambda: HiddenMatching(distance="l1"), "mse and cosine"),
        (lambda: HiddenMatching(layers="first"), "all and last"),
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


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_every_loss_is_the_same_in_chunks_of_any_size(loss):
    torch.manual_seed(4)
    hidden, weight = torch.randn(TOKENS, HIDDEN, dtype=torch.float64), torch.randn(VOCABULARY, HIDDEN).double()
    teacher, labels = torch.randn(TOKENS, VOCABULARY, dtype=torch.float64), torch.randint(0, VOCABULARY, (TOKENS,))
    labels[3] = -100
    results = []
    for chunk_tokens in (None, 1, 4, 100):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        layer = OutputLayer(w, softcap=4.0)
        if chunk_tokens is None:
            value = loss(layer.logits(h), teacher, labels)
        else:
            value = chunked_loss(
                h, layer, lambda z, a, b: loss(z, teacher[a:b], labels[a:b]), chunk_tokens=chunk_tokens
            )
        results.append([value.detach(), *torch.autograd.grad(value, (h, w))])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_every_loss_in_chunks_under_autocast_stays_near_single_precision(loss):
    torch.manual_seed(5)
    hidden, weight, teacher = torch.randn(TOKENS, HIDDEN), torch.randn(VOCABULARY, HIDDEN), torch.randn(TOKENS, 23)
    labels, gradients = torch.randint(0, VOCABULARY, (TOKENS,)), []
    for enabled in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            total = chunked_loss(
                h, OutputLayer(w), lambda z, a, b: loss(z, teacher[a:b].to(z.dtype), labels[a:b]), chunk_tokens=4
            )
        assert total.dtype == torch.float32
        gradients.append(torch.autograd.grad(total, (h, w)))
    for expected, got in zip(*gradients, strict=True):
        assert (got - expected).norm() < 0.03 * expected.norm()
        assert not torch.equal(got, expected)


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
