"""Teachers of a sandwich step against plain autograd: in place or frozen, logits held or made again, block outputs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_families import FAMILIES, build
from training_fixtures import eval_loader, records, tiny_module, tiny_supernet, train_loader, trainer, weights

from nas_llm.data.loader import Collate
from nas_llm.distillation import ForwardKL, HiddenMatching, JensenShannon, Labels
from nas_llm.lightning.checkpoint import LAST, read_checkpoint
from nas_llm.lightning.sandwich import Passes, sandwich_passes
from nas_llm.lightning.teacher import TeacherRecord
from nas_llm.models.supernet import Supernet
from nas_llm.samplers import StandardSampler
from nas_llm.search_space import SearchSpace

LOSS = JensenShannon(0.5, 2.0, 1.5)


def batch_of(count: int = 4, start: int = 0) -> dict[str, torch.Tensor]:
    return Collate(0)(records()[start : start + count])


def passes_of(supernet: Supernet, architectures, batch, **settings) -> tuple[Passes, dict[str, torch.Tensor]]:
    supernet.zero_grad()
    defaults = {"teacher": SearchSpace.joint(supernet).largest(), "distillation": LOSS}
    found = sandwich_passes(
        supernet, architectures, batch, backward=lambda loss: loss.backward(), **{**defaults, **settings}
    )
    gradients = {name: p.grad.clone() for name, p in supernet.model.named_parameters() if p.grad is not None}
    supernet.zero_grad()
    return found, gradients


def run_whole(model, batch):
    """Logits, block outputs before the last norm, and labels, of the counted positions, by transformers' own means."""
    norm_input: list[torch.Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda module, args: norm_input.append(args[0]))
    out = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True, use_cache=False
    )
    handle.remove()
    labels = batch["labels"][:, 1:]
    counted = labels != -100
    outputs = [*out.hidden_states[1:-1], norm_input[0]]  # transformers' last one is behind the norm
    return out.logits[:, :-1][counted], [states[:, :-1][counted] for states in outputs], labels[counted]


def gradient_by_hand(supernet, students, batch, teacher_model, *, weight: float, distance: str, last: bool):
    """Plain autograd on whole logits and hidden states."""
    with torch.no_grad():
        run_whole(supernet.model, batch)  # transformers hooks the blocks that it sees first: all of them
        taught, taught_states, _ = run_whole(teacher_model, batch)
    losses = []
    for student in students:
        with supernet.activate(student) as model:
            logits, states, labels = run_whole(model, batch)
            kept = list(zip([layer.index for layer in student.layers], states, strict=True))
            loss = LOSS(logits, taught, labels)
            compared = kept[-1:] if last else kept
            for index, own in compared:
                other = taught_states[index][:, : student.hidden]
                if distance == "mse":
                    terms = F.mse_loss(own, other, reduction="none").mean(-1)
                else:
                    terms = 1 - F.cosine_similarity(own, other, dim=-1)
                loss = loss + weight * terms.sum() / len(compared)
            loss.backward()
            losses.append(loss.detach())
    gradients = {name: p.grad.clone() for name, p in supernet.model.named_parameters() if p.grad is not None}
    supernet.zero_grad()
    return losses, gradients


def assert_near(got, expected, **tolerances):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerances)


@pytest.fixture
def sorted_supernet() -> Supernet:
    """Its blocks are kept in another order than they run, so that students drop the middle one."""
    supernet = tiny_supernet(initializer_range=0.2)
    generator = torch.Generator().manual_seed(1)
    supernet.sort({"layers": torch.tensor([2.0, 0.0, 1.0]), "hidden": torch.rand(32, generator=generator)})
    return supernet


def two_students(supernet: Supernet):
    space = SearchSpace.joint(supernet, hidden=[24, 32], depth=[2, 3])
    smallest = space.smallest()
    assert [layer.index for layer in smallest.layers] == [0, 2]
    assert smallest.hidden == 24
    return [smallest, space.middle()]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("distance", "layers"), [("mse", "all"), ("cosine", "all"), ("mse", "last")])
