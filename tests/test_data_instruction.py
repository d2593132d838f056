"""Instruction pairs: what is learned is exactly the output and the end of sequence."""

import json

import numpy as np
import pytest

from nas_llm.data.instruction import InstructionData, encode_outputs
from nas_llm.data.template import alpaca_prompt

PAIRS = [
    {
        "instruction": f"Add {i} and {i + 1}.",
        "output": f"{2 * i + 1} it is" + ", so it is" * (i % 3),
        **({"input": f"They are numbers: {{{i}}}"} if i % 2 else {}),
    }
    for i in range(40)
]


def write(folder, pairs=PAIRS, name="pairs.json"):
    path = folder / name
    path.write_text(json.dumps(pairs))
    return path


def instruction_data(tokenizer, path, folder, **settings) -> InstructionData:
    defaults = {"sequence_length": 256, "batch_size": 2, "calibration_size": 4, "cache_dir": str(folder / "cache")}
    data = InstructionData(tokenizer, str(path), **{**defaults, **settings})
    data.prepare_data()
    data.setup()
    return data


ALL = {"validation_size": 0, "test_size": 0, "calibration_size": 0}


def texts(pair) -> tuple[str, str]:
    return alpaca_prompt(pair["instruction"], pair.get("input")), pair["output"]


def test_the_template_is_stanford_alpacas():
    assert alpaca_prompt("Do it.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo it.\n\n### Response:\n"
    )
    assert alpaca_prompt("Do {it}.", "To {this}.") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo {it}.\n\n### Input:\nTo {this}.\n\n### Response:\n"
    )
    assert alpaca_prompt("Do it.", "") == alpaca_prompt("Do it.", None) == alpaca_prompt("Do it.")


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_labels_are_the_output_and_its_end(tiny_tokenizer, tmp_path, mask_prompt):
    data = instruction_data(tiny_tokenizer, write(tmp_path), tmp_path, mask_prompt=mask_prompt, **ALL)
    assert len(data.dataset("train")) == len(PAIRS)
    for pair, record in zip(PAIRS, data.dataset("train"), strict=True):
        prompt, output = texts(pair)
        learned = record["labels"][record["labels"] != -100]
        assert tiny_tokenizer.decode(record["input_ids"]) == prompt + output + "<eos>"
        assert tiny_tokenizer.decode(learned) == ("" if mask_prompt else prompt) + output + "<eos>"
        assert record["input_ids"][-len(learned) :].equal(learned)
        assert record["input_ids"][: len(tiny_tokenizer.encode(prompt))].tolist() == tiny_tokenizer.encode(prompt)


def test_a_batch_bears_no_loss_on_prompt_and_padding(tiny_tokenizer, tmp_path):
    data = instruction_data(tiny_tokenizer, write(tmp_path), tmp_path, batch_size=7)
    for batch in data.train_dataloader():
        lengths = batch["attention_mask"].sum(1)
        assert int(lengths.max()) == batch["input_ids"].shape[1]
        for ids, labels, length in zip(batch["input_ids"], batch["labels"], lengths, strict=True):
            assert (labels[length:] == -100).all()
            assert (ids[length:] == tiny_tokenizer.pad_token_id).all()
            assert ids[length - 1] == labels[length - 1] == tiny_tokenizer.eos_token_id


def test_every_kind_of_file_gives_the_same_records(tiny_tokenizer, tmp_path):
    import pyarrow
    import pyarrow.parquet

    first = instruction_data(tiny_tokenizer, write(tmp_path), tmp_path)
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"input": None, **pair} for pair in PAIRS]), tmp_path / "pairs.parquet"
    )
    for name in ("pairs.jsonl", "pairs.parquet"):
        assert instruction_data(tiny_tokenizer, tmp_path / name, tmp_path).fingerprint == first.fingerprint


def test_the_splits_are_disjoint_even_with_duplicates(tiny_tokenizer, tmp_path):
    data = instruction_data(tiny_tokenizer, write(tmp_path, PAIRS * 2), tmp_path, validation_size=6, test_size=0.1)
    splits = [
        {tuple(record["input_ids"].tolist()) for record in data.dataset(name)}
        for name in ("train", "calibration", "validation", "test")
    ]
    assert sum(map(len, splits)) == len(set.union(*splits)) == len(PAIRS)
    assert [len(split) for split in splits[1:]] == [4, 6, 8]


