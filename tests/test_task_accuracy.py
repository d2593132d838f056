"""The search's accuracy on lm-eval's tasks against the harness on the same documents, and its disjoint parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness_fixtures import documents, tiny_llama, tiny_tasks  # noqa: F401  (fixtures)

import nas_llm
from nas_llm.evaluation.harness import Harness
from nas_llm.models.supernet import Supernet
from nas_llm.models.tokenizer import load_tokenizer
from nas_llm.objectives import TaskAccuracy
from nas_llm.search_space import SearchSpace

REAL = "arc_easy piqa winogrande hellaswag truthfulqa_mc1 boolq"


@pytest.fixture(scope="module")
def supernet(tiny_llama):  # noqa: F811
    return Supernet(tiny_llama)


def of_harness(supernet, tokenizer, architecture, tasks, folder, **settings) -> dict[tuple[str, str], float]:
    with supernet.activate(architecture) as model:
        results = Harness(tasks, str(folder), bootstrap_iters=1, **settings)(model, tokenizer)
    return {(m.task, m.name): (m.value, m.standard_error, m.samples) for m in results.metrics}


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_equals_the_harness(supernet, tiny_tokenizer, tiny_tasks, split, normalised):  # noqa: F811
    tasks = ["tiny_choice", "tiny_shots"]
    middle = SearchSpace.joint(supernet).middle()
    objective = TaskAccuracy(supernet, tiny_tokenizer, split, tasks, str(tiny_tasks), limit=5, normalised=normalised)
    found = objective.details(supernet, middle)
    chosen = {"limit": 5} if split == "validation" else {"offset": 5}
    theirs = of_harness(supernet, tiny_tokenizer, middle, tasks, tiny_tasks, **chosen)
    for task, part in found.parts.items():
        metric = "acc_norm" if normalised and task == "tiny_choice" else "acc"
        assert (part.value, part.standard_error, part.samples) == pytest.approx(theirs[task, metric])
    assert found.whole.value == pytest.approx(sum(part.value for part in found.parts.values()) / 2)
    assert objective(supernet, middle) == found.whole.value
    numbers = range(5) if split == "validation" else range(5, len(documents()))
    assert [record["document"] for record in found.records] == [*numbers, *numbers]


def test_cut_prompts_count_as_the_harness_cuts_them(tiny_tokenizer, tiny_tasks):  # noqa: F811
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=12, initializer_range=0.3)
    short = Supernet(LlamaForCausalLM(config).eval())
    settings = ("validation", "tiny_choice", str(tiny_tasks))
    with pytest.raises(ValueError, match="objectives.task_accuracy.truncate=true to cut them"):
        TaskAccuracy(short, tiny_tokenizer, *settings, limit=None)(short, short.largest())
    cut = TaskAccuracy(short, tiny_tokenizer, *settings, limit=None, truncate=True)(short, short.largest())
    theirs = of_harness(short, tiny_tokenizer, short.largest(), ["tiny_choice"], tiny_tasks, truncate=True)
    assert cut == pytest.approx(theirs["tiny_choice", "acc"][0])


def test_what_chose_a_network_may_not_measure_it(supernet, tiny_tokenizer, tiny_tasks):  # noqa: F811
    chosen = TaskAccuracy(supernet, tiny_tokenizer, "validation", "tiny_choice", str(tiny_tasks), limit=5)
    chosen.refuse_shared({"tiny_choice": range(5, 9), "other": range(9)}, "")
    with pytest.raises(ValueError, match="2 of the 6 documents of tiny_choice .* after them, harness.offset=5"):
        chosen.refuse_shared({"tiny_choice": range(3, 9)}, "harness.offset={}")
    with pytest.raises(ValueError, match="all 9 documents of tiny_choice choose networks"):
        TaskAccuracy(supernet, tiny_tokenizer, "test", "tiny_choice", str(tiny_tasks), limit=None)(
            supernet, supernet.largest()
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": []}, "leaves nothing to ask"),
        ({"limit": 0}, "objectives.task_accuracy.limit=0: allowed"),
        ({"test_limit": 2.5}, "objectives.task_accuracy.test_limit=2.5: allowed"),
        ({"batch_size": 0}, "objectives.task_accuracy.batch_size=0"),
        ({"tasks": "tiny_writing"}, "tiny_writing is a task of the kind generate_until, not multiple_choice"),
        ({"tasks": "tiny_shots", "normalised": True}, "normalised=true cannot take effect: none of tiny_shots"),
    ],
)
def test_bad_settings_are_refused(supernet, tiny_tokenizer, tiny_tasks, settings, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        TaskAccuracy(
            supernet=supernet,
            tokenizer=tiny_tokenizer,
            split="validation",
            **{"tasks": "tiny_choice", "task_path": str(tiny_tasks), **settings},
        )(supernet, supernet.largest())


@pytest.mark.real
@pytest.mark.parametrize("name", ["stories260K", "microworld_llama"])
def test_equals_the_harness_on_real_tasks(shared_data: Path, name: str) -> None:
    path = str(shared_data / "models" / name) if name == "stories260K" else name
    network = Supernet(nas_llm.from_pretrained(path).float())
    tokenizer, folder = load_tokenizer(path), shared_data / "lm_eval_tasks"
    tasks, small = [f"local_{task}" for task in REAL.split()], SearchSpace.joint(network).smallest()
    theirs = of_harness(network, tokenizer, small, tasks, folder, limit=4, truncate=True)
    for metric in ("acc", "acc_norm"):
        settings = {"limit": 4, "truncate": True, "normalised": metric == "acc_norm"}
        found = TaskAccuracy(network, tokenizer, "validation", tasks, str(folder), **settings).details(network, small)
        for task, part in found.parts.items():
            expected = theirs.get((task, metric), theirs[task, "acc"])
            assert (part.value, part.standard_error, part.samples) == pytest.approx(expected)
