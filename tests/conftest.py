"""Settings and fixtures that all tests share."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

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
LONG = (  # files of more than half a minute
    "families",
    "train_stage",
    "prune_stage",
    "reproduction",
    "adapter_training",
    "notebooks",
    "cli",
    "ddp",
    "stage_reads",
    "config",
    "slicegpt",
    "operator_search_stage",
    "evaluate_tasks",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: several processes take one file after the other, and end together where the last are short."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


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
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Inside `with file_size_limit(bytes)`, the system refuses to let a file grow beyond so many bytes (EFBIG)."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and the real tiny model; the test is skipped where it does not exist."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("NAS_LLM_SHARED", beside)) / "data"
    if not folder.is_dir():
        pytest.skip("no real data: neither NAS_LLM_SHARED nor ../shared beside the repository leads to a data folder")
    return folder
