"""The microworld's questions in LLM-Adapters' form, {"instruction", "input", "output", "answer"}, by family.

The names and things of held-out questions occur in no training text. An output is one sentence that ends with the
answer, so that the last name, thing, place, colour or number in it is what the network says.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random

from nas_llm.data.microworld.lexicon import (
    ADJECTIVES,
    COLOURS,
    CONTAINERS,
    FEMALE_ENDINGS,
    MALE_ENDINGS,
    NUMBERS,
    PLACES,
    STEMS,
    lexicon,
)
from nas_llm.data.microworld.records import draw, instruction_with_answer
from nas_llm.data.microworld.world import FAMILIES
from nas_llm.data.questions import Question, question


def _any(words: Sequence[str]) -> str:
    return f"(?:{'|'.join(words)})"


NAME = _any(STEMS) + _any([*FEMALE_ENDINGS, *MALE_ENDINGS])
CONTAINER = f"{_any(ADJECTIVES)} {_any(CONTAINERS)}"
ANSWERS: Mapping[str, Sequence[str]] = {  # what the answers of a family's questions are
    "location": PLACES,
    "property": (*COLOURS, NAME),
    "containment": (CONTAINER, *PLACES),
    "comparison": (NAME,),
    "coreference": (NAME,),
    "counting": NUMBERS,
    "negation": PLACES,
    "transfer": (NAME,),
}


def pattern(family: str) -> str:
    """A regular expression that matches the answers of a family's questions."""
    return rf"\b{_any(ANSWERS[family])}\b"


def instruction_records(
    rng: Random, records_per_family: int, *, held_out: bool, accept: Callable[[dict[str, str]], bool] = lambda _: True
) -> dict[str, list[dict[str, str]]]:
    """``records_per_family`` different accepted records of every family, over the training or the held-out words."""
    sets: dict[str, list[dict[str, str]]] = {}
    for family in FAMILIES:
        found: list[dict[str, str]] = []
        while len(found) < records_per_family:
            record = instruction_with_answer(rng, draw(rng, lexicon(held_out), family=family))
            if accept(record) and record not in found:
                found.append(record)
        sets[family] = found
    return sets


def questions(records: Mapping[str, Sequence[Mapping[str, str]]]) -> list[Question]:
    """Records as questions whose task is their family."""
    return [
        question(record, f"microworld, {family} {number}", family, pattern(family))
        for family, members in records.items()
        for number, record in enumerate(members, start=1)
    ]
