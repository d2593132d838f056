"""Packed text against its documents."""

import json

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from nas_llm.data.text import TextData, segments, split_text

STORIES = [f"Story {i}: the cat number {i} saw {i * i} moons and {i + 3} mats." for i in range(60)]


@pytest.fixture
def stories(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": story, "title": str(i)}) + "\n" for i, story in enumerate(STORIES)))
    return path


def text_data(tokenizer, path, folder, **settings) -> TextData:
    defaults = {"sequence_length": 16, "batch_size": 2, "calibration_size": 4, "cache_dir": str(folder / "cache")}
    data = TextData(tokenizer, str(path), **{**defaults, **settings})
    data.prepare_data()
    data.setup()
    return data


def stream(data, split) -> list[int]:
    return [token for record in data.dataset(split) for token in record["input_ids"].tolist()]


def found(data, split, tokenizer) -> list[str]:
    return [text for text in tokenizer.decode(stream(data, split)).split("<eos>") if text]


def test_the_blocks_of_all_splits_are_the_documents(tiny_tokenizer, stories, tmp_path):
    data = text_data(tiny_tokenizer, stories, tmp_path, validation_size=0.1, test_size=5)
    seen = {}
    for split in ("train", "calibration", "validation", "test"):
        assert {len(record["input_ids"]) for record in data.dataset(split)} == {16}
        assert all(record["labels"].equal(record["input_ids"]) for record in data.dataset(split))
        texts = found(data, split, tiny_tokenizer)
        assert set(texts[:-1]) <= set(
            STORIES
        )  # whole documents, in the order of the file, the last one cut by a block's end
        assert [STORIES.index(text) for text in texts[:-1]] == sorted(STORIES.index(text) for text in texts[:-1])
        assert any(story.startswith(texts[-1]) for story in STORIES)
        seen[split] = {story for story in STORIES for text in texts if len(text) > 9 and story.startswith(text)}
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))
    assert (len(data.dataset("calibration")), len(data.dataset("test"))) == (4, 5)


def test_without_held_out_splits_training_holds_everything(tiny_tokenizer, stories, tmp_path):
    data = text_data(tiny_tokenizer, stories, tmp_path, validation_size=0, test_size=0, calibration_size=0)
    whole = [i for story in STORIES for i in [*tiny_tokenizer.encode(story), tiny_tokenizer.eos_token_id]]
    assert stream(data, "train") == whole[: len(whole) // 16 * 16]


def test_a_bos_goes_in_front_once_where_the_tokenizer_puts_one(tiny_tokenizer, stories, tmp_path):
    with_bos = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str()),
        eos_token="<eos>",
        pad_token="<pad>",
        bos_token="<bos>",
    )
    bos = with_bos.bos_token_id
    with_bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    assert with_bos.encode("cat")[0] == bos
    path = tmp_path / "marked.jsonl"
    path.write_text("".join(json.dumps({"text": f"<bos>{story}"}) + "\n" for story in STORIES))
    for source in (stories, path):
        tokens = stream(
            text_data(with_bos, source, tmp_path, validation_size=0, test_size=0, calibration_size=0), "train"
        )
        assert tokens[0] == bos
        starts = [i for i, token in enumerate(tokens) if token == bos]
        assert all(i == 0 or tokens[i - 1] == with_bos.eos_token_id for i in starts)
        assert len(starts) == len(STORIES)


def test_the_content_decides_the_fingerprint_and_the_seed_the_splits(tiny_tokenizer, stories, tmp_path):
    first = text_data(tiny_tokenizer, stories, tmp_path)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(stories.read_bytes())
    assert first.fingerprint == text_data(tiny_tokenizer, copy, tmp_path).fingerprint
    assert first.fingerprint != text_data(tiny_tokenizer, stories, tmp_path, seed=1).fingerprint
    assert first.fingerprint != text_data(tiny_tokenizer, stories, tmp_path, max_records=40).fingerprint


def test_tokens_are_made_once(tiny_tokenizer, stories, tmp_path, caplog):
    caplog.set_level("INFO")
    text_data(tiny_tokenizer, stories, tmp_path)
    assert ("cache miss" in caplog.text, "cache hit" in caplog.text) == (True, False)
    caplog.clear()
    text_data(tiny_tokenizer, stories, tmp_path, sequence_length=8, seed=5)
    assert ("cache miss" in caplog.text, "cache hit" in caplog.text) == (False, True)


def test_a_split_from_its_own_file_keeps_all_of_it(tiny_tokenizer, stories, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [STORIES[4], "Something else, told at some length."])
    )
    data = text_data(tiny_tokenizer, stories, tmp_path, validation_path=str(own))
    expected = [
        i for text in (STORIES[4], "Something else, told at some length.") for i in [*tiny_tokenizer.encode(text), 1]
    ]
    assert stream(data, "validation") == expected[: len(expected) // 16 * 16]
    assert not any(story == STORIES[4] for story in found(data, "train", tiny_tokenizer))


def test_another_field_and_a_marked_text_file(tiny_tokenizer, stories, tmp_path):
    none = {"validation_size": 0, "test_size": 0, "calibration_size": 0}
    titles = text_data(tiny_tokenizer, stories, tmp_path, field="title", **none)
    assert tiny_tokenizer.decode(stream(titles, "train")).startswith("0<eos>1<eos>2<eos>")
    marked = tmp_path / "marked.txt"
    marked.write_text("\n<|endoftext|>\n".join(STORIES))
    assert stream(text_data(tiny_tokenizer, marked, tmp_path, **none), "train") == stream(
        text_data(tiny_tokenizer, stories, tmp_path, **none), "train"
    )


def test_a_running_text_is_cut_into_contiguous_parts():
    text = "\n\n".join(f"Paragraph {i}. " + "word " * (i % 40) for i in range(400))
    parts = split_text(text, marks=("<|endoftext|>",))
    assert "".join(parts) == text
    assert len(parts) > 20
    assert all(part.endswith("\n\n") for part in parts[:-1])
    assert "".join(segments("x" * 5000, 300)) == "x" * 5000
    assert max(map(len, segments("x" * 5000, 300))) <= 600
    assert split_text("short", marks=()) == ["short"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_length": 7}, r"data.sequence_length=7 must be 8 or more tokens; set data.sequence_length=512"),
        (
            {"sequence_length": 600, "model_max_length": 256},
            r"data.sequence_length=600 must be between 8 and the model's 256 tokens; set data.sequence_length=256",
        ),
        ({"batch_size": 0}, "data.batch_size=0 must be at least 1"),
        ({"max_records": 0}, "data.max_records=0 must be at least 1"),
        ({"test_size": 1.5}, "data.test_size=1.5 must be a count"),
        ({"path": ""}, "data.path='' names no data"),
        ({"field": "body"}, r"line 1: no field 'body' \(it has 'text', 'title'\); set data.field"),
        (
            {"test_size": 10_000},
            r"held-out splits \(.*data.test_size=10000\) leave nothing of data.path \(60 documents",
        ),
        ({"validation_path": "nowhere/at/all"}, "data.validation_path=nowhere/at/all: no such file or folder"),
        ({"sequence_length": 5000, "calibration_size": 0, "test_size": 0, "validation_size": 0}, "less than one block"),
    ],
)
def test_bad_settings_are_named(tiny_tokenizer, stories, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        text_data(tiny_tokenizer, **{"path": stories, "folder": tmp_path, **settings})


def test_a_tokenizer_without_eos_is_refused(tiny_tokenizer, stories):
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="the tokenizer has no end-of-sequence token"):
        TextData(bare, str(stories))
