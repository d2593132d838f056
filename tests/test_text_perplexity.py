"""Perplexity of a text: equal to one token after another, to GPTQ's evaluation and to lm-eval's; what it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from test_families import build
from torch.nn import functional as F

from nas_llm.config import build as built
from nas_llm.config import config_dir
from nas_llm.evaluation.long_text import LongText
from nas_llm.evaluation.text_perplexity import TextPerplexity, TextScore, exponential
from nas_llm.models.loading import from_pretrained
from nas_llm.models.supernet import Supernet
from nas_llm.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return build("llama")  # 64 positions, 96 tokens


def text_of(*lengths: int, seed: int = 0) -> LongText:
    rng = np.random.default_rng(seed)
    rows = tuple(rng.integers(96, size=length).astype(np.int32) for length in lengths)
    return LongText("made up", rows, words=40, bytes=200)


def one_by_one(model, ids: np.ndarray, target: int, start: int) -> float:
    """-log p(token `target` | tokens from `start` on), of a forward pass of its own."""
    context = torch.from_numpy(ids[start:target].astype(np.int64))[None]
    with torch.no_grad():
        return -model(input_ids=context).logits[0, -1].double().log_softmax(-1)[ids[target]].item()


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 10), (16, 15), (16, 1), (2, 1), (64, 64), (65, 64)])
def test_every_token_is_scored_with_the_context_that_its_window_has(supernet, window, stride):
    text, model = text_of(50, 3, 1, 16, 17), supernet.model
    nll, scored = 0.0, 0
    for ids in text.sequences:
        for target in range(1, len(ids)):
            if target < window:
                start = 0  # of the first window
            else:
                start = math.ceil((target - window + 1) / stride) * stride
                if stride == window and start == target:
                    continue  # the first token of a window
            assert start == 0 or window - stride <= target - start < window
            nll, scored = nll + one_by_one(model, ids, target, start), scored + 1
    found = TextPerplexity("x", window=window, stride=stride, batch_size=3)(model, text)
    assert found.tokens == scored
    assert found.nll == pytest.approx(nll, rel=1e-5)
    everything = sum(len(ids) - 1 for ids in text.sequences)
    assert (found.tokens == everything) == (found.words is not None) == (found.bytes is not None)
    if stride < window:
        assert found.tokens == everything
        assert (found.words, found.bytes) == (40, 200)


def test_stride_equal_to_the_window_is_the_evaluation_of_gptq(supernet):
    """Mean of a window's loss, times its length, over all whole windows (Frantar et al., ICLR 2023)."""
    text, length = text_of(75), 16
    losses = []
    for number in range(75 // length):
        ids = torch.from_numpy(text.sequences[0][number * length : (number + 1) * length].astype(np.int64))[None]
        with torch.no_grad():
            logits = supernet.model(input_ids=ids).logits
        losses.append(F.cross_entropy(logits[0, :-1], ids[0, 1:]) * length)
    expected = torch.exp(torch.stack(losses).sum() / (len(losses) * length)).item()
    score = TextPerplexity("x", window=length, drop_last=True)
    found = score(supernet.model, text)
    assert found.token_perplexity == pytest.approx(expected, rel=1e-5)
    assert found.tokens == 4 * 15
    assert found.word_perplexity is None
    first = TextPerplexity("x", window=length, max_windows=2)(supernet.model, text)
    assert first.tokens == 2 * 15


def test_the_batch_does_not_matter_and_modes_come_back(supernet):
    text, model = text_of(50, 20, 9), supernet.model.train()
    one, many = (TextPerplexity("x", window=12, stride=7, batch_size=n)(model, text) for n in (1, 50))
    assert one.nll == pytest.approx(many.nll, rel=1e-6)
    assert model.training
    model.eval()


def test_an_active_sub_network_scores_as_its_extracted_copy(supernet):
    full = supernet.largest()
    small = full.__class__(24, full.layers[1:])
    score, text = TextPerplexity("x", window=16, stride=8), text_of(40)
    with supernet.activate(small) as model:
        active = score(model, text)
    assert active.nll == pytest.approx(score(supernet.extract(small), text).nll, rel=1e-6)
    assert active.nll != pytest.approx(score(supernet.model, text).nll, rel=1e-6)


def test_words_and_bytes_are_other_units_of_the_same_likelihood():
    score = TextScore(nll=100.0, tokens=50, words=20, bytes=80)
    assert score.token_perplexity == math.exp(2)
    assert score.word_perplexity == math.exp(5)
    assert score.bits_per_byte == pytest.approx(1.25 / math.log(2))
    assert [(m["name"], m["unit"], m["samples"]) for m in score.metrics()] == [
        ("token_perplexity", "1", 50),
        ("word_perplexity", "1", 20),
        ("bits_per_byte", "bits/byte", 80),
    ]
    assert [m["name"] for m in TextScore(1.0, 1, None, None).metrics()] == ["token_perplexity"]
    assert exponential(1000.0) == math.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 128}, "window=128: the model has 64 positions, .* set text_perplexity.window=64$"),
        ({"window": 128, "stride": 100}, "set text_perplexity.window=64 text_perplexity.stride=64$"),
        ({"window": 101, "drop_last": True}, "leaves no token of made up to score: its longest text has 100 tokens"),
        ({"window": 1}, "text_perplexity.window=1: allowed is 2 or more"),
        ({"stride": 0}, "text_perplexity.stride=0: allowed is 1 to text_perplexity.window=2048"),
        ({"window": 8, "stride": 9}, "text_perplexity.stride=9"),
        ({"batch_size": 0}, "text_perplexity.batch_size=0"),
        ({"max_windows": 0}, "text_perplexity.max_windows=0"),
        ({"max_documents": 0}, "text_perplexity.max_documents=0"),
        ({"path": ""}, "text_perplexity.path=''"),
    ],
)
def test_what_cannot_be_measured_is_refused(supernet, settings, message):
    with pytest.raises(ValueError, match=message):
        TextPerplexity(**{"path": "x", **settings})(supernet.model, text_of(100))


