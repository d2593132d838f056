"""Microworld records as tokens, and whole records packed into blocks (best fit), so that no question loses its story.

A block is records one after another, each followed by EOS; shapes: ``input_ids`` and ``is_answer`` (length of the block,).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from transformers import PreTrainedTokenizerBase

from nas_llm.data.microworld.lexicon import Lexicon
from nas_llm.data.microworld.records import LARGEST_SIZE, Record, draw, instruction, narrative, retelling
from nas_llm.data.template import alpaca_prompt

WAITING = 24  # records among which the next of a block is chosen
FORMATS = {
    "primer": {"questions": 0.4, "prose": 0.2, "retelling": 0.4},
    "narrative": {"questions": 0.7, "prose": 0.2, "retelling": 0.1},
    "instruction": {"instruction": 1.0},
    "mixed": {"questions": 0.6, "prose": 0.2, "retelling": 0.05, "instruction": 0.15},
}


@dataclass(frozen=True)
class Tokens:
    input_ids: np.ndarray
    is_answer: np.ndarray


def alpaca_record(fields: dict[str, str]) -> Record:
    """An instruction pair as one text; the output is the answer."""
    asked = alpaca_prompt(fields["instruction"], fields["input"])
    return Record(asked + fields["output"], ((len(asked), len(asked) + len(fields["output"])),))


def write(rng: Random, words: Lexicon, format: str, size: int = LARGEST_SIZE) -> Record:
    """A record of a random family and of a form that the format has, by its weights."""
    weights = FORMATS[format]
    form = rng.choices(tuple(weights), tuple(weights.values()))[0]
    story = draw(rng, words, size)
    if form == "instruction":
        return alpaca_record(instruction(rng, story))
    return retelling(rng, story) if form == "retelling" else narrative(rng, story, form)


def tokenise(tokenizer: PreTrainedTokenizerBase, record: Record) -> Tokens:
    """The record's tokens and EOS, and which of them spell an answer."""
    encoded = tokenizer(record.text, return_offsets_mapping=True, add_special_tokens=False)
    answers = [
        start < end and any(first <= start and end <= last for first, last in record.answers)
        for start, end in encoded["offset_mapping"]
    ]
    return Tokens(np.array([*encoded["input_ids"], tokenizer.eos_token_id]), np.array([*answers, False]))


def pack_whole(next_record: Callable[[], Tokens], sequence_length: int) -> Iterator[Tokens]:
    """Endless blocks of at most ``sequence_length`` tokens; records longer than that are left out."""
    waiting: list[Tokens] = []
    block: list[Tokens] = []
    room = sequence_length
    while True:
        while len(waiting) < WAITING:
            record = next_record()
            waiting += [record] if len(record.input_ids) <= sequence_length else []
        # The first of a block is the one that waits longest, so that none waits for ever.
        best = 0 if not block else max(range(WAITING), key=lambda i: _fit(waiting[i], room))
        if len(waiting[best].input_ids) <= room:
            block.append(waiting.pop(best))
            room -= len(block[-1].input_ids)
            continue
        yield Tokens(np.concatenate([r.input_ids for r in block]), np.concatenate([r.is_answer for r in block]))
        block, room = [], sequence_length


def _fit(record: Tokens, room: int) -> int:
    length = len(record.input_ids)
    return length if length <= room else -length
