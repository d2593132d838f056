"""The multiple-choice scorer against a per-option loop without batching, padding or sharing, and against lm-eval."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from test_families import FAMILIES, build, random_architectures
from transformers import DynamicCache, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from nas_llm.data.microworld import Item, multiple_choice_sets, train_tokenizer
from nas_llm.evaluation.multiple_choice import Accuracy, accuracies, encode, log_likelihoods, summed

VOCAB = 700
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(VOCAB, seed=0)


@pytest.fixture(scope="module", params=["llama", "gpt_neox"])
def model(request):
    torch.manual_seed(0)
    if request.param == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, initializer_range=0.3))
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, initializer_range=0.3, hidden_dropout=0.5))


@pytest.fixture(scope="module")
def sets():
    return multiple_choice_sets(seed=3, items_per_set=6)


def brute_force(model, tokenizer, item):
    """One unpadded forward per option, one token at a time."""
    model.eval()
    context = tokenizer(item.context)["input_ids"]
    sums = []
    for option in item.options:
        ids, total = list(context), 0.0
        for token in tokenizer(option)["input_ids"]:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            total += torch.log_softmax(logits.double(), 0)[token].item()
            ids.append(token)
        sums.append(total)
    return sums


def test_log_likelihoods_match_brute_force(model, tokenizer, sets):
    items = [item for members in sets.values() for item in members[:3]]
    for item, (sums, counts) in zip(items, log_likelihoods(model, tokenizer, items, batch_size=7), strict=True):
        np.testing.assert_allclose(sums, brute_force(model, tokenizer, item), rtol=1e-4, atol=1e-4)
        assert counts.tolist() == [len(tokenizer(option)["input_ids"]) for option in item.options]


def test_accuracies_count_the_right_items_of_each_set(model, tokenizer, sets):
    found = accuracies(model, tokenizer, sets, batch_size=5)
    assert list(found) == list(sets)
    for name, items in sets.items():
        sums = [np.array(brute_force(model, tokenizer, item)) for item in items]
        counts = [np.array([len(tokenizer(option)["input_ids"]) for option in item.options]) for item in items]
        assert found[name].summed == pytest.approx(
            np.mean([s.argmax() == item.answer for s, item in zip(sums, items, strict=True)])
        )
        assert found[name].normalised == pytest.approx(
            np.mean([(s / c).argmax() == item.answer for s, c, item in zip(sums, counts, items, strict=True)])
        )


def test_the_model_is_left_in_its_mode(model, tokenizer, sets):
    model.train()
    before = accuracies(model, tokenizer, sets)
    assert model.training
    assert accuracies(model, tokenizer, sets) == before  # no dropout while scoring


def test_batch_size_is_of_no_account(model, tokenizer, sets):
    items = sets["coreference"]
    one = log_likelihoods(model, tokenizer, items, batch_size=1)
    for (a, _), (b, _) in zip(one, log_likelihoods(model, tokenizer, items, batch_size=64), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_matches_lm_eval(model, tokenizer, sets):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    items = [members[0] for members in sets.values()]
    requests = [
        Instance("loglikelihood", {}, (item.context, option), index)
        for index, (item, option) in enumerate((item, option) for item in items for option in item.options)
    ]
    theirs = HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=4, device="cpu").loglikelihood(
        requests, disable_tqdm=True
    )
    ours = np.concatenate([sums for sums, _ in log_likelihoods(model, tokenizer, items)])
    np.testing.assert_allclose(ours, [value for value, _ in theirs], rtol=1e-3, atol=1e-3)


def test_standard_error():
    assert Accuracy(0.9, 0.8, 101).standard_error == pytest.approx(0.03)
    assert Accuracy(1.0, 1.0, 1).standard_error == 0


def test_spaces_that_end_a_context_go_with_the_option(tokenizer):
    (context, option), *_ = encode(tokenizer, [Item("Answer: ", ("kitchen", "park"), 0)])
    assert tokenizer.decode(context) == "Answer:"
    assert tokenizer.decode(option) == " kitchen"


@dataclass
class Bad:
    context: str
    options: tuple[str, ...]
    answer: int


@pytest.mark.parametrize(
    "item",
    [Bad("a", ("b",), 0), Bad("a", (" b", " c"), 2), Bad("a", (" b", ""), 0), Bad("", (" b", " c"), 0)],
)
def test_impossible_items_are_refused(item, tokenizer):
    with pytest.raises(ValueError, match=r"option"):
        encode(tokenizer, [item])


def test_too_long_items_and_empty_sets_are_refused(tokenizer):
    model = LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=8))
    with pytest.raises(ValueError, match="8 positions"):
        accuracies(model, tokenizer, multiple_choice_sets(0, 1))
    with pytest.raises(ValueError, match="'nothing' is empty"):
        accuracies(model, tokenizer, {"nothing": []})


def pairs_of(number, vocabulary, *, seed=0):
    """Items of random tokens, whose options' contexts are the same, or differ at their ends."""
    rng = np.random.default_rng(seed)

    def drawn(low, high):
        return rng.integers(3, vocabulary, rng.integers(low, high)).tolist()

    items = []
    for _ in range(number):
        context = drawn(3, 40)
        contexts = [context if rng.random() < 0.6 else context[:-1] + drawn(1, 5) for _ in range(4)]
        items.append([(each, drawn(1, 9)) for each in contexts])
    return items


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_beginnings_change_no_number_in_any_family(family):
    supernet, items = build(family), pairs_of(6, 96)
    for architecture in [supernet.largest(), *random_architectures(supernet, 1)]:
        with supernet.activate(architecture) as model:
            shared, whole = summed(model, items, batch_size=7), summed(model, items, batch_size=5, shared=False)
            context, option = items[0][1]
            with torch.no_grad():
                logits = model(torch.tensor([context + option])).logits[0].log_softmax(-1)
        np.testing.assert_allclose(np.concatenate(shared), np.concatenate(whole), atol=1e-4)
        alone = sum(logits[len(context) - 1 + i, token].item() for i, token in enumerate(option))
        assert shared[0][1] == pytest.approx(alone, abs=1e-4)


def test_beginnings_are_run_once(model):
    items = [[([5] * 30, [6, 7]), ([5] * 30, [8, 9]), ([5] * 30, [6, 10])]]
    seen = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    summed(model, items)
    summed(model, items, shared=False)
    handle.remove()
    assert seen == [(1, 30), (2, 1), (2, 31)]


def test_layers_without_keys_and_values_run_whole_sequences(model):
    """A first layer whose attention is left out keeps nothing, so that what follows would not know its length."""
    items = pairs_of(3, VOCAB)
    whole = summed(model, items, shared=False)
    forward = DynamicCache.update
    calls = []

    def nothing_of_the_first(cache, keys, values, layer_idx, *args, **kwargs):
        calls.append(layer_idx)
        return (keys, values) if layer_idx == 0 else forward(cache, keys, values, layer_idx, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DynamicCache, "update", nothing_of_the_first)
        found = summed(model, items)
    assert calls
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(whole), atol=1e-4)
