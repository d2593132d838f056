"""The microworld: determinism, held-out words, answers solved again from the text; the embedded models on it."""

import re
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import nas_llm
from nas_llm import cli
from nas_llm.data.microworld import FAMILIES, MicroworldData, draw, instruction, multiple_choice_sets, train_tokenizer
from nas_llm.data.microworld.blocks import FORMATS, repeated, tokenise, write
from nas_llm.data.microworld.lexicon import FEMALE_ENDINGS, MALE_ENDINGS, lexicon
from nas_llm.evaluation.multiple_choice import accuracies
from nas_llm.models.lookback import LookBack

ASSETS = Path(nas_llm.__file__).parent / "assets"
EMBEDDED = ("microworld_llama", "microworld_neox")
WORDS = {"one": 1, "two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(960, seed=0)


def sentences(context):
    """The story's sentences without the opener, and the question."""
    story, question = context.split("\nQuestion: ")
    story = re.sub(r"^(One|This|Last|In the|On|In) \w+ |^(Today|Yesterday) ", "", story)
    return story.rstrip(".").split(". "), question.split("\n")[0]


def bare(phrase):
    return re.sub(r"^the ", "", phrase.strip(), flags=re.IGNORECASE)


def solve_location(facts, question):
    name = question[len("Where is ") : -1]
    return [fact.split()[-1] for fact in facts if fact.split()[0] == name][-1]


def solve_property(facts, question):
    if thing := re.match(r"What colour is the (.*)\?", question):
        return next(fact.split(" is ")[1] for fact in facts if bare(fact).startswith(f"{thing[1]} is "))
    thing = re.match(r"Who owns the (.*)\?", question)[1]
    return next(fact.split(" to ")[1] for fact in facts if bare(fact).startswith(f"{thing} belongs to "))


def solve_containment(facts, question):
    holder = dict(map(bare, fact.split(" is in ")) for fact in facts)
    if thing := re.match(r"What holds the (.*)\?", question):
        return holder[thing[1]]
    return holder[holder[re.match(r"In which place is the (.*)\?", question)[1]]]


def solve_comparison(facts, question):
    asked = re.match(r"Who is the (?:least )?(\w+?)(?:est)?\?", question)[1]
    pairs = [re.match(r"(\w+) is (\w+)er than (\w+)", fact).groups() for fact in facts]
    assert {word for _, word, _ in pairs} == {asked}
    winners, losers = {pair[0] for pair in pairs}, {pair[2] for pair in pairs}
    (found,) = losers - winners if "least" in question else winners - losers
    return found


def solve_coreference(facts, question):
    names = set(re.findall(r"[A-Z]\w+", facts[0]))
    gender = {"She": FEMALE_ENDINGS, "He": MALE_ENDINGS}
    if pronoun := re.match(r"Who is (she|he)\?", question):
        pronoun = pronoun[1].capitalize()
    else:
        told = question[len("Who ") : -1]
        pronoun = next(fact.split()[0] for fact in facts[1:] if fact.endswith(told))
    others = set(gender["He" if pronoun == "She" else "She"])
    endings = {name: {e for e in FEMALE_ENDINGS + MALE_ENDINGS if name.endswith(e)} for name in names}
    (found,) = [name for name in names if max(endings[name], key=len) not in others]
    return found


def solve_counting(facts, question):
    name = re.match(r"How many things does (\w+) have\?", question)[1]
    held = next(fact for fact in facts if fact.split()[0] == name)
    return {v: k for k, v in WORDS.items()}[len(re.findall(r"\bthe\b", held))]


def solve_negation(facts, question):
    name = question[len("Where is ") : -1]
    either = next(
        re.match(rf"{name} is in the (\w+) or in the (\w+)", fact)
        for fact in facts
        if " or " in fact and fact.startswith(name)
    )
    (other,) = [fact.split()[-1] for fact in facts if fact.startswith(f"{name} is not in the ")]
    return either[1] if either[2] == other else either[2]


def solve_transfer(facts, question):
    thing = re.match(r"Who has the (.*)\?", question)[1]
    told = [fact for fact in facts if f"the {thing}" in fact]
    return told[-1].split(" to ")[1] if " gave " in told[-1] else told[-1].split()[0]


def test_every_answer_follows_from_the_story():
    for family, items in multiple_choice_sets(seed=11, items_per_set=150).items():
        for item in items:
            assert globals()[f"solve_{family}"](*sentences(item.context)) == item.options[item.answer].strip(), item


def test_options_are_distinct_and_the_answer_stands_anywhere():
    for family, items in multiple_choice_sets(seed=12, items_per_set=200).items():
        assert all(len(set(item.options)) == len(item.options) >= 2 for item in items)
        assert all(option.startswith(" ") for item in items for option in item.options)
        places = Counter(item.answer for item in items)
        assert min(places[0], places[1]) > 20, family


def test_the_seed_decides(tokenizer):
    assert multiple_choice_sets(3, 20) == multiple_choice_sets(3, 20)
    assert multiple_choice_sets(3, 20) != multiple_choice_sets(4, 20)
    sizes = {"train_size": 20, "calibration_size": 4, "validation_size": 4, "test_size": 4, "batch_size": 4}
    made = [MicroworldData(tokenizer, seed=seed, **sizes) for seed in (0, 0, 1)]
    for data in made:
        data.setup()
    assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint
    assert train_tokenizer(960, seed=0).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_held_out_names_and_things_never_occur_in_training_text():
    rng, kept, held = Random(0), lexicon(held_out=False), lexicon(held_out=True)
    texts = " ".join(write(rng, kept, format).text for format in FORMATS for _ in range(600))
    words = set(re.findall(r"\w+", texts))
    pairs = set(re.findall(r"(?=\b(\w+ \w+))", texts))
    assert words.isdisjoint(name for names in held.names.values() for name in names)
    assert pairs.isdisjoint({*held.things, *held.containers})
    assert len(words.intersection(kept.names["she"])) > 200  # the search above would find them
    asked = " ".join(item.context for items in multiple_choice_sets(0, 50).values() for item in items)
    assert set(re.findall(r"\w+", asked)).isdisjoint(name for names in kept.names.values() for name in names)


def test_splits_are_disjoint_and_fit(tokenizer):
    data = MicroworldData(tokenizer, train_size=60, calibration_size=20, validation_size=20, test_size=20, batch_size=4)
    data.setup()
    blocks = {split: [tuple(r["input_ids"].tolist()) for r in data.dataset(split)] for split in data.sizes}
    assert {split: len(found) for split, found in blocks.items()} == data.sizes
    assert len({block for found in blocks.values() for block in found}) == sum(data.sizes.values())
    assert all(len(block) <= 176 and block[-1] == tokenizer.eos_token_id for b in blocks.values() for block in b)
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    held = set(lexicon(held_out=True).names["she"])
    text = {split: set(re.findall(r"\w+", tokenizer.decode(sum(blocks[split], ())))) for split in blocks}
    assert text["train"].isdisjoint(held)
    assert text["test"] & held


def test_instruction_pairs_bear_loss_on_the_output_alone(tokenizer):
    data = MicroworldData(
        tokenizer, format="instruction", train_size=10, calibration_size=1, validation_size=1, test_size=1
    )
    data.setup()
    for record in data.dataset("train"):
        output = tokenizer.decode(record["labels"][record["labels"] >= 0])
        assert re.fullmatch(r"So .*\.<eos>", output)
        assert tokenizer.decode(record["input_ids"]).split("### Response:\n")[1] == output


def test_instruction_has_the_alpaca_fields():
    pair = instruction(Random(1), draw(Random(0), lexicon(held_out=False), family="counting"))
    assert set(pair) == {"instruction", "input", "output"}
    assert all(pair.values())


def test_settings_that_cannot_be_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"data\.train_size=-1"):
        MicroworldData(tokenizer, train_size=-1)
    with pytest.raises(ValueError, match=r"data\.sequence_length=4 "):
        MicroworldData(tokenizer, sequence_length=4)


