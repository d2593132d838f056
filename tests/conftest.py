"""Settings and fixtures that all tests share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

torch.set_num_threads(1)

TINY_CORPUS = [
    "Once upon a time there was a small cat. The cat sat on the red mat and looked at the moon.",
    "Describe the moon in one sentence. The moon is a round grey stone far above the sea.",
    "### Instruction: ### Input: ### Response: Below is an instruction that describes a task.",
]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens: any text round-trips; EOS and padding, no BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TINY_CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and the real tiny model; the test is skipped where it does not exist."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("NAS_LLM_SHARED", beside)) / "data"
    if not folder.is_dir():
        pytest.skip("no real data: neither NAS_LLM_SHARED nor ../shared beside the repository leads to a data folder")
    return folder