def test_a_window_of_all_positions_and_one_more_fits(supernet):
    assert TextPerplexity("x", window=65, stride=64)(supernet.model, text_of(100)).tokens == 99
    assert TextPerplexity("x", window=500)(supernet.model, text_of(65)).tokens == 64  # the text is no longer


def test_documents_lines_and_marks_become_texts(tmp_path, tiny_tokenizer):
    def decoded(**settings) -> list[str]:
        read = TextPerplexity(str(tmp_path / "text"), **settings).read(tiny_tokenizer)
        return [tiny_tokenizer.decode(row) for row in read.sequences]

    (tmp_path / "text").mkdir()
    file = tmp_path / "text" / "a.txt"
    file.write_text(" \n = Cat = \n \n The cat .\n")
    rows = ["", " = Cat = \n", "", " The cat .\n"]  # as the hub's WikiText has them
    assert decoded(lines=True) == ["\n\n".join(rows)]
    assert decoded(lines=True, join=None) == [rows[1], rows[3]]
    assert decoded() == decoded(join=None) == [file.read_text()]
    assert decoded(lines=True, max_documents=2) == ["\n\n = Cat = \n"]
    file.write_text("One. <|endoftext|> Two. <eos> Three.")
    assert decoded(join=None) == ["One.", "Two.", "Three."]
    file.unlink()
    (tmp_path / "text" / "b.jsonl").write_text(json.dumps({"story": "Äh"}) + "\n" + json.dumps({"story": "mat"}))
    assert decoded(field="story", join=" ") == ["Äh mat"]
    read = TextPerplexity(str(tmp_path / "text"), field="story", join=" ").read(tiny_tokenizer)
    assert (read.words, read.bytes) == (2, 7)
    with pytest.raises(ValueError, match=r"no field 'text' .* set text_perplexity.field"):
        decoded()
    with pytest.raises(ValueError, match=r"text_perplexity.bos=true: the tokenizer has no beginning"):
        decoded(field="story", bos=True)
    (tmp_path / "text" / "b.jsonl").write_text(json.dumps({"story": " "}))
    with pytest.raises(ValueError, match="there is no text in it"):
        decoded(field="story")


