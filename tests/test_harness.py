"""The harness on our networks against lm-eval's own model class on plain ones, and what it refuses."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from harness_fixtures import KINDS, bos_tokenizer, documents, tiny_llama, tiny_tasks  # noqa: F401  (fixtures)

from nas_llm.evaluation.harness import Harness, HarnessResults, bootstrap_error
from nas_llm.evaluation.harness_tasks import load_tasks
from nas_llm.models.supernet import Supernet
from nas_llm.quantization.rtn import RoundToNearest
from nas_llm.search_space import SearchSpace


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")  # lm-eval's bootstrap, which would fork


def upstream(model, tokenizer, folder, names, **settings) -> dict[str, Any]:
    """What lm-eval says of the model by itself."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, softmax_dtype="float32", **settings)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(model=lm, tasks=names, task_manager=manager, bootstrap_iters=100)["results"]


def values(results: HarnessResults) -> dict[tuple[str, str], float]:
    return {(metric.task, metric.name): metric.value for metric in results.metrics}


def test_equals_lm_eval_on_every_kind_of_task(tiny_llama, tiny_tokenizer, tiny_tasks):  # noqa: F811
    ours = Harness(KINDS, str(tiny_tasks), batch_size=4, bootstrap_iters=100)(tiny_llama, tiny_tokenizer)
    theirs = upstream(tiny_llama, tiny_tokenizer, tiny_tasks, KINDS)
    assert {metric.task for metric in ours.metrics} == set(KINDS)
    for metric in ours.metrics:
        scale = 100 if metric.unit == "%" else 1
        found = theirs[metric.task]
        assert metric.value == pytest.approx(scale * found[f"{metric.name},none"], rel=1e-5)
        error = found[f"{metric.name}_stderr,none"]
        if error != "N/A":
            assert metric.standard_error == pytest.approx(scale * error, rel=1e-4)
        assert metric.samples == len(documents())
        assert ours.json["results"][metric.task][f"{metric.name},none"] == pytest.approx(found[f"{metric.name},none"])
    guess = 100 * np.mean([1 / len(document["choices"]) for document in documents()])
    assert [metric.chance for metric in ours.metrics if metric.task == "tiny_choice"] == pytest.approx([guess, guess])
    assert {metric.chance for metric in ours.metrics if metric.task != "tiny_choice"} == {None}


def test_an_active_sub_network_is_the_extracted_one(tiny_llama, tiny_tokenizer, tiny_tasks):  # noqa: F811
    supernet = Supernet(copy.deepcopy(tiny_llama))
    middle = SearchSpace.joint(supernet).middle()
    harness = Harness(KINDS, str(tiny_tasks), limit=4, bootstrap_iters=0)
    state = torch.get_rng_state()
    supernet.train()
    with supernet.activate(middle) as model:
        active = harness(model, tiny_tokenizer)
    assert supernet.model.training
    supernet.eval()
    assert torch.equal(state, torch.get_rng_state())
    assert values(active) == pytest.approx(values(harness(supernet.extract(middle), tiny_tokenizer)), rel=1e-5)
    assert values(active) != pytest.approx(values(harness(tiny_llama, tiny_tokenizer)), rel=1e-3)


def test_quantised_layers_count_as_the_weights_they_stand_for(tiny_llama, tiny_tokenizer, tiny_tasks):  # noqa: F811
    supernet = Supernet(copy.deepcopy(tiny_llama))
    RoundToNearest(bits=4, group_size=16)(supernet, [])
    harness = Harness(["tiny_text"], str(tiny_tasks), bootstrap_iters=0)
    dense = copy.deepcopy(tiny_llama)
    for name, module in supernet.model.named_modules():
        if name.endswith("proj"):
            dense.get_submodule(name).weight.data = module.weight.detach()
    assert values(harness(supernet.model, tiny_tokenizer)) == pytest.approx(
        values(harness(dense, tiny_tokenizer)), rel=1e-5
    )