def test_matching_is_the_explicit_computation(sorted_supernet, frozen, distance, layers):
    supernet, batch = sorted_supernet, batch_of()
    students = two_students(supernet)
    teacher = tiny_supernet(initializer_range=0.5) if frozen else None
    weight = 3.0
    losses, expected = gradient_by_hand(
        supernet,
        students,
        batch,
        teacher.model if teacher else supernet.model,
        weight=weight,
        distance=distance,
        last=layers == "last",
    )
    found, gradients = passes_of(
        supernet, students, batch, frozen=teacher, hidden_matching=HiddenMatching(weight, distance, layers)
    )
    torch.testing.assert_close(found.losses, torch.stack(losses))
    assert_near(gradients, expected, rtol=1e-4, atol=1e-6)
    without, _ = passes_of(supernet, students, batch, frozen=teacher)
    assert (found.losses > without.losses * 1.001).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_block_outputs_are_found_in_every_family(family):
    supernet = build(family)
    space = SearchSpace.joint(supernet)
    torch.manual_seed(1)
    ids = torch.randint(3, 96, (2, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    largest, smallest = space.largest(), space.smallest()
    matching = HiddenMatching()
    settings = {"distillation": Labels(), "teacher": largest}
    plain, _ = passes_of(supernet, [largest, smallest, largest], batch, **settings)
    matched, _ = passes_of(supernet, [largest, smallest, largest], batch, hidden_matching=matching, **settings)
    difference = matched.losses - plain.losses
    assert difference[1] > 0
    torch.testing.assert_close(difference[::2], torch.zeros(2))  # the teacher; and a student that is the teacher
    with supernet.activate(smallest) as model, torch.no_grad():
        own = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    with torch.no_grad():
        taught = supernet.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    if len(smallest.layers) > 1:  # before the last norm they are transformers' own
        index = smallest.layers[0].index
        first, _ = passes_of(supernet, [largest, smallest], batch, hidden_matching=_First(), **settings)
        distance = (own[1] - taught[index + 1][..., : smallest.hidden])[:, :-1].square().mean(-1).sum()
        torch.testing.assert_close(first.losses[1] - plain.losses[1], distance, rtol=1e-3, atol=1e-4)


class _First(HiddenMatching):
    def blocks(self, kept):
        return tuple(kept[:1])


@pytest.mark.parametrize("frozen", [False, True])
def test_recomputed_logits_are_the_recorded_ones(sorted_supernet, frozen):
    supernet, batch = sorted_supernet, batch_of()
    largest = SearchSpace.joint(supernet).largest()
    teacher = tiny_supernet(initializer_range=0.5) if frozen else None
    for architectures in ([largest, *two_students(supernet)], two_students(supernet)):
        results = [
            passes_of(supernet, architectures, batch, frozen=teacher, teacher_logits=way)
            for way in ("recorded", "recomputed")
        ]
        assert torch.equal(results[0][0].losses, results[1][0].losses)
        assert_near(results[1][1], results[0][1], rtol=0, atol=0)


def test_recomputed_logits_in_mixed_precision_and_with_a_narrower_teacher(sorted_supernet):
    supernet, batch = sorted_supernet, batch_of()
    space = SearchSpace.joint(supernet, hidden=[16, 24], depth=[2, 3])
    for dtype in (None, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            results = [
                passes_of(
                    supernet, [space.largest(), space.smallest()], batch, teacher=space.largest(), teacher_logits=way
                )
                for way in ("recorded", "recomputed")
            ]
        assert torch.equal(results[0][0].losses, results[1][0].losses)
        assert_near(results[1][1], results[0][1], rtol=0, atol=0)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_what_is_held_of_a_teacher(monkeypatch, sorted_supernet, softcap):
    supernet, batch, seen = sorted_supernet, batch_of(), []
    supernet.config.final_logit_softcapping = softcap

    def seen_record(*args):
        seen.append(TeacherRecord(*args))
        return seen[-1]

    monkeypatch.setattr("nas_llm.lightning.sandwich.TeacherRecord", seen_record)
    architectures = [SearchSpace.joint(supernet).largest(), two_students(supernet)[0]]
    settings = {"hidden_matching": HiddenMatching(layers="last")}
    recomputed, _ = passes_of(supernet, architectures, batch, teacher_logits="recomputed", **settings)
    recorded, _ = passes_of(supernet, architectures, batch, **settings)
    assert torch.equal(recomputed.losses, recorded.losses)
    tokens = recorded.tokens
    assert seen[0]._logits is None
    assert seen[0].hidden.shape == (tokens, 32)
    assert seen[1]._logits.shape == (tokens, 61)
    assert seen[1].hidden is None
    for record in seen:
        assert {index: states.shape for index, states in record.outputs.items()} == {2: (tokens, 32)}
    passes_of(supernet, architectures, batch, distillation=Labels())
    assert (seen[2]._logits, seen[2].hidden, dict(seen[2].outputs)) == (None, None, {})


def test_recomputing_through_an_output_layer_that_is_not_linear_is_refused():
    supernet = tiny_supernet()
    largest, smallest = (getattr(SearchSpace.joint(supernet), name)() for name in ("largest", "smallest"))

    class Odd(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear

        def forward(self, hidden):
            return self.linear(hidden)

    supernet.model.lm_head = Odd(supernet.model.lm_head)
    with pytest.raises(ValueError, match=r"training\.teacher_logits=recomputed: the output layer .* is not linear"):
        passes_of(supernet, [largest, smallest], batch_of(), teacher_logits="recomputed")
    supernet.zero_grad()
    assert passes_of(supernet, [largest, smallest], batch_of())[0].losses.isfinite().all()


# ---------------------------------------------------------------- in training


def trained(**settings):
    """Three steps of SGD; the module, and its weights."""
    module = tiny_module(**{"optimizer": partial(torch.optim.SGD, lr=0.1), "distillation": LOSS, **settings})
    trainer(max_steps=3).fit(module, train_loader(8))
    return module, weights(module)


def near(first, second, atol: float = 1e-6) -> bool:
    return all(torch.allclose(second[name], value, rtol=0, atol=atol) for name, value in first.items())


WAYS = [
    {"hidden_matching": HiddenMatching(100.0)},  # hidden states of random networks differ by little
    {"hidden_matching": HiddenMatching(distance="cosine", layers="last"), "teacher": "frozen"},
    {"hidden_matching": HiddenMatching(100.0), "teacher": "frozen", "teacher_logits": "recomputed"},
]


@pytest.mark.parametrize("way", WAYS)
def test_checkpointed_blocks_and_micro_batches_change_nothing(way):
    _, plain = trained(**way)
    _, checkpointed = trained(**way, gradient_checkpointing=True)
    assert near(plain, checkpointed)
    module = tiny_module(
        optimizer=partial(torch.optim.SGD, lr=0.1), distillation=LOSS, accumulate_grad_batches=4, **way
    )
    split = [{k: v[i : i + 2] for k, v in batch.items()} for batch in train_loader(8) for i in range(0, 8, 2)]
    trainer(max_steps=3).fit(module, torch.utils.data.DataLoader(split, batch_size=None))
    assert near(plain, weights(module), atol=1e-5)
    _, without = trained()
    assert not near(plain, without, atol=1e-4)


def test_checkpoints_around_the_hooks_change_nothing(sorted_supernet):
    """As in versions of transformers that recompute a block with its hooks."""
    from torch.utils.checkpoint import checkpoint

    supernet, batch = sorted_supernet, batch_of()
    architectures = [SearchSpace.joint(supernet).largest(), *two_students(supernet)]
    matching = HiddenMatching(3.0)
    plain = passes_of(supernet, architectures, batch, hidden_matching=matching)
    calls = []
    for block in supernet.blocks:
        block.register_forward_pre_hook(lambda *args: calls.append(1))
        call = type(block).__call__
        vars(block)["_call"] = call
        block.__class__ = type(
            type(block).__name__,
            (type(block),),
            {
                "__call__": lambda self, *args, call=call, **kw: checkpoint(
                    partial(call, self, **kw), *args, use_reentrant=False
                )
            },
        )
    again = passes_of(supernet, architectures, batch, hidden_matching=matching)
    assert len(calls) == 2 * sum(len(architecture.layers) for architecture in architectures)
    assert torch.equal(plain[0].losses, again[0].losses)
    assert_near(again[1], plain[1], rtol=0, atol=0)


def test_a_frozen_teacher_is_the_network_before_training():
    supernet = tiny_supernet(attention_dropout=0.5)
    before = {name: value.clone() for name, value in supernet.model.state_dict().items()}
    module, after = trained(supernet=supernet, teacher="frozen")
    teacher = module.frozen_teacher
    assert teacher is not None
    assert not any(part.training for part in teacher.modules())
    assert module.supernet.training
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert not torch.equal(value, after[name]), name
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert {id(p) for p in module.parameters()}.isdisjoint({id(p) for p in teacher.parameters()})
    assert len(module.state_dict()) == len(before)


def test_the_whole_original_teaches_where_the_space_is_narrower():
    """And it teaches the largest network too: with the teacher's weights, its divergence is zero at first."""
    supernet, batch = tiny_supernet(), batch_of()
    space = SearchSpace.joint(supernet, hidden=[16, 24])
    original = tiny_supernet()
    loss = ForwardKL(0.0, 1.0)
    found, _ = passes_of(supernet, [supernet.largest(), space.largest()], batch, frozen=original, distillation=loss)
    assert found.losses[0].item() == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        taught, _, labels = run_whole(original.model, batch)
        with supernet.activate(space.largest()) as model:
            logits, _, _ = run_whole(model, batch)
    torch.testing.assert_close(found.losses[1], loss(logits, taught, labels))


def test_standard_training_may_keep_to_the_original():
    supernet = tiny_supernet()
    settings = {"sampler": StandardSampler(SearchSpace.joint(supernet)), "distillation": ForwardKL(0.0, 1.0)}
    before = {name: value.clone() for name, value in supernet.model.state_dict().items()}
    _, after = trained(supernet=supernet, teacher="frozen", gradient_clip_val=None, **settings)
    assert near(before, after, atol=1e-5)  # the divergence of a network from itself has no slope


@pytest.mark.parametrize("way", WAYS[1:])
def test_resumed_with_a_frozen_teacher_equals_uninterrupted(tmp_path: Path, way):
    def run(folder: Path, steps: int, ckpt_path: Path | None = None):
        module = tiny_module(distillation=LOSS, accumulate_grad_batches=2, seed=3, **way)
        trainer(folder, max_steps=steps, max_epochs=-1).fit(module, train_loader(4), eval_loader(), ckpt_path=ckpt_path)
        return weights(module)

    uninterrupted = run(tmp_path / "whole", 6)
    resumed = run(tmp_path / "rest", 6, tmp_path / "whole" / "checkpoints" / "step-4.ckpt")
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())
    checkpoint = read_checkpoint(tmp_path / "whole" / "checkpoints" / LAST)
    assert checkpoint["state_dict"].keys() == tiny_module().state_dict().keys()


def test_resuming_with_another_teacher_is_refused(tmp_path: Path):
    def fit(steps: int, ckpt_path: Path | None = None, supernet: Supernet | None = None, **settings):
        module = tiny_module(supernet, distillation=LOSS, **settings)
        trainer(tmp_path / str(steps), max_steps=steps).fit(module, train_loader(4), ckpt_path=ckpt_path)

    fit(1, teacher="frozen")
    checkpoint = tmp_path / "1" / "checkpoints" / LAST
    with pytest.raises(ValueError, match=r"trained with teacher\.kind=\"frozen\", this run has teacher\.kind=\"in_pl"):
        fit(2, checkpoint)
    other = tiny_supernet()
    with torch.no_grad():
        other.model.lm_head.weight.add_(1e-3)
    with pytest.raises(ValueError, match=r"trained with teacher\.weights="):
        fit(2, checkpoint, other, teacher="frozen")
    fit(2, checkpoint, teacher="frozen")


def wider_supernet() -> Supernet:
    """Another network of the same vocabulary: wider, and of another depth."""
    return tiny_supernet(hidden_size=48, num_hidden_layers=2, initializer_range=0.5)


@pytest.mark.parametrize("way", ["recorded", "recomputed"])
def test_another_model_teaches(way):
    supernet, teacher, batch = tiny_supernet(), wider_supernet(), batch_of()
    students = [supernet.largest(), SearchSpace.joint(supernet).smallest()]
    found, gradients = passes_of(supernet, students, batch, frozen=teacher, teacher_logits=way)
    with torch.no_grad():
        taught, _, labels = run_whole(teacher.model, batch)
    for student, loss in zip(students, found.losses, strict=True):
        with supernet.activate(student) as model:
            logits, _, _ = run_whole(model, batch)
        by_hand = LOSS(logits, taught, labels)
        torch.testing.assert_close(loss, by_hand.detach())
        by_hand.backward()
    for name, parameter in supernet.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_another_model_is_neither_trained_nor_saved_and_a_resumed_run_needs_the_same(tmp_path: Path):
    teacher = wider_supernet().eval().requires_grad_(False)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}

    def run(folder: Path, steps: int, ckpt_path: Path | None = None, **settings):
        external = {"teacher": "frozen", "teacher_path": "wider", "teacher_network": teacher} | settings
        module = tiny_module(distillation=LOSS, **external)
        trainer(folder, max_steps=steps, max_epochs=-1).fit(module, train_loader(4), eval_loader(), ckpt_path=ckpt_path)
        return weights(module)

    uninterrupted = run(tmp_path / "whole", 4)
    halfway = tmp_path / "whole" / "checkpoints" / "step-2.ckpt"
    resumed = run(tmp_path / "rest", 4, halfway)
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())
    checkpoint = read_checkpoint(tmp_path / "whole" / "checkpoints" / LAST)
    assert checkpoint["state_dict"].keys() == tiny_module().state_dict().keys()
    with pytest.raises(
        ValueError, match=r"trained with teacher\.kind=\"external\", this run has teacher\.kind=\"frozen"
    ):
        run(tmp_path / "other", 4, halfway, teacher_path=None, teacher_network=None)
    with pytest.raises(ValueError, match=r"trained with teacher\.weights="):
        run(tmp_path / "other", 4, halfway, teacher_network=tiny_supernet(hidden_size=48, num_hidden_layers=2))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"teacher_path": "wider"}, "training.teacher_path=wider cannot take effect .* training.teacher=frozen"),
        (
            {"teacher": "frozen", "teacher_path": "wider", "hidden_matching": HiddenMatching()},
            "hidden_matching cannot take effect with training.teacher_path=wider: .* hidden_matching=none",
        ),
        ({"teacher": "frozen", "distillation": None}, "training.teacher=frozen cannot take effect"),
        ({"teacher": "frozen", "distillation": ForwardKL(1, 0)}, "training.teacher=frozen cannot take effect"),
        ({"teacher_logits": "recomputed", "distillation": Labels()}, "training.teacher_logits=recomputed cannot"),
        ({"teacher": "thawed"}, "training.teacher=thawed"),
        ({"teacher_logits": "forgotten"}, "training.teacher_logits=forgotten"),
    ],
)
def test_settings_that_cannot_take_effect_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        tiny_module(**settings)
