"""Accuracy by generation: batches against single prompts without padding or cache; sub-networks; the objective."""

import json
from dataclasses import replace
from random import Random
from tempfile import mkdtemp

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from nas_llm.architecture import Architecture
from nas_llm.data.instruction import InstructionData
from nas_llm.data.microworld import MicroworldData, instruction_records, questions, train_tokenizer
from nas_llm.data.microworld.questions import pattern
from nas_llm.data.microworld.world import FAMILIES
from nas_llm.data.questions import Question
from nas_llm.data.template import alpaca_prompt
from nas_llm.data.text import TextData
from nas_llm.evaluation.answers import rule_of
from nas_llm.evaluation.generation import GeneratedAnswers, answer, generate
from nas_llm.evaluation.task_files import read_tasks
from nas_llm.models.supernet import Supernet
from nas_llm.objectives import GeneratedAccuracy
from nas_llm.search_space import SearchSpace

SIZES = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "max_position_embeddings": 512, "initializer_range": 0.3}
PROMPTS = ["The cat", "Once upon a time there was a moon. The moon sat on the red mat", "a", "### Response:\nThe"]
FAMILIES_OF_MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, num_key_value_heads=2, attention_dropout=0.5)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **HEADS)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SIZES, **HEADS, num_key_value_heads=2, head_dim=8)),
}


@pytest.fixture(scope="module", params=list(FAMILIES_OF_MODELS))
def supernet(request):
    torch.manual_seed(0)
    return Supernet(FAMILIES_OF_MODELS[request.param]())


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return Supernet(FAMILIES_OF_MODELS["llama"]())


def architectures(supernet) -> dict[str, Architecture]:
    full = supernet.largest()
    return {
        "largest": full,
        "middle": SearchSpace.joint(supernet, steps=4).middle(),
        "without the first and a middle layer": Architecture(full.hidden, (full.layers[1], full.layers[3])),
    }


def by_hand(model, tokenizer, prompt: str, tokens: int) -> str:
    """The likeliest token after all before it, one by one, without padding and without a cache."""
    model.eval()
    ids, written = tokenizer(prompt, add_special_tokens=False)["input_ids"], []
    while len(written) < tokens:
        with torch.no_grad():
            token = model(torch.tensor([ids + written]), use_cache=False).logits[0, -1].argmax().item()
        if token == tokenizer.eos_token_id:
            break
        written.append(token)
    return tokenizer.decode(written, skip_special_tokens=True).partition("\n###")[0]


@pytest.mark.parametrize("name", ["largest", "middle", "without the first and a middle layer"])
def test_batches_say_what_each_prompt_says_alone(supernet, tiny_tokenizer, name):
    architecture = architectures(supernet)[name]
    small = supernet.extract(architecture)
    expected = [by_hand(small, tiny_tokenizer, prompt, 12) for prompt in PROMPTS]
    assert len(set(expected)) > 1
    with supernet.activate(architecture) as model:
        for batch_size in (1, 3, 4):
            assert generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size) == expected
    assert generate(small, tiny_tokenizer, PROMPTS, max_new_tokens=12) == expected


def test_the_end_of_sequence_ends_a_text_and_the_others_go_on(llama, tiny_tokenizer):
    model = llama.model
    whole = [by_hand(model, tiny_tokenizer, prompt, 12) for prompt in PROMPTS]
    first = tiny_tokenizer(whole[1], add_special_tokens=False)["input_ids"]
    token = tiny_tokenizer.convert_ids_to_tokens(first[len(first) // 2])
    other = AutoTokenizer.from_pretrained(save(tiny_tokenizer), eos_token=token)
    expected = [by_hand(model, other, prompt, 12) for prompt in PROMPTS]
    assert expected != whole
    assert generate(model, other, PROMPTS, max_new_tokens=12) == expected
    chat, before = AutoTokenizer.from_pretrained(save(tiny_tokenizer)), model.generation_config.eos_token_id
    chat.add_special_tokens({"additional_special_tokens": [token]})
    model.generation_config.eos_token_id = [chat.eos_token_id, other.eos_token_id]  # as chat models know more than one
    try:
        assert generate(model, chat, PROMPTS, max_new_tokens=12) == expected
        assert generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=12) == whole  # to which it is a word
    finally:
        model.generation_config.eos_token_id = before


def save(tokenizer) -> str:
    folder = mkdtemp()
    tokenizer.save_pretrained(folder)
    return folder


def test_a_finished_text_needs_no_more_tokens(llama, tiny_tokenizer):
    calls = []
    handle = llama.model.register_forward_hook(lambda *_: calls.append(1))
    whole = generate(llama.model, tiny_tokenizer, PROMPTS, max_new_tokens=12)
    assert len(calls) == 12
    calls.clear()
    short = generate(llama.model, tiny_tokenizer, PROMPTS, [lambda text: len(text) > 4] * 4, max_new_tokens=12)
    handle.remove()
    assert len(calls) < 12
    assert all(long.startswith(cut) and len(cut) > 4 for long, cut in zip(whole, short, strict=True))


def test_the_models_own_settings_and_mode_are_set_aside_and_put_back(llama, tiny_tokenizer):
    model = llama.model
    expected = generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=8)
    before = model.generation_config
    own = GenerationConfig(do_sample=True, temperature=3.0, repetition_penalty=5.0, min_new_tokens=8, max_length=4)
    model.generation_config = own
    model.train()
    try:
        assert generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=8) == expected
        assert model.generation_config is own
        assert model.training
    finally:
        model.generation_config = before
        model.eval()


