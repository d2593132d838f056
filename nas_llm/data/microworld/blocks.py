"""Microworld records as tokens, and whole records packed into blocks (best fit), so that no question loses its story.

A block is records one after another, each followed by EOS; ``input_ids`` and ``is_answer`` have shape (its length,).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
from transformers import PreTrainedTokenizerBase

from nas_llm.data.microworld.lexicon import Lexicon
from nas_llm.data.microworld.records import Record, alpaca, draw, narrative, notes, retelling
from nas_llm.data.microworld.world import LARGEST_SIZE

WAITING = 24  # records among which the next of a block is chosen
FORMATS = {  # the weights of the forms of a format's records
    "notes": {"notes": 1.0},
    "primer": {"prose": 0.5, "retelling": 0.1, "questions": 0.3, "notes": 0.1},
    "narrative": {"prose": 0.45, "questions": 0.55},
    "instruction": {"instruction": 1.0},
    "mixed": {"prose": 0.4, "questions": 0.52, "instruction": 0.08},
}


@dataclass(frozen=True)
class Tokens:
    input_ids: np.ndarray
    is_answer: np.ndarray


def write(
    rng: Random,
    words: Lexicon,
    format: str,
    size: int = LARGEST_SIZE,
    families: Mapping[str, float] | None = None,
) -> Record:
    """A record of a form that the format has, by its weights, and of a family by theirs; ``size`` as in ``draw``."""
    forms = FORMATS[format]
    form = rng.choices(tuple(forms), tuple(forms.values()))[0]
    if form == "notes":
        return notes(rng, words, rng.randint(2, size))
    story = draw(rng, words, size, weights=families)
    if form == "retelling":
        return retelling(rng, story)
    return alpaca(rng, story) if form == "instruction" else narrative(rng, story, form)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text's tokens alone."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def tokenise(tokenizer: PreTrainedTokenizerBase, record: Record) -> Tokens:
    """The record's tokens and EOS, and which of them spell an answer."""
    encoded = tokenizer(record.text, return_offsets_mapping=True, add_special_tokens=False)
    answers = [
        start < end and any(first <= start and end <= last for first, last in record.answers)
        for start, end in encoded["offset_mapping"]
    ]
    return Tokens(np.array([*encoded["input_ids"], tokenizer.eos_token_id]), np.array([*answers, False]))


def repeated(input_ids: np.ndarray, eos: int) -> np.ndarray:
    """Which tokens stood after the same token before, in the same record: (block,) booleans."""
    seen: set[tuple[int, int]] = set()
    found = np.zeros(len(input_ids), dtype=bool)
    tokens = input_ids.tolist()
    for i, pair in enumerate(zip([eos, *tokens], tokens, strict=False)):
        found[i] = pair in seen
        seen.clear() if pair[1] == eos else seen.add(pair)
    return found


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
