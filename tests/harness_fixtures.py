"""Task files of lm-eval on a few made-up documents, and a tiny network with a tokenizer that begins texts with BOS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["the", "cat", "sat", "on", "a", "red", "mat", "and", "looked", "at", "moon", "once", "upon", "time", "there"]
DOCUMENTS = 9
KINDS = ["tiny_choice", "tiny_words", "tiny_text", "tiny_writing"]  # a task of each way of asking
TASKS = {
    "tiny_choice": """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list:
- {metric: acc, aggregation: mean, higher_is_better: true}
- {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "tiny_words": """output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{' ' + choices[0]}}"
metric_list:
- {metric: perplexity, aggregation: perplexity, higher_is_better: false}
- {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "tiny_text": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
- {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
- {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "tiny_writing": """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list:
- {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "tiny_shots": """output_type: multiple_choice
num_fewshot: 0
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list:
- {metric: acc, aggregation: mean, higher_is_better: true}
""",
}


def documents() -> list[dict[str, object]]:
    """Questions of different lengths, with two to four options of one word or several."""
    rng = torch.Generator().manual_seed(0)

    def said(words: int) -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (words,), generator=rng).tolist())

    return [
        {
            "question": said(3 + 2 * number),
            "choices": [said(1 + (number + option) % 3) for option in range(2 + number % 3)],
            "answer": number % 2,
            "text": said(5 + number) + "\n" + said(4),
        }
        for number in range(DOCUMENTS)
    ]


@pytest.fixture(scope="session")
def tiny_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of task files, whose data lie beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents()))
    for name, text in TASKS.items():
        source = f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {folder / 'documents.jsonl'}}}\n"
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\n{source}test_split: test\n{text}metadata: {{version: 1.0}}\n"
        )
    missing = "dataset_path: json\ndataset_kwargs:\n  data_files: {test: nowhere/gone.jsonl}\n"
    (folder / "tiny_lost.yaml").write_text(f"task: tiny_lost\n{missing}test_split: test\n{TASKS['tiny_choice']}")
    hub = "dataset_path: nobody/nothing_at_all\n"
    (folder / "tiny_hub.yaml").write_text(f"task: tiny_hub\n{hub}test_split: test\n{TASKS['tiny_choice']}")
    return folder


@pytest.fixture(scope="session")
def bos_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tiny one, but for a BOS that it puts in front of every text by itself."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=type(tiny_tokenizer.backend_tokenizer).from_str(tiny_tokenizer.backend_tokenizer.to_str()),
        bos_token="<eos>",
        eos_token="<eos>",
        pad_token="<pad>",
    )
    bos = ("<eos>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[bos])
    return tokenizer


@pytest.fixture(scope="session")
def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()