def test_answers_are_marked_token_by_token(tokenizer):
    rng = Random(2)
    for format in FORMATS:
        record = write(rng, lexicon(held_out=False), format)
        tokens = tokenise(tokenizer, record)
        marked = tokenizer.decode(tokens.input_ids[tokens.is_answer])
        assert marked == "".join(record.text[start:end] for start, end in record.answers)


def test_repeated_finds_bigrams_of_the_same_record():
    eos = 1
    ids = np.array([5, 6, 7, 5, 6, eos, 5, 6, 8, 5, 6])
    assert repeated(ids, eos).tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]


def test_names_and_things_are_few_tokens_that_training_has_seen(tokenizer):
    def tokens(words):
        return [tokenizer(f" {word}")["input_ids"] for word in words]

    kept, held = (lexicon(held_out=flag) for flag in (False, True))
    for kind in ("she", "he"):
        seen = {token for ids in tokens(kept.names[kind]) for token in ids}
        assert np.mean([seen.issuperset(ids) for ids in tokens(held.names[kind])]) > 0.98
        assert np.mean([len(ids) for ids in tokens(held.names[kind])]) < 2.2
    assert max(len(ids) for ids in tokens(held.things)) <= 3


def test_look_back_attends_to_the_tokens_before():
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
                    num_key_value_heads=4, head_dim=32, attention_bias=True, attn_implementation="eager")
    )  # fmt: skip
    LookBack()(model)
    attention = model(torch.randint(0, 50, (1, 20)), output_attentions=True).attentions[0][0, :, 15]
    assert (15 - attention.argmax(-1)).tolist() == [1, 5, 2, 6, 3, 7, 4, 8]
    assert attention.max(-1).values.min() > 0.9
    with pytest.raises(ValueError, match="attention_bias=true"):
        LookBack()(LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=64, num_hidden_layers=2)))


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_models_answer_what_they_were_never_told(name):
    torch.manual_seed(0)
    weights = ASSETS / name / "model.safetensors"
    assert weights.stat().st_size <= 8e6
    assert {p.name for p in (ASSETS / name).iterdir()} >= {"config.json", "tokenizer.json", "README.md"}
    model = AutoModelForCausalLM.from_pretrained(ASSETS / name, dtype=torch.float32)
    assert 2e6 <= model.num_parameters() <= 4e6
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / name)
    found = accuracies(model, tokenizer, multiple_choice_sets(seed=0, items_per_set=100))
    assert set(found) == set(FAMILIES)
    assert {family: score.summed for family, score in found.items() if score.summed < 0.9} == {}