def test_a_tokenizer_without_padding_pads_with_the_end(llama, tiny_tokenizer):
    bare = AutoTokenizer.from_pretrained(save(tiny_tokenizer), pad_token=None)
    assert bare.pad_token_id is None
    assert generate(llama.model, bare, PROMPTS, max_new_tokens=8) == generate(
        llama.model, tiny_tokenizer, PROMPTS, max_new_tokens=8
    )
    endless = AutoTokenizer.from_pretrained(save(tiny_tokenizer), eos_token=None)
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        generate(llama.model, endless, PROMPTS, max_new_tokens=8)


def test_prompts_beyond_the_models_positions_are_refused(llama, tiny_tokenizer):
    long = ["a b c " * 100, "a"]
    tokens = len(tiny_tokenizer(long[0])["input_ids"])
    room = 512 - tokens
    assert 0 < room < 400
    message = (
        rf"1 of 2 prompts \(up to {tokens} tokens\) and x.max_new_tokens={room + 1} .* set x.max_new_tokens={room} or"
    )
    with pytest.raises(ValueError, match=message):
        generate(llama.model, tiny_tokenizer, long, max_new_tokens=room + 1, group="x.")
    with pytest.raises(ValueError, match="positions: leave them out, or shorten them"):
        generate(llama.model, tiny_tokenizer, [long[0] * 2], max_new_tokens=1)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        generate(llama.model, tiny_tokenizer, long, max_new_tokens=1, batch_size=0)


def letters(prompt: str, right: str, task: str = "letters") -> Question:
    return Question(task, prompt, right, f"{task} {prompt}", "[a-z]")


def test_answers_are_counted_by_task(llama, tiny_tokenizer):
    texts = [by_hand(llama.model, tiny_tokenizer, prompt, 12) for prompt in PROMPTS]
    first = [letters(prompt, "q") for prompt in PROMPTS]
    read = [rule_of(question).read(text) for question, text in zip(first, texts, strict=True)]
    assert sum(r is not None for r in read) >= 2
    tasks = {
        "right": [replace(q, answer=r) for q, r in zip(first, read, strict=True) if r is not None],
        "wrong": [letters(PROMPTS[0], "z" if read[0] != "z" else "y")],
        "unread": [Question("unread", PROMPTS[1], "%", "here", "%")],
    }
    found = answer(llama.model, tiny_tokenizer, tasks, max_new_tokens=12, batch_size=2)
    assert {name: (f.accuracy, f.unread) for name, f in found.items()} == {
        "right": (1.0, 0),
        "wrong": (0.0, 0),
        "unread": (0.0, 1),
    }
    assert found["right"].samples == len(tasks["right"])
    with pytest.raises(ValueError, match="'none' has no questions"):
        answer(llama.model, tiny_tokenizer, {"none": []})


def test_the_standard_error_is_that_of_a_share(llama, tiny_tokenizer):
    found = answer(llama.model, tiny_tokenizer, {"x": [letters("a", "q")]}, max_new_tokens=1)["x"].answers[0]
    marked = [replace(found, right=i < 9) for i in range(10)]
    assert GeneratedAnswers(tuple(marked)).standard_error == pytest.approx((0.9 * 0.1 / 9) ** 0.5)
    assert GeneratedAnswers((found,)).standard_error == 0


@pytest.mark.real
def test_real_questions_are_answered_alike_in_batches(shared_data):
    folder = shared_data / "models" / "stories260K"
    model, tokenizer = Supernet.from_pretrained(folder).model, AutoTokenizer.from_pretrained(folder)
    tasks = read_tasks(str(shared_data / "eval" / "llm_adapters"), "test", "test_path", limit=40)
    short = {
        task: [q for q in members if len(tokenizer(q.prompt)["input_ids"]) <= 500][:1]
        for task, members in tasks.items()
    }
    asked = {task: members for task, members in short.items() if members}
    assert len(asked) >= 10
    batched, single = (answer(model, tokenizer, asked, max_new_tokens=12, batch_size=size) for size in (8, 1))
    assert batched == single
    with pytest.raises(ValueError, match=r"prompts \(up to \d+ tokens\) .* the model's 512 positions"):
        answer(model, tokenizer, read_tasks(str(shared_data / "eval" / "llm_adapters" / "piqa"), "test", "test_path"))


