"""The microworld as a data module: generated from a seed, tokenised and packed in memory, four disjoint splits.

Train and calibration use the training lexicon; validation and test use names and things that those never hold.
"""

from collections.abc import Sequence
from itertools import islice
from random import Random
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from nas_llm.data.files import check_sequence_length
from nas_llm.data.microworld.blocks import encode, pack_whole, tokenise, write
from nas_llm.data.microworld.lexicon import lexicon
from nas_llm.data.microworld.questions import instruction_records, questions
from nas_llm.data.microworld.records import draw, instruction
from nas_llm.data.microworld.world import FAMILIES
from nas_llm.data.module import SplitDataModule, refuse_unknown_split
from nas_llm.data.questions import Question
from nas_llm.data.records import TokenRecords
from nas_llm.data.template import alpaca_prompt

HELD_OUT_SPLITS = ("validation", "test")


class MicroworldData(SplitDataModule):
    """Generated text; no files and no network.

    format: "narrative" (stories with questions or conclusions) or "mixed" (those and Alpaca-form pairs), in blocks of
    whole records of at most sequence_length tokens; "instruction": Alpaca-form pairs, without loss on the prompt.
    *_size: blocks (pairs) of a split; model_max_length: the positions the model has.

    Raises ValueError, naming the setting, for an impossible one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        format: Literal["narrative", "instruction", "mixed"] = "mixed",
        sequence_length: int = 176,
        batch_size: int = 16,
        seed: int = 0,
        train_size: int = 2000,
        calibration_size: int = 64,
        validation_size: int = 128,
        test_size: int = 128,
        num_workers: int = 0,
        model_max_length: int | None = None,
    ) -> None:
        check_sequence_length(sequence_length, model_max_length)
        self.format, self.sequence_length = format, sequence_length
        self.sizes = {
            "train": train_size,
            "calibration": calibration_size,
            "validation": validation_size,
            "test": test_size,
        }
        for split, size in self.sizes.items():
            if size < 0:
                raise ValueError(f"data.{split}_size={size} must be at least 0; set data.{split}_size=100")
        super().__init__(tokenizer, batch_size=batch_size, seed=seed, num_workers=num_workers)

    def build(self) -> dict[str, TokenRecords]:
        make = self._pairs if self.format == "instruction" else self._blocks
        return {split: make(split, size) for split, size in self.sizes.items()}

    def questions(self, split: str) -> list[Question]:
        """As many as the split has records, rounded up to equally many of every family; their task is the family.

        Validation and test are over held-out words, and no question is in both; they are drawn anew for every format.
        """
        refuse_unknown_split(split)
        each = -(-self.sizes[split] // len(FAMILIES))
        taken = self._instructions("test", -(-self.sizes["test"] // len(FAMILIES))) if split == "validation" else {}
        known = [record for members in taken.values() for record in members]
        return questions(self._instructions(split, each, known))

    def _instructions(
        self, split: str, each: int, known: Sequence[dict[str, str]] = ()
    ) -> dict[str, list[dict[str, str]]]:
        held_out, rng = split in HELD_OUT_SPLITS, Random(f"questions {split} {self.seed}")
        return instruction_records(rng, each, held_out=held_out, accept=lambda record: record not in known)

    def _blocks(self, split: str, size: int) -> TokenRecords:
        rng, words = Random(f"{split} {self.seed}"), lexicon(split in HELD_OUT_SPLITS)
        blocks = pack_whole(lambda: tokenise(self.tokenizer, write(rng, words, self.format)), self.sequence_length)
        return TokenRecords.from_lists(block.input_ids for block in islice(blocks, size))

    def _pairs(self, split: str, size: int) -> TokenRecords:
        rng, words = Random(f"{split} {self.seed}"), lexicon(split in HELD_OUT_SPLITS)
        prompts: list[int] = []
        records: list[np.ndarray] = []
        while len(records) < size:
            pair = instruction(rng, draw(rng, words))
            prompt = encode(self.tokenizer, alpaca_prompt(pair["instruction"], pair["input"]))
            output = [*encode(self.tokenizer, pair["output"]), self.tokenizer.eos_token_id]
            if len(prompt) + len(output) <= self.sequence_length:
                prompts.append(len(prompt))
                records.append(np.array([*prompt, *output]))
        return TokenRecords.from_lists(records, prompts)
