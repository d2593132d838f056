"""Stories told as training records (plain text, questions and answers, Alpaca form) and as multiple-choice items."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from nas_llm.data.microworld.lexicon import COLOURS, OPENERS, PLACES, Lexicon, lexicon
from nas_llm.data.microworld.world import FAMILIES, LARGEST_SIZE, Question, Story, people, phrases
from nas_llm.data.template import alpaca_prompt


@dataclass(frozen=True)
class Item:
    """One multiple-choice question: ``options[answer]`` continues ``context`` (each option starts with its space)."""

    context: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Record:
    """A training text and the character spans ``[start, end)`` of the answers in it."""

    text: str
    answers: tuple[tuple[int, int], ...]


def tell(rng: Random, story: Story) -> str:
    """The story as one paragraph; an opener keeps names off its start, where they would be other tokens."""
    first, *rest = story.sentences
    first = first if first.split()[0] != "The" else first[0].lower() + first[1:]
    return " ".join((f"{rng.choice(OPENERS)} {first}", *rest))


def prompt(told: str, question: Question) -> str:
    """The question-and-answer form of one question, up to its answer."""
    return f"{told}\nQuestion: {question.text}\nAnswer: {question.lead}"


def draw(
    rng: Random,
    words: Lexicon,
    size: int = LARGEST_SIZE,
    family: str | None = None,
    weights: Mapping[str, float] | None = None,
) -> Story:
    """A random story of a family, or of any by their weights; ``size`` bounds how many entities it has."""
    if family is None:
        names = tuple(FAMILIES)
        family = rng.choices(names, [weights[name] for name in names])[0] if weights else rng.choice(names)
    return FAMILIES[family](rng, words, size)


def narrative(rng: Random, story: Story, form: str, limit: int = 4) -> Record:
    """The story and up to ``limit`` questions with answers (``form`` "questions") or conclusions ("prose")."""
    text, spans = tell(rng, story), []
    for question in rng.sample(story.questions, min(limit, len(story.questions))):
        text = prompt(text, question) if form == "questions" else f"{text} So {question.lead}"
        spans.append((len(text), len(text) + 1 + len(question.answer)))
        text += f" {question.answer}."
    return Record(text, tuple(spans))


def retelling(rng: Random, story: Story, limit: int = 4) -> Record:
    """The story, and up to ``limit`` of its sentences once more in another order: all but the first words are known."""
    text, spans = f"{tell(rng, story)} Once more:", []
    for sentence in rng.sample(story.sentences, min(limit, len(story.sentences))):
        opening = sentence.split()[0]
        spans.append((len(text) + 1 + len(opening), len(text) + 1 + len(sentence)))
        text += f" {sentence}"
    return Record(text, tuple(spans))


def instruction(rng: Random, story: Story) -> dict[str, str]:
    """One question in Alpaca form: fields instruction, input, output."""
    return _instruction(rng, story)[0]


def instruction_with_answer(rng: Random, story: Story) -> dict[str, str]:
    """One question in LLM-Adapters' form: fields instruction, input, output, answer."""
    fields, answer = _instruction(rng, story)
    return {**fields, "answer": answer}


def notes(rng: Random, words: Lexicon, n: int) -> Record:
    """``n`` keys, each beside its value, then all of them twice more in other orders: nothing but looking up."""
    names, things = people(rng, words, n), phrases(rng, words.things, 2 * n)
    keys = [rng.choice(pair) for pair in zip(names, things[:n], strict=True)]
    values = [
        rng.choice(choices) for choices in zip(rng.sample(PLACES, n), rng.sample(COLOURS, n), things[n:], strict=True)
    ]
    text, spans = "Notes:", []
    for turn in range(3):
        for i in rng.sample(range(n), n):
            text += f" {keys[i]}"
            if turn:
                spans.append((len(text), len(text) + 1 + len(values[i])))
            text += f" {values[i]}."
    return Record(text, tuple(spans))


def alpaca(rng: Random, story: Story) -> Record:
    """One question in Alpaca form as a training text."""
    fields, answer = _instruction(rng, story)
    text = alpaca_prompt(fields["instruction"], fields["input"]) + fields["output"]
    return Record(text, ((len(text) - 2 - len(answer), len(text) - 1),))


def _instruction(rng: Random, story: Story) -> tuple[dict[str, str], str]:
    question = rng.choice(story.questions)
    output = f"So {question.lead} {question.answer}."
    return {"instruction": question.text, "input": tell(rng, story), "output": output}, question.answer


def multiple_choice_sets(seed: int, items_per_set: int) -> dict[str, list[Item]]:
    """One set per family, over held-out names and things only; the same seed gives the same items."""
    sets = {}
    for number, family in enumerate(FAMILIES):
        rng = Random(f"multiple choice {seed} {number}")
        sets[family] = [
            _item(rng, draw(rng, lexicon(held_out=True), LARGEST_SIZE, family)) for _ in range(items_per_set)
        ]
    return sets


def _item(rng: Random, story: Story) -> Item:
    question = rng.choice(story.questions)
    options = tuple(f" {option}" for option in question.options)
    return Item(prompt(tell(rng, story), question), options, question.options.index(question.answer))
