"""The sandwich step against plain autograd on extracted networks, and everything that must not change its update."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from test_families import FAMILIES, build
from torch.amp import GradScaler
from torch.optim.lr_scheduler import LinearLR
from training_fixtures import eval_loader, listed, records, tiny_module, tiny_supernet, train_loader, trainer, weights

from nas_llm.data.loader import Collate
from nas_llm.distillation import CrossEntropy, ForwardKL, Labels, ReverseKL
from nas_llm.lightning.checkpoint import AtomicCheckpointIO
from nas_llm.lightning.output import Targets, check_output_layer, next_token_loss, output_loss
from nas_llm.lightning.sandwich import sandwich_passes
from nas_llm.samplers import RandomSampler, SandwichSampler, StandardSampler
from nas_llm.schedules import cosine
from nas_llm.search_space import SearchSpace


def sgd(**settings):
    return partial(torch.optim.SGD, **{"lr": 0.1, **settings})


def batches(count: int, batch_size: int = 4) -> list[dict[str, torch.Tensor]]:
    held = records()
    return [Collate(0)(held[i * batch_size : (i + 1) * batch_size]) for i in range(count)]


def logits_and_labels(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return logits, batch["labels"][:, 1:]


def gradient_by_hand(supernet, architectures, batch, distillation) -> dict[str, torch.Tensor]:
    """Equation 1 with plain autograd on Hugging Face's own logits: gradients of sums, over the number of tokens."""
    supernet.zero_grad()
    with supernet.activate(architectures[0]) as model:
        taught, labels = logits_and_labels(model, batch)
        loss = F.cross_entropy(taught.flatten(0, 1), labels.flatten(), reduction="sum")
        tokens = (labels != -100).sum()
        (loss / tokens).backward()
    for student in architectures[1:]:
        with supernet.activate(student) as model:
            logits, labels = logits_and_labels(model, batch)
            (distillation(logits, taught.detach(), labels) / tokens).backward()
    found = {
        name: parameter.grad.clone() for name, parameter in supernet.named_parameters() if parameter.grad is not None
    }
    supernet.zero_grad()
    return found