def test_rolling_texts_begin_with_one_bos(tiny_llama, bos_tokenizer, tiny_tasks):  # noqa: F811
    found = values(Harness(["tiny_text"], str(tiny_tasks), bootstrap_iters=0)(tiny_llama, bos_tokenizer))
    nats = words = 0
    for document in documents():
        ids = torch.tensor([bos_tokenizer(document["text"])["input_ids"]])
        assert ids[0, 0] == bos_tokenizer.bos_token_id != ids[0, 1]
        with torch.no_grad():
            logits = tiny_llama(ids).logits[0, :-1].log_softmax(-1)
        nats -= logits.gather(1, ids[0, 1:, None]).sum().item()
        words += len(str(document["text"]).split())
    assert found["tiny_text", "word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-4)
    twice = values(
        Harness(["tiny_text"], str(tiny_tasks), add_bos_token=True, bootstrap_iters=0)(tiny_llama, bos_tokenizer)
    )
    assert twice["tiny_text", "word_perplexity"] > found["tiny_text", "word_perplexity"]


def test_the_bootstrap_of_a_ratio_is_that_of_the_delta_method():
    rng = np.random.default_rng(1)
    weights = rng.integers(50, 150, 400).astype(float)
    likelihoods = -weights * rng.normal(2.0, 0.3, 400)
    rate = -likelihoods.sum() / weights.sum()
    error = np.std(-likelihoods - rate * weights, ddof=1) / np.mean(weights) / 400**0.5
    assert bootstrap_error(likelihoods, weights, 1000) == pytest.approx(math.exp(rate) * error, rel=0.1)
    assert bootstrap_error(likelihoods, weights, 1000, in_bits=True) == pytest.approx(error / math.log(2), rel=0.1)


def test_offset_and_limit_choose_documents(tiny_llama, tiny_tokenizer, tiny_tasks):  # noqa: F811
    def asked(**settings) -> HarnessResults:
        return Harness(["tiny_text"], str(tiny_tasks), bootstrap_iters=0, **settings)(tiny_llama, tiny_tokenizer)

    parts, whole = [asked(limit=4), asked(offset=4)], asked()
    assert [part.metrics[0].samples for part in parts] == [4, 5]
    assert asked(limit=0.4).json["nas_llm"]["documents"] == {"tiny_text": [0, 4]}
    sizes = [len(str(document["text"]).encode()) for document in documents()]
    bits = [values(part)["tiny_text", "bits_per_byte"] for part in parts]
    assert values(whole)["tiny_text", "bits_per_byte"] == pytest.approx(
        (bits[0] * sum(sizes[:4]) + bits[1] * sum(sizes[4:])) / sum(sizes), rel=1e-6
    )


def test_long_prompts_are_refused_or_cut_as_the_harness_does(tiny_llama, tiny_tokenizer, tiny_tasks):  # noqa: F811
    cut = Harness(["tiny_choice"], str(tiny_tasks), max_length=20, truncate=True)(tiny_llama, tiny_tokenizer)
    theirs = upstream(tiny_llama, tiny_tokenizer, tiny_tasks, ["tiny_choice"], max_length=20)["tiny_choice"]
    assert values(cut)["tiny_choice", "acc"] == pytest.approx(100 * theirs["acc,none"])
    assert cut.metrics[0].cut == cut.json["nas_llm"]["cut"]["tiny_choice"] > 0
    with pytest.raises(ValueError, match=r"harness.tasks=tiny_choice is too long for the model: \d+ of its requests"):
        Harness(["tiny_choice"], str(tiny_tasks), max_length=20)(tiny_llama, tiny_tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": []}, "leaves nothing to ask"),
        ({"tasks": ["a"], "limit": 0}, "harness.limit=0: allowed are 1 or more"),
        ({"tasks": ["a"], "limit": 1.5}, "harness.limit=1.5: allowed"),
        ({"tasks": ["a"], "offset": -1}, "harness.offset=-1"),
        ({"tasks": ["a"], "num_fewshot": {"a": -1}}, "harness.num_fewshot.a=-1"),
        ({"tasks": ["a"], "batch_size": "large"}, "harness.batch_size=large: allowed are a whole number or auto"),
        ({"tasks": ["a"], "max_length": 0}, "harness.max_length=0"),
        ({"tasks": ["a"], "bootstrap_iters": -1}, "harness.bootstrap_iters=-1"),
        ({"tasks": ["tiny_choice"], "offset": 9}, "the task tiny_choice has 9 documents"),
        ({"tasks": ["tiny_shots"], "num_fewshot": 2}, "cannot take effect: the task tiny_shots says num_fewshot: 0"),
        ({"tasks": ["tiny_text"], "num_fewshot": 2}, "cannot take effect on tiny_text"),
        ({"tasks": ["tiny_choice"], "num_fewshot": 2}, "its examples would be test questions"),
        ({"tasks": ["tiny_choice"], "num_fewshot": {"other": 2}}, "harness.num_fewshot.other=2 cannot take effect"),
        ({"tasks": ["tiny_choice"], "max_length": 97}, "harness.max_length=97: the model has 96 positions"),
        ({"tasks": ["tiny_writing"], "max_length": 4}, "generates up to 4 tokens, harness.max_length allows 4"),
        ({"tasks": ["tiny_lost"]}, "files {'test': 'nowhere/gone.jsonl'} cannot be read .* relative paths are taken"),
        ({"tasks": ["tiny_hub"]}, "the data nobody/nothing_at_all of the hub cannot be reached .* harness.task_path="),
        ({"tasks": ["tiny_choice"], "task_path": "/no/such"}, "harness.task_path=/no/such: no such folder"),
    ],
)
def test_bad_settings_are_one_line(settings, message, tiny_llama, tiny_tokenizer, tiny_tasks):  # noqa: F811
    with pytest.raises(ValueError, match=message) as caught:
        Harness(**{"task_path": str(tiny_tasks), **settings})(tiny_llama, tiny_tokenizer)
    assert "\n" not in str(caught.value)


def test_unknown_tasks_are_told_with_near_names(tiny_tasks, monkeypatch):  # noqa: F811
    import lm_eval.tasks

    light = lm_eval.tasks.TaskManager

    def manager(include_path=None, include_defaults=True):
        return light(include_path=include_path, include_defaults=False)  # the whole collection takes long to read

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    (tiny_tasks / "broken.yaml").write_text("task: [tiny_broken")
    try:
        with pytest.raises(ValueError, match="did you mean tiny_choice.*broken.yaml cannot be read"):
            load_tasks(["tiny_choise"], str(tiny_tasks), key="harness.")
    finally:
        (tiny_tasks / "broken.yaml").unlink()
    with pytest.raises(ValueError, match="tasks of files of your own: harness.task_path=FOLDER"):
        load_tasks(["tiny_choise"], None, key="harness.")