def test_pre_training_resumes_and_a_full_disk_or_a_damaged_checkpoint_is_one_line(
    tokenizer, tmp_path, capsys, file_size_limit, monkeypatch
):
    monkeypatch.setattr("nas_llm.stages.pretrain.train_tokenizer", lambda vocab_size, seed: tokenizer)
    phase = "{_target_: nas_llm.stages.pretrain.Phase, steps: %d, format: notes, size: 2, sequence_length: 64, "
    tiny = ["hidden_size=8", "intermediate_size=8", "num_hidden_layers=2", "num_attention_heads=2"]
    tiny += ["num_key_value_heads=1", "head_dim=4"]
    sizes = ["pretrain.batch_tokens=64", "pretrain.score_every=1", "pretrain.items_per_set=1"]
    sizes += ["pretrain.initialisation.offsets=1"]
    command = ["pretrain", "experiment=microworld_llama", f"run_dir={tmp_path / 'run'}", "trainer.precision=32-true"]
    command += [*(f"pretrain.model.{size}" for size in tiny), *sizes]

    def pretrain(steps: int, *more: str) -> int:
        return cli.run([*command, f"pretrain.phases=[{phase % steps}known_weight: 1.0}}]", *more])

    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert pretrain(2) == 0
    before = last.read_bytes()
    with file_size_limit(20_000):
        assert pretrain(4, "ckpt_path=last") == 2
    assert f"{last} could not be written (File too large)" in capsys.readouterr().err.splitlines()[-1]
    assert last.read_bytes() == before
    assert pretrain(4, "ckpt_path=last") == 0
    last.write_bytes(before[:1000])
    assert pretrain(6, "ckpt_path=last") == 2
    assert f"ckpt_path={last} is not a whole checkpoint" in capsys.readouterr().err.splitlines()[-1]