def test_long_records_are_cut_and_counted(tiny_tokenizer, tmp_path, caplog):
    caplog.set_level("INFO")
    lengths = [len(tiny_tokenizer.encode("".join(texts(pair)))) + 1 for pair in PAIRS]
    limit = sorted(lengths)[20]
    data = instruction_data(tiny_tokenizer, write(tmp_path), tmp_path, sequence_length=limit, mask_prompt=False, **ALL)
    assert f"{sum(length > limit for length in lengths)} of 40 records are longer than {limit} tokens" in caplog.text
    assert [len(record["input_ids"]) for record in data.dataset("train")] == [min(limit, n) for n in lengths]
    for pair, record, length in zip(PAIRS, data.dataset("train"), lengths, strict=True):
        assert ("".join(texts(pair)) + "<eos>").startswith(tiny_tokenizer.decode(record["input_ids"]))
        assert (record["input_ids"][-1] == tiny_tokenizer.eos_token_id) == (length <= limit)


def test_records_without_a_token_to_learn_are_left_out(tiny_tokenizer, tmp_path, caplog):
    prompts = [len(tiny_tokenizer.encode(texts(pair)[0])) for pair in PAIRS]
    limit = sorted(prompts)[20]
    data = instruction_data(tiny_tokenizer, write(tmp_path), tmp_path, sequence_length=limit, **ALL)
    assert len(data.dataset("train")) == sum(length < limit for length in prompts)
    assert all((record["labels"] != -100).any() for record in data.dataset("train"))
    assert "their prompt fills the sequence" in caplog.text
    with pytest.raises(ValueError, match=f"data.sequence_length=16: the prompts of all 40 .* above {min(prompts)}"):
        instruction_data(tiny_tokenizer, write(tmp_path), tmp_path, sequence_length=16)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([*PAIRS, {"instruction": "x"}], r"pairs\.json, record 41: no field 'output' \(it has 'instruction'\)"),
        ([{"prompt": "x", "response": "y"}], r"record 1: no field 'instruction' \(it has 'prompt', 'response'\)"),
        ([{"instruction": "x", "output": None}], "record 1: field 'output' must be a string, found null"),
        ([{"instruction": "x", "input": ["y"], "output": "z"}], "record 1: field 'input' must be a string, found list"),
        ([], "is empty: no records in it"),
        (PAIRS[:3], r"data.calibration_size=4, .*leave nothing of data.path \(3 records"),
    ],
)
def test_bad_records_are_named(tiny_tokenizer, tmp_path, pairs, message):
    with pytest.raises(ValueError, match=message):
        instruction_data(tiny_tokenizer, write(tmp_path, pairs), tmp_path)


def test_bad_settings_are_named(tiny_tokenizer, tmp_path):
    text = tmp_path / "plain.txt"
    text.write_text("Some text.")
    with pytest.raises(ValueError, match="plain text is no instruction data; use data=text"):
        instruction_data(tiny_tokenizer, text, tmp_path)
    with pytest.raises(ValueError, match="data.sequence_length=1024 must be between 8 and the model's 512"):
        InstructionData(tiny_tokenizer, str(write(tmp_path)), sequence_length=1024, model_max_length=512)
    data = instruction_data(tiny_tokenizer, write(tmp_path), tmp_path, batch_size=100)
    with pytest.raises(ValueError, match="data.batch_size=100 exceeds the 32 training records"):
        data.train_dataloader()


def test_an_output_that_merges_with_its_prompt_leaves_the_prompts_tokens(tiny_tokenizer):
    prompts, pairs = ["a c", "a c"], [("a c", "at"), ("a c", " at")]
    prompt = tiny_tokenizer.encode("a c")
    assert tiny_tokenizer.encode("a cat")[: len(prompt)] != prompt  # the tokenizer has learned " cat"
    encoded = [np.asarray(tiny_tokenizer.encode(text)) for text in prompts]
    merging, apart = encode_outputs(tiny_tokenizer, pairs, encoded)
    assert merging.tolist() == tiny_tokenizer.encode("at")
    assert apart.tolist() == tiny_tokenizer.encode(" at")
