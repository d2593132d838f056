"""The data modules on real files with the real tiny model's tokenizer."""

import json
from itertools import pairwise

import pytest

from nas_llm.data.instruction import InstructionData
from nas_llm.data.template import alpaca_prompt
from nas_llm.data.text import TextData

pytestmark = pytest.mark.real
SPLITS = ("train", "calibration", "validation", "test")


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared_data / "models" / "stories260K")


def ready(data):
    data.prepare_data()
    data.setup()
    return data


def test_alpaca_outputs_are_what_is_learned(tokenizer, shared_data, tmp_path):
    path = shared_data / "instruct" / "alpaca_en_demo.json"
    settings = {"calibration_size": 0, "validation_size": 0, "test_size": 0, "cache_dir": str(tmp_path)}
    data = ready(InstructionData(tokenizer, str(path), sequence_length=100_000, **settings))
    pairs = json.loads(path.read_text())
    assert len(data.dataset("train")) == len(pairs) == 999
    for pair, record in zip(pairs[:200], data.dataset("train"), strict=False):
        learned = record["labels"][record["labels"] != -100].tolist()
        prompt = tokenizer.encode(alpaca_prompt(pair["instruction"], pair["input"]))
        assert record["input_ids"].tolist() == prompt + learned
        assert prompt.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(learned[:-1]) == pair["output"]
        assert learned[-1] == tokenizer.eos_token_id


def test_alpaca_splits_within_the_context(tokenizer, shared_data, tmp_path):
    path = shared_data / "instruct" / "alpaca_5000.json"
    data = ready(InstructionData(tokenizer, str(path), cache_dir=str(tmp_path), model_max_length=512))
    assert [len(data.dataset(name)) for name in SPLITS[1:]] == [64, 250, 250]
    contents = [{tuple(record["input_ids"].tolist()) for record in data.dataset(name)} for name in SPLITS]
    assert sum(map(len, contents)) == len(set.union(*contents))


def test_stories_are_packed_with_one_bos_each(tokenizer, shared_data, tmp_path):
    path = shared_data / "text" / "stories260K_samples.jsonl"
    data = ready(TextData(tokenizer, str(path), cache_dir=str(tmp_path), max_records=300, calibration_size=16))
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()[:300]]
    tokens = [token for record in data.dataset("train") for token in record["input_ids"].tolist()]
    starts = [i for i, token in enumerate(tokens) if token == tokenizer.bos_token_id]
    assert starts[0] == 0
    assert all(tokens[i - 1] == tokenizer.eos_token_id for i in starts[1:])
    stories = [tokens[a:b] for a, b in pairwise(starts)]
    known = {(*tokenizer.encode(text), tokenizer.eos_token_id) for text in texts}
    assert all(tuple(story) in known for story in stories)
    assert {len(record["input_ids"]) for name in SPLITS for record in data.dataset(name)} == {512}


@pytest.mark.parametrize(
    "name",
    ["tinystories/tinystories_niklas6_200k.txt", "wikitext2/wiki.valid.raw", "wiki/wiki_demo.txt", "c4/c4_demo.jsonl"],
)
def test_real_text_splits_without_overlap(tokenizer, shared_data, tmp_path, name):
    data = ready(TextData(tokenizer, str(shared_data / "text" / name), cache_dir=str(tmp_path), sequence_length=128))
    blocks = [{tuple(record["input_ids"].tolist()) for record in data.dataset(split)} for split in SPLITS]
    assert sum(map(len, blocks)) == len(set.union(*blocks))
    total = sum(len(data.dataset(split)) for split in SPLITS)
    assert len(data.dataset("calibration")) == 64
    assert 0.04 < len(data.dataset("validation")) / total < 0.12
    assert 0.04 < len(data.dataset("test")) / total < 0.12


def test_a_story_file_with_marks_holds_its_stories(tokenizer, shared_data, tmp_path):
    path = shared_data / "text" / "tinystories" / "tinystories_sample_cs336.txt"
    sizes = {"calibration_size": 0, "validation_size": 0, "test_size": 0}
    data = ready(TextData(tokenizer, str(path), cache_dir=str(tmp_path), sequence_length=8, **sizes))
    tokens = [token for record in data.dataset("train") for token in record["input_ids"].tolist()]
    assert tokens.count(tokenizer.bos_token_id) == 5