# ---------------------------------------------------------------- questions of the data


def test_every_microworld_output_gives_its_answer():
    for held_out in (True, False):
        sets = instruction_records(Random(3), 40, held_out=held_out)
        assert list(sets) == list(FAMILIES)
        for question, record in zip(questions(sets), (r for members in sets.values() for r in members), strict=True):
            rule = rule_of(question)
            assert rule.read(record["output"]) == record["answer"] == question.answer
            assert rule.settled(record["output"])
            assert question.prompt == alpaca_prompt(record["instruction"], record["input"])
    assert rule_of(Question("x", "", "Al" + "bert", "", pattern("transfer"))).read("So the cup is with Nobody.") is None


def test_microworld_questions_are_of_the_held_out_words_and_of_one_split(microworld_tokenizer):
    data = MicroworldData(microworld_tokenizer, validation_size=24, test_size=20, train_size=8)
    sets = {split: data.questions(split) for split in ("train", "validation", "test")}
    assert {split: len(found) for split, found in sets.items()} == {"train": 8, "validation": 24, "test": 24}
    prompts = {split: {question.prompt for question in found} for split, found in sets.items()}
    assert sum(map(len, prompts.values())) == len(set.union(*prompts.values()))
    assert sets["test"] == data.questions("test")
    assert sets["test"] != MicroworldData(microworld_tokenizer, test_size=20, seed=1).questions("test")
    with pytest.raises(ValueError, match="unknown split"):
        data.questions("tests")


@pytest.fixture(scope="module")
def microworld_tokenizer():
    return train_tokenizer(400, seed=0)


RECORDS = [
    {
        "instruction": f"Is {i} even?",
        "input": "",
        "output": f"the correct answer is {str(i % 2 == 0).lower()}",
        "answer": str(i % 2 == 0).lower(),
    }
    for i in range(40)
]


def write(path, records) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return str(path)


def instruction_data(tokenizer, tmp_path, records=RECORDS, **settings):
    path = write(tmp_path / "records.json", records)
    sizes = {"validation_size": 6, "test_size": 5, "calibration_size": 0, "cache_dir": str(tmp_path / "cache")}
    data = InstructionData(tokenizer, path, **{**sizes, **settings})
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_questions_are_the_records_of_a_split_in_its_order(tiny_tokenizer, tmp_path, mask_prompt):
    long = [{**RECORDS[0], "instruction": "long " * 300}]  # nothing is learned from it where the prompt is masked
    records = [RECORDS[0], *long, *RECORDS, RECORDS[7]]
    data = instruction_data(tiny_tokenizer, tmp_path, records, mask_prompt=mask_prompt, sequence_length=128)
    seen = []
    for split in ("train", "validation", "test"):
        asked = data.questions(split)
        for question, record in zip(asked, data.dataset(split), strict=True):
            prompt = tiny_tokenizer(question.prompt)["input_ids"]
            output = tiny_tokenizer(f"the correct answer is {question.answer}")["input_ids"]
            whole = [*prompt, *output, tiny_tokenizer.eos_token_id]
            assert record["input_ids"].tolist() == whole[:128]
        seen.append({question.prompt for question in asked})
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_questions_of_a_path_of_its_own_and_of_records_without_answers(tiny_tokenizer, tmp_path):
    own = write(tmp_path / "own.json", RECORDS[5:9])
    data = instruction_data(tiny_tokenizer, tmp_path, validation_path=own, max_records=20)
    assert [q.answer for q in data.questions("validation")] == [r["answer"] for r in RECORDS[5:9]]
    assert "validation_path" in data.questions("validation")[0].where
    bare = [{key: value for key, value in record.items() if key != "answer"} for record in RECORDS]
    data = instruction_data(tiny_tokenizer, tmp_path, bare)
    with pytest.raises(ValueError, match=r"records.json, record \d+: no field 'answer'"):
        data.questions("validation")
    text = TextData(tiny_tokenizer, own, field="output")
    with pytest.raises(ValueError, match="TextData holds no questions with answers"):
        text.questions("validation")


# ---------------------------------------------------------------- the objective


def objective(tokenizer, data=None, split="validation", **settings):
    return GeneratedAccuracy(tokenizer, data, split, **{"max_new_tokens": 8, **settings})