def test_a_beginning_of_sequence_stands_before_every_text(tmp_path):
    tokenizer = load_tokenizer("microworld_llama")
    (tmp_path / "a.txt").write_text("the cat")
    plain = [int(i) for i in tokenizer("the cat", add_special_tokens=False)["input_ids"]]
    own = TextPerplexity(str(tmp_path)).read(tokenizer).sequences[0].tolist()
    assert own == tokenizer("the cat")["input_ids"]
    assert TextPerplexity(str(tmp_path), bos=False).read(tokenizer).sequences[0].tolist() == plain


def test_wikitext_is_put_together_and_its_words_are_those_of_the_file(tmp_path, tiny_tokenizer):
    content = " \n = Cat = \n \n A cat , 1 @.@ 5 years old . \n"
    (tmp_path / "wiki.txt").write_text(content)
    (tmp_path / "hub.jsonl").write_text(
        "".join(
            json.dumps({"text": line}) + "\n" for line in ["", " = Cat = \n", "", " A cat , 1 @.@ 5 years old . \n"]
        )
    )
    found = [
        TextPerplexity(str(tmp_path / name), join="", wikitext=True).read(tiny_tokenizer)
        for name in ("wiki.txt", "hub.jsonl")
    ]
    for read in found:
        assert tiny_tokenizer.decode(read.sequences[0]) == "\n= Cat =\n\nA cat, 1.5 years old.\n"
        assert read.words == 14  # line ends count
        assert read.bytes == len(content)


def test_the_options_are_the_papers_ways(monkeypatch):
    options = {path.stem: built(OmegaConf.load(path)) for path in (config_dir() / "text_perplexity").glob("[!f]*.yaml")}
    assert options.pop("none") is None
    assert {name: (o.window, o.stride, o.join) for name, o in options.items()} == {
        "wikitext2": (2048, None, "\n\n"),
        "wikitext103": (2048, 32, ""),
        "c4": (2048, None, " "),
    }


@pytest.mark.real
def test_a_story_scores_as_in_the_harness(shared_data):
    """lm-eval's windows are ours of positions + 1 tokens and one of context, where the last one is whole; its prefix is
    our beginning of sequence."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    path = shared_data / "models" / "stories260K"
    model, tokenizer = from_pretrained(path, dtype="float32"), load_tokenizer(path)
    with (shared_data / "lm_eval_tasks" / "data" / "tinystories.jsonl").open() as lines:
        stories = [json.loads(line)["text"] for line in lines][:6]
    with (shared_data / "lm_eval_tasks" / "data" / "wikitext2_test_pages.jsonl").open() as lines:
        page = next(iter(json.loads(lines.readline()).values()))

    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    positions = model.config.max_position_embeddings
    whole = (page[:end] for end in range(600, len(page)) if length(page[:end]) == 2 * positions)
    documents = [story[:900] for story in stories] + [next(whole)]
    assert [length(text) > positions for text in documents] == [False] * 6 + [True]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, add_bos_token=False)
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(documents)]
    expected = harness.loglikelihood_rolling(requests, disable_tqdm=True)
    score = TextPerplexity("x", window=positions + 1, stride=positions)
    for text, log_likelihood in zip(documents, expected, strict=True):
        ids = np.array([tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]], np.int32)
        assert score(model, LongText("x", (ids,), 1, 1)).nll == pytest.approx(-log_likelihood, rel=1e-5)
