"""The facts of the microworld: eight families of short stories, each with the questions that the story answers.

A family draws entities and facts from a passed generator and returns a ``Story``: sentences, and questions whose
options all stem from the same story where it has enough of them. Every answer follows from the story alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from nas_llm.data.microworld.lexicon import COLOURS, COMPARISONS, NUMBERS, PLACES, STATES, Lexicon


@dataclass(frozen=True)
class Question:
    """``text`` asks, ``lead`` begins the sentence that ``answer`` completes; ``options`` holds the answer too."""

    text: str
    lead: str
    answer: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Story:
    family: str
    sentences: tuple[str, ...]
    questions: tuple[Question, ...]


LARGEST_SIZE = 6  # of stories: bounds how many entities of a kind they have

Family = Callable[[Random, Lexicon, int], Story]


def people(rng: Random, lexicon: Lexicon, n: int) -> list[str]:
    """``n`` names of different stems and of either gender."""
    names: list[str] = []
    while len(names) < n:
        name = rng.choice(lexicon.names[rng.choice(("she", "he"))])
        if all(name[:2] != other[:2] for other in names):
            names.append(name)
    return names


def phrases(rng: Random, choices: tuple[str, ...], n: int, taken: tuple[str, ...] = ()) -> list[str]:
    """``n`` two-word phrases that share no word with each other nor with ``taken``."""
    words = {word for phrase in taken for word in phrase.split()}
    drawn: list[str] = []
    while len(drawn) < n:
        phrase = rng.choice(choices)
        if words.isdisjoint(phrase.split()):
            words.update(phrase.split())
            drawn.append(phrase)
    return drawn


def listing(items: list[str]) -> str:
    """ "the a, the b and the c"."""
    named = [f"the {item}" for item in items]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def options_of(rng: Random, answer: str, near: Sequence[str], far: Sequence[str] = (), n: int = 4) -> tuple[str, ...]:
    """The answer and up to ``n - 1`` distractors, those of the story (``near``) first, in random order."""
    others = [option for option in dict.fromkeys(near) if option != answer]
    rng.shuffle(others)
    spare = [option for option in far if option != answer and option not in others]
    others += rng.sample(spare, max(0, min(len(spare), n - 1 - len(others))))
    chosen = [answer, *others[: n - 1]]
    rng.shuffle(chosen)
    return tuple(chosen)


def location(rng: Random, lexicon: Lexicon, size: int) -> Story:
    """People move about; the last move counts."""
    names = people(rng, lexicon, rng.randint(2, max(2, size - 1)))
    movers = names + [rng.choice(names) for _ in range(rng.randint(1, max(1, size - 1)))]
    rng.shuffle(movers)
    where: dict[str, str] = {}
    sentences, seen = [], []
    for name in movers:
        place = rng.choice([p for p in PLACES if p not in seen])
        sentences.append(f"{name} {rng.choice(('went', 'walked', 'ran', 'moved'))} to the {place}.")
        where[name] = place
        seen.append(place)
    questions = [
        Question(f"Where is {name}?", f"{name} is in the", where[name], options_of(rng, where[name], seen, PLACES))
        for name in names
    ]
    return Story("location", tuple(sentences), tuple(questions))


def properties(rng: Random, lexicon: Lexicon, size: int) -> Story:
    """Things have a colour and an owner, told in any order."""
    n = rng.randint(2, max(2, size))
    things = phrases(rng, lexicon.things, n)
    colours, owners = rng.sample(COLOURS, n), people(rng, lexicon, n)
    sentences, questions = [], []
    for thing, colour, owner in zip(things, colours, owners, strict=True):
        facts = [f"The {thing} is {colour}.", f"The {thing} belongs to {owner}."]
        kept = facts if n < 4 or rng.random() < 0.3 else [rng.choice(facts)]
        sentences += kept
        if facts[0] in kept:
            questions.append(
                Question(
                    f"What colour is the {thing}?",
                    f"the {thing} is",
                    colour,
                    options_of(rng, colour, colours, COLOURS),
                )
            )
        if facts[1] in kept:
            questions.append(
                Question(f"Who owns the {thing}?", f"the {thing} belongs to", owner, options_of(rng, owner, owners))
            )
    rng.shuffle(sentences)
    return Story("property", tuple(sentences), tuple(questions))


def containment(rng: Random, lexicon: Lexicon, size: int) -> Story:
    """Things in containers, containers in places: the first hop, or the second one after the first."""
    n = rng.randint(2, max(2, size - 2))
    things = phrases(rng, lexicon.things, n)
    boxes = phrases(rng, lexicon.containers, n, tuple(things))
    places = rng.sample(PLACES, n)
    sentences, questions = [], []
    for thing, box, place in zip(things, boxes, places, strict=True):
        sentences += [f"The {thing} is in the {box}.", f"The {box} is in the {place}."]
        hop = f"the {thing} is in the"
        questions += [
            Question(f"What holds the {thing}?", hop, box, options_of(rng, box, boxes)),
            Question(
                f"In which place is the {thing}?",
                f"{hop} {box} which is in the",
                place,
                options_of(rng, place, places, PLACES),
            ),
        ]
    rng.shuffle(sentences)
    return Story("containment", tuple(sentences), tuple(questions))


def comparison(rng: Random, lexicon: Lexicon, size: int) -> Story:
    """A chain of people, told pair by pair in any order: who is at its head, and who at its end?"""
    n = rng.randint(min(3, size), size)
    chain = people(rng, lexicon, n)
    more = rng.choice([word for pair in COMPARISONS for word in pair])
    sentences = [f"{a} is {more} than {b}." for a, b in pairwise(chain)]
    rng.shuffle(sentences)
    stem = more.removesuffix("er")
    ends = ((f"{stem}est", chain[0]), (f"least {stem}", chain[-1]))
    questions = [
        Question(f"Who is the {most}?", f"the {most} is", answer, options_of(rng, answer, chain))
        for most, answer in ends
    ]
    return Story("comparison", tuple(sentences), tuple(questions))


def coreference(rng: Random, lexicon: Lexicon, size: int) -> Story:
    """A woman and a man; "she" and "he" say who had what and how they felt."""
    pair = {"she": rng.choice(lexicon.names["she"]), "he": rng.choice(lexicon.names["he"])}
    while pair["she"][:2] == pair["he"][:2]:
        pair["he"] = rng.choice(lexicon.names["he"])
    order = ["she", "he"]
    rng.shuffle(order)
    first, second = (pair[pronoun] for pronoun in order)
    place = rng.choice(PLACES)
    sentences = [
        rng.choice(
            (
                f"{first} met {second} in the {place}.",
                f"{first} and {second} were in the {place}.",
                f"{first} saw {second} near the {place}.",
            )
        )
    ]
    names = [first, second]
    questions = [
        Question(f"Who is {pronoun}?", f"{pronoun} is", name, options_of(rng, name, names))
        for pronoun, name in pair.items()
    ]
    things = phrases(rng, lexicon.things, 2)
    states = rng.sample(STATES, 2)
    rng.shuffle(order)
    for pronoun, thing, state in zip(order, things, states, strict=True):
        had = rng.random() < 0.5
        told = f"had the {thing}" if had else f"was {state}"
        sentences.append(f"{pronoun.capitalize()} {told}.")
        lead = f"{pronoun} {told} and {pronoun} is"
        questions.append(Question(f"Who {told}?", lead, pair[pronoun], options_of(rng, pair[pronoun], names)))
    return Story("coreference", tuple(sentences), tuple(questions))


def counting(rng: Random, lexicon: Lexicon, size: int) -> Story:
    """Two or three people hold several things each, called by their nouns alone; how many? In the largest stories up to
    three, in others up to four. The lead names the first thing: where to begin to count."""
    names = people(rng, lexicon, rng.randint(2, min(3, max(2, size - 2))))
    most = 3 if size >= LARGEST_SIZE else 4
    counts = [rng.randint(1, most) for _ in names]
    things = [thing.split()[1] for thing in phrases(rng, lexicon.things, sum(counts))]
    sentences, questions = [], []
    for name, count in zip(names, counts, strict=True):
        held, things = things[:count], things[count:]
        sentences.append(f"{name} {rng.choice(('has', 'found', 'bought'))} {listing(held)}.")
        answer = NUMBERS[count - 1]
        lead = f"{name} has counting the {held[0]}"
        questions.append(Question(f"How many things does {name} have?", lead, answer, tuple(NUMBERS[:most])))
    return Story("counting", tuple(sentences), tuple(questions))


def negation(rng: Random, lexicon: Lexicon, size: int) -> Story:
    """Each is in one of two places, and not in one of them."""
    n = rng.randint(1, max(1, size - 2))
    names, places = people(rng, lexicon, n), rng.sample(PLACES, 2 * n)
    pairs = [places[2 * i : 2 * i + 2] for i in range(n)]
    either = [f"{name} is in the {a} or in the {b}." for name, (a, b) in zip(names, pairs, strict=True)]
    neither, questions = [], []
    for name, pair in zip(names, pairs, strict=True):
        answer, other = rng.sample(pair, 2)
        neither.append(f"{name} is not in the {other}.")
        questions.append(Question(f"Where is {name}?", f"{name} is in the", answer, options_of(rng, answer, pair, n=2)))
    rng.shuffle(neither)
    return Story("negation", tuple(either + neither), tuple(questions))


def transfer(rng: Random, lexicon: Lexicon, size: int) -> Story:
    """Things go from hand to hand; who got a thing last has it."""
    size = min(size, 5)
    names = people(rng, lexicon, rng.randint(2, max(2, size - 1)))
    things = phrases(rng, lexicon.things, rng.randint(1, max(1, size - 3)))
    has = {thing: rng.choice(names) for thing in things}
    sentences = [f"{name} had the {thing}." for thing, name in has.items()]
    for _ in range(rng.randint(1, size)):
        thing = rng.choice(things)
        taker = rng.choice([name for name in names if name != has[thing]])
        sentences.append(f"{has[thing]} gave the {thing} to {taker}.")
        has[thing] = taker
    questions = [
        Question(f"Who has the {thing}?", f"the {thing} is with", name, options_of(rng, name, names))
        for thing, name in has.items()
    ]
    return Story("transfer", tuple(sentences), tuple(questions))


FAMILIES: dict[str, Family] = {
    "location": location,
    "property": properties,
    "containment": containment,
    "comparison": comparison,
    "coreference": coreference,
    "counting": counting,
    "negation": negation,
    "transfer": transfer,
}
