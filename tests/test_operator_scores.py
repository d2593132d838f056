"""Scores of swapped operators against the whole network run anew; short fine-tuning by successive halving."""

from __future__ import annotations

import copy
import json
from functools import partial

import pytest
import torch
from test_families import build
from torch.nn import functional as F

from nas_llm.distillation import ForwardKL, Labels
from nas_llm.json_lines import append_line
from nas_llm.models.operator_assembly import assemble, sparse_weights
from nas_llm.models.operator_modules import build_sublayer
from nas_llm.objectives.loss import mean_token_loss
from nas_llm.operator_network import Ffn, Heads, Identity, Linear, OperatorNetwork, Sparse, Teacher
from nas_llm.operators.scores import swap_scores
from nas_llm.operators.selection import RECORD, SuccessiveHalving, restore, weights_file


def batches(count: int = 2, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(3, 96, (3, 10), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 7:] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return made


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "gpt2", "opt-projected", "phi"])
def test_scores_are_those_of_the_assembled_network(name):
    supernet = build(name)
    full = supernet.largest().layers[0]
    operators = {(2, "attention"): (Teacher(), Heads(full.kv_groups - 1, full.heads_per_group, full.head_dim))}
    if supernet.sublayers["mlp"]:
        operators[0, "mlp"] = (Teacher(), Identity(), Ffn(full.ffn // 2), Linear())
    held = batches()

    def output(model):
        read = []
        handle = model.get_output_embeddings().register_forward_pre_hook(lambda m, args: read.append(args[0]))
        losses = []
        for batch in held:
            with torch.no_grad():
                logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            losses.append(
                F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
            )
        handle.remove()
        hidden = torch.cat([h[b["attention_mask"].bool()] for h, b in zip(read, held, strict=True)])
        tokens = sum(int((b["labels"][:, 1:] != -100).sum()) for b in held)
        return hidden, float(sum(losses)) / tokens

    teacher, loss = output(supernet.model)
    found = list(swap_scores(supernet, operators, lambda place, op: build_sublayer(supernet, *place, op), held))
    assert [(place, op) for place, op, _ in found] == [
        (place, op) for place in sorted(operators) for op in operators[place] if op != Teacher()
    ]
    for place, operator, score in found:
        small = assemble(supernet, OperatorNetwork.of({place: operator}, 4))
        hidden, after = output(small)
        assert score.global_mse == pytest.approx(
            float((hidden - teacher).square().sum() / teacher.square().sum()), rel=1e-4
        )
        assert score.loss_change == pytest.approx(after - loss, abs=1e-5)


def test_no_labelled_token_is_refused():
    supernet = build("llama")
    batch = batches(1)[0] | {"labels": torch.full((3, 10), -100)}
    with pytest.raises(ValueError, match="no labelled token"):
        next(swap_scores(supernet, {(0, "mlp"): (Identity(),)}, lambda place, op: torch.nn.Identity(), [batch]))


def networks(supernet) -> list[OperatorNetwork]:
    return [OperatorNetwork.of({(0, "mlp"): Ffn(width), (1, "attention"): Identity()}, 4) for width in (8, 16, 32, 64)]


def select(supernet, folder, evaluated, halving=None, loss=None, of=None):
    halving = halving or SuccessiveHalving(steps=3)

    def evaluate(model):
        evaluated.append(1)
        return mean_token_loss(model, batches(1, seed=9))

    return halving(
        of or networks(supernet),
        make=partial(assemble, supernet),
        teacher=supernet,
        loss=loss or ForwardKL(),
        batches=lambda number: batches(3, seed=number),
        evaluate=evaluate,
        folder=folder,
    )


def test_halving_trains_the_better_ones_on_and_ranks_them_first(tmp_path):
    supernet = build("llama")
    before = copy.deepcopy(supernet.model.state_dict())
    evaluated: list[int] = []
    ranked = select(supernet, tmp_path, evaluated)
    assert SuccessiveHalving(steps=3).plan(4) == [4, 2, 1]
    assert [r.rounds for r in ranked] == [3, 2, 1, 1]
    assert len(evaluated) == 4 + 4 + 2 + 1
    ones = [r.losses[1] for r in ranked]
    assert max(ones[:2]) <= min(ones[2:])
    assert all(torch.equal(before[k], v) for k, v in supernet.model.state_dict().items())
    again: list[int] = []
    assert select(supernet, tmp_path, again) == ranked  # from the record alone
    assert not again


def test_a_selection_goes_on_where_it_was_killed(tmp_path):
    supernet = build("llama")
    whole = select(supernet, tmp_path / "whole", [])
    folder = tmp_path / "torn"
    folder.mkdir()
    lines = (tmp_path / "whole" / RECORD).read_text().splitlines()
    (folder / RECORD).write_text("\n".join(lines[:4]) + '\n{"id": "to')
    evaluated: list[int] = []
    assert [r.network for r in select(supernet, folder, evaluated)] == [r.network for r in whole]
    assert len(evaluated) == 4 + 2 + 1
    assert all(json.loads(line) for line in (folder / RECORD).read_text().splitlines())


def test_what_went_further_in_an_earlier_search_is_compared_after_as_much_training(tmp_path):
    supernet = build("llama")
    alone, used = tmp_path / "alone", tmp_path / "used"
    expected = select(supernet, alone, [])
    worst = select(supernet, used, [])[-1]
    for number in (2, 3):
        append_line(used / RECORD, {"id": worst.network.id, "round": number, "loss": 0.0})
    assert select(supernet, used, []) == expected
    # a shorter search asks for the weights of a round that the longer one went beyond
    pair = [expected[0].network, expected[-1].network]
    evaluated: list[int] = []
    ranked = select(supernet, used, evaluated, of=pair)
    assert not evaluated
    assert [r.rounds for r in ranked] == [2, 1]
    assert [r.losses for r in ranked] == [r.losses for r in select(supernet, tmp_path / "pair", [], of=pair)]
    model = assemble(supernet, ranked[0].network)
    restore(model, weights_file(used, ranked[0].network.id, ranked[0].rounds))
    assert mean_token_loss(model, batches(1, seed=9)) == pytest.approx(ranked[0].loss, rel=1e-6)


def test_training_lowers_the_loss_and_keeps_promised_zeros(tmp_path):
    supernet = build("llama")
    network = OperatorNetwork.of({(0, "mlp"): Sparse("2:4", "both")}, 4)

    def make(network):
        model = assemble(supernet, network)
        for name, weight in model.named_parameters():
            if name.startswith("model.layers.0.mlp"):
                weight.data.view(-1, 4)[:, :2] = 0
        return model

    models = []
    fit = batches(1)

    def evaluate(model):
        models.append(model)
        return mean_token_loss(model, fit)

    halving = SuccessiveHalving(steps=20, rounds=1, lr=3e-3, final_lr=3e-3)
    (ranked,) = halving(
        [network],
        make=make,
        teacher=None,
        loss=Labels(),
        batches=lambda number: fit * 20,
        evaluate=evaluate,
        folder=tmp_path,
    )
    assert ranked.losses[1] < ranked.losses[0] - 0.3
    weights = sparse_weights(models[-1])
    assert len(weights) == 3
    assert all(bool((w.view(-1, 4)[:, :2] == 0).all()) and bool((w.view(-1, 4)[:, 2:] != 0).all()) for w in weights)
    moved = [bool((w != v).any()) for w, v in zip(models[-1].parameters(), models[0].parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"steps": -1}, "select.steps"),
        ({"keep": 1.0}, "select.keep"),
        ({"rounds": 0}, "select.rounds"),
        ({"lr": -1}, "lr"),
    ],
)
def test_impossible_settings_are_refused(settings, key):
    with pytest.raises(ValueError, match=key):
        SuccessiveHalving(**settings)