@pytest.mark.parametrize(
    "distillation", [ForwardKL(), ReverseKL(temperature=2.0), CrossEntropy(targets="hard"), Labels()]
)
def test_one_step_is_equation_1(distillation):
    module = tiny_module(distillation=distillation, optimizer=sgd(), gradient_clip_val=None)
    batch = next(iter(train_loader()))
    architectures = module.architectures(0)
    assert len(architectures) == 4
    expected = gradient_by_hand(module.supernet, architectures, batch, distillation)
    before = weights(module)
    trainer(max_steps=1).fit(module, train_loader())
    for name, value in weights(module).items():
        update = before[name] - value
        torch.testing.assert_close(update, 0.1 * expected[f"model.{name}"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_loss_is_the_models_own_in_every_family(family):
    supernet = build(family)
    check_output_layer(supernet.model)
    torch.manual_seed(1)
    ids = torch.randint(3, 96, (2, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    batch["labels"][0, :4] = -100
    for architecture in (supernet.largest(), SearchSpace.joint(supernet).smallest()):
        with supernet.activate(architecture) as model:
            logits, labels = logits_and_labels(model, batch)
            expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            loss, tokens = next_token_loss(model, batch)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
            assert tokens == (labels != -100).sum() == 13
            loss.backward()
            got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            supernet.zero_grad()
            expected.backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    torch.testing.assert_close(
                        got.get(name, torch.zeros_like(parameter)), parameter.grad, rtol=1e-3, atol=1e-4
                    )
            supernet.zero_grad()


def test_an_unknown_way_to_logits_is_refused():
    supernet = tiny_supernet()
    original = type(supernet.model).forward

    class Doubled(type(supernet.model)):
        def forward(self, *args, **kwargs):
            output = original(self, *args, **kwargs)
            output.logits = output.logits * 2
            return output

    supernet.model.__class__ = Doubled
    with pytest.raises(ValueError, match=r"model\.path: the logits of Doubled"):
        check_output_layer(supernet.model)


def test_output_layers_that_are_not_linear_give_all_logits():
    model = tiny_supernet().model
    linear = model.lm_head
    batch = batches(1)[0]
    expected, _ = next_token_loss(model, batch)
    model.lm_head = torch.nn.Sequential(linear)
    targets = Targets.of(batch)
    got = output_loss(
        model,
        batch,
        targets,
        lambda z, a, b: F.cross_entropy(z, targets.labels[a:b], reduction="sum"),
    )
    torch.testing.assert_close(got, expected)


def test_micro_batches_equal_one_batch():
    whole = tiny_module(optimizer=sgd())
    trainer(max_steps=3).fit(whole, train_loader(8))
    halves = tiny_module(optimizer=sgd(), accumulate_grad_batches=2)
    split = [
        half
        for batch in train_loader(8)
        for half in ({k: v[:4] for k, v in batch.items()}, {k: v[4:] for k, v in batch.items()})
    ]
    fitted = trainer(max_steps=3)
    fitted.fit(halves, listed(split))
    assert fitted.global_step == 3
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(halves)[name], value, rtol=0, atol=1e-5)


def test_the_rest_of_an_epoch_is_a_step_of_its_own():
    module = tiny_module(accumulate_grad_batches=2)
    fitted = trainer(max_epochs=2)
    fitted.fit(module, listed(batches(3)))
    assert fitted.global_step == 4


def test_mean_divides_by_the_number_of_networks():
    steps = {}
    for reduction in ("sum", "mean"):
        module = tiny_module(optimizer=sgd(), reduction=reduction, gradient_clip_val=None)
        before = weights(module)["lm_head.weight"]
        trainer(max_steps=1).fit(module, train_loader())
        steps[reduction] = before - weights(module)["lm_head.weight"]
    torch.testing.assert_close(steps["sum"], 4 * steps["mean"], rtol=1e-4, atol=1e-8)


def test_clipping_bounds_the_update():
    module = tiny_module(optimizer=sgd(lr=1.0), gradient_clip_val=0.25)
    before = weights(module)
    fitted = trainer(max_steps=1)
    fitted.fit(module, train_loader())
    norm = math.sqrt(sum(float((before[n] - v).square().sum()) for n, v in weights(module).items()))
    assert norm == pytest.approx(0.25, rel=1e-3)
    assert fitted.callback_metrics["train/gradient_norm"] > 0.25


@pytest.mark.parametrize("sampler", [StandardSampler, RandomSampler])
def test_other_samplers_train(sampler):
    supernet = tiny_supernet()
    space = SearchSpace.joint(supernet)
    module = tiny_module(
        supernet, sampler=sampler(space), distillation=ForwardKL() if sampler is RandomSampler else None
    )
    before = next_token_loss(supernet.model, batches(1)[0])[0]
    trainer(max_steps=20).fit(module, listed([batches(1)[0]] * 20))
    assert next_token_loss(supernet.model, batches(1)[0])[0] < before


def test_a_step_without_the_largest_is_taught_by_it_all_the_same():
    """The teacher then runs once without gradient."""
    supernet = tiny_supernet()
    space = SearchSpace.joint(supernet)
    batch, largest, smallest = batches(1)[0], space.largest(), space.smallest()
    loss = ForwardKL(0.0, 1.0)

    def gradients(architectures):
        supernet.zero_grad()
        passes = sandwich_passes(
            supernet, architectures, batch, teacher=largest, distillation=loss, backward=lambda value: value.backward()
        )
        return passes.losses[-1], supernet.model.lm_head.weight.grad.clone()

    both, alone = gradients([largest, smallest]), gradients([smallest])
    torch.testing.assert_close(alone[0], both[0])
    assert not torch.equal(alone[1], both[1])
    assert alone[1][:, smallest.hidden :].abs().max() == 0


def test_checkpointed_activations_give_the_same_update():
    updates = []
    for checkpointing in (False, True):
        module = tiny_module(optimizer=sgd(), gradient_checkpointing=checkpointing)
        trainer(max_steps=2).fit(module, train_loader())
        updates.append(weights(module))
    for name, value in updates[0].items():
        torch.testing.assert_close(updates[1][name], value)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_stays_near_single(precision):
    updates = []
    mixed = MixedPrecision(precision, "cpu", GradScaler("cpu") if precision == "16-mixed" else None)
    for plugins in ([AtomicCheckpointIO()], [AtomicCheckpointIO(), mixed]):
        module = tiny_module(optimizer=sgd(lr=0.05))
        fitted = trainer(max_steps=3, plugins=plugins)
        fitted.fit(module, train_loader())
        assert fitted.global_step == 3
        updates.append(weights(module))
    changed = False
    for name, value in updates[0].items():
        torch.testing.assert_close(updates[1][name], value, rtol=0.05, atol=5e-3)
        changed |= not torch.equal(updates[1][name], value)
    assert changed


def test_a_step_that_the_loss_scaler_skips_moves_neither_weights_nor_schedule():
    module = tiny_module(optimizer=sgd(), scheduler=partial(LinearLR, total_iters=10))
    scaler = GradScaler("cpu", init_scale=2.0**60)
    before = weights(module)
    fitted = trainer(max_steps=1, plugins=[AtomicCheckpointIO(), MixedPrecision("16-mixed", "cpu", scaler)])
    fitted.fit(module, train_loader())
    assert scaler.get_scale() == 2.0**59
    assert fitted.callback_metrics["train/skipped_step"] == 1
    assert module.lr_schedulers().last_epoch == 0
    assert all(torch.equal(value, before[name]) for name, value in weights(module).items())


def test_the_schedule_moves_once_per_optimizer_step():
    module = tiny_module(scheduler=partial(cosine, steps=4, warmup=0.0), accumulate_grad_batches=2)
    fitted = trainer(max_steps=4, max_epochs=-1)
    fitted.fit(module, listed(batches(6)))
    assert module.lr_schedulers().last_epoch == 4
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0)


def test_validation_weighs_tokens_exactly():
    module = tiny_module(optimizer=sgd(lr=0.0))
    fitted = trainer(max_steps=6, max_epochs=1)
    fitted.fit(module, train_loader(), eval_loader(4))
    whole = Collate(0)(records(10, seed=1))
    for name in ("largest", "middle", "smallest"):
        with module.supernet.activate(getattr(module.space, name)()) as model, torch.no_grad():
            loss, tokens = next_token_loss(model, whole)
        expected = loss.item() / tokens
        assert float(fitted.callback_metrics[f"val/loss_{name}"]) == pytest.approx(expected, rel=1e-5)
        assert float(fitted.callback_metrics[f"val/perplexity_{name}"]) == pytest.approx(math.exp(expected), rel=1e-5)


def test_losses_are_logged_by_network():
    fitted = trainer(max_steps=1)
    fitted.fit(tiny_module(), train_loader())
    logged = fitted.callback_metrics
    assert {
        "train/loss_largest",
        "train/loss_sampled",
        "train/loss_smallest",
        "train/lr",
        "train/gradient_norm",
    } <= logged.keys()
    assert float(logged["train/loss_largest"]) == pytest.approx(math.log(61), rel=0.1)


def test_a_loss_that_is_not_finite_names_step_architecture_and_batch():
    module = tiny_module(optimizer=sgd(lr=0.0))
    poisoned = module.supernet.model.model.embed_tokens.weight
    held = batches(3)
    held[2]["input_ids"][0, 1], held[2]["labels"][0, 2:4] = 60, 5
    for batch in held[:2]:
        batch["input_ids"][batch["input_ids"] == 60] = 1
    with torch.no_grad():
        poisoned[60] = float("inf")
    before = weights(module)
    with pytest.raises(ValueError, match="optimizer step 2 is not finite") as raised:
        trainer(max_steps=3).fit(module, listed(held))
    assert module.space.largest().id in str(raised.value)
    assert "batch 2 of epoch 0 on rank 0" in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in weights(module).items())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"accumulate_grad_batches": 0}, "training.accumulate_grad_batches=0"),
        ({"gradient_clip_val": 0.0}, "training.gradient_clip_val=0.0"),
        ({"reduction": "max"}, "training.reduction=max"),
    ],
)
def test_settings_out_of_range_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        tiny_module(**settings)


def test_the_smallest_is_trained_only_where_the_sampler_says_so():
    supernet = tiny_supernet()
    space = SearchSpace.joint(supernet)
    module = tiny_module(supernet, sampler=SandwichSampler(space, k=1, smallest=False))
    fitted = trainer(max_steps=1)
    fitted.fit(module, train_loader())
    assert "train/loss_smallest" not in fitted.callback_metrics