@pytest.fixture
def files(tmp_path):
    """Two tasks with training and test files; one record of boolq is in both."""
    write(tmp_path / "boolq" / "train.json", RECORDS[:12])
    write(tmp_path / "boolq" / "test.json", RECORDS[11:20])
    counts = [{"instruction": f"Count {i}.", "answer": f"{i}.0"} for i in range(9)]
    write(tmp_path / "gsm8k" / "train.json", counts[:4])
    write(tmp_path / "gsm8k" / "test.json", counts[4:])
    return tmp_path


def test_the_value_is_the_mean_over_tasks(llama, tiny_tokenizer, files):
    measured = objective(tiny_tokenizer, split="test", test_path=str(files))
    middle = architectures(llama)["middle"]
    found = measured.details(llama, middle)
    assert {name: part.samples for name, part in found.parts.items()} == {"boolq": 9, "gsm8k": 5}
    assert found.whole.value == pytest.approx(sum(part.value for part in found.parts.values()) / 2)
    assert measured(llama, middle) == found.whole.value
    errors = [part.standard_error for part in found.parts.values()]
    assert found.whole.standard_error == pytest.approx(sum(e**2 for e in errors) ** 0.5 / 2)
    assert found.whole.samples == len(found.records) == 14
    assert [record["answer"] for record in found.records[:2]] == ["false", "true"]
    small = llama.extract(middle)
    for record in found.records[::4]:
        assert by_hand(small, tiny_tokenizer, record["prompt"], 8).startswith(record["text"])


def test_questions_that_choose_are_never_test_questions(tiny_tokenizer, files, caplog):
    settings = {"validation_path": str(files), "test_path": str(files)}
    chosen, measured = (objective(tiny_tokenizer, split=split, **settings).asked for split in ("validation", "test"))
    assert {task: len(members) for task, members in chosen.items()} == {"boolq": 11, "gsm8k": 4}
    assert {task: len(members) for task, members in measured.items()} == {"boolq": 9, "gsm8k": 5}
    prompts = [{q.prompt for members in asked.values() for q in members} for asked in (chosen, measured)]
    assert prompts[0].isdisjoint(prompts[1])
    limited = objective(tiny_tokenizer, **settings, validation_limit=3, test_limit=1, tasks=["boolq"])
    assert {task: len(members) for task, members in limited.asked.items()} == {"boolq": 3}


def test_a_file_cannot_choose_and_measure(tiny_tokenizer, files):
    test, train = str(files / "boolq" / "test.json"), str(files / "boolq" / "train.json")
    copied = write(files / "boolq.json", json.loads((files / "boolq" / "test.json").read_text()))
    for split in ("validation", "test"):
        for path in (test, copied):
            with pytest.raises(
                ValueError, match=r"is a test file too .* set objectives.generated_accuracy.validation_"
            ):
                _ = objective(tiny_tokenizer, split=split, validation_path=path, test_path=test).asked
    inside = write(files / "inside" / "boolq.json", RECORDS[12:15])
    with pytest.raises(ValueError, match="all 3 questions of boolq are test questions too"):
        _ = objective(tiny_tokenizer, validation_path=inside, test_path=test).asked
    searched = objective(tiny_tokenizer, validation_path=train)
    with pytest.raises(ValueError, match="1 of 9 questions are among those that the search chose by"):
        objective(tiny_tokenizer, split="test", test_path=test).refuse_shared(searched)
    objective(tiny_tokenizer, split="test", test_path=str(files / "gsm8k")).refuse_shared(searched)


def test_the_splits_of_the_data_are_asked_where_no_file_is_named(llama, tiny_tokenizer, tmp_path, microworld_tokenizer):
    data = instruction_data(tiny_tokenizer, tmp_path)
    assert {task: len(members) for task, members in objective(tiny_tokenizer, data).asked.items()} == {"all": 6}
    assert objective(tiny_tokenizer, data, "test", test_limit=2).asked["all"] == data.questions("test")[:2]
    world = MicroworldData(microworld_tokenizer, validation_size=8)
    found = objective(microworld_tokenizer, world).details(llama, llama.largest())
    assert list(found.parts) == list(FAMILIES)
    none = instruction_data(tiny_tokenizer, tmp_path, validation_size=0)
    with pytest.raises(ValueError, match=r"the validation split is empty.* data.validation_size above 0"):
        _ = objective(tiny_tokenizer, none).asked


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_new_tokens": 0}, "objectives.generated_accuracy.max_new_tokens=0 must be at least 1; set"),
        ({"validation_limit": 0}, "validation_limit=0 must be at least 1 or null for all"),
        ({"tasks": ["boolq"]}, "tasks=\\['boolq'\\] cannot take effect without"),
    ],
)
def test_impossible_settings_are_refused(tiny_tokenizer, settings, says):
    with pytest.raises(ValueError, match=says):
        objective(tiny_tokenizer, **settings)
