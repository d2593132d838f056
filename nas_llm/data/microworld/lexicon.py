"""The words of the microworld, and which combinations of them are held out.

A person's name is a stem and an ending, a thing is an adjective and a noun. Every part occurs in the training text, but
about a fifth of the combinations never do: they are kept for validation, test and the multiple-choice sets, so that a
fact about them can only be read from the context. The ending of a name carries its gender.
"""
# ruff: noqa: SIM905 (a word list reads better as one string)

from dataclasses import dataclass
from functools import cache
from zlib import crc32

STEMS = (
    "Al Ber Bel Bran Cal Cor Dan Dor Ed El Fin Flor Gal Gar Hal Han Hel Im Jan Jor Jul Kar Kel Lan Lor Luc Mar "
    "Mel Mir Nel Nor Ol Or Pat Per Pol Quin Ral Rob Rud Sal Sam Sel Ser Tam Ter Tor Ul Val Vic Vin Wal Wen Wil "
    "Yor Zan Zel Zor"
).split()
FEMALE_ENDINGS = "a ia ina elle een wyn issa eth".split()
MALE_ENDINGS = "o us ric bert ton mund son by".split()

ADJECTIVES = (
    "brass copper iron silver golden wooden oak pine paper glass clay stone leather woolen silk cotton tin "
    "plastic rubber old new small large tiny heavy light round square long short thick thin plain striped dusty "
    "shiny broken painted carved spare"
).split()
NOUNS = (
    "key coin lamp cup spoon ring book pen map ball doll drum flute bell clock candle comb mirror knife fork "
    "plate bowl rope ladder hammer saw nail brush button ribbon scarf glove hat boot sock shirt blanket pillow "
    "kite whistle stamp letter card stick hook"
).split()
CONTAINERS = "box bag basket drawer chest jar crate trunk pouch bucket case barrel tray sack cabinet pot".split()
PLACES = (
    "kitchen garden park library school market station museum church bakery stable barn cellar attic hall office "
    "shop theatre harbour forest castle tower bridge village meadow hospital hotel cave mill farm"
).split()
COLOURS = "red blue green yellow white black brown pink purple orange grey beige".split()
NUMBERS = "one two three four five".split()
# Each with the word for its reverse.
COMPARISONS = (
    ("taller", "shorter"),
    ("older", "younger"),
    ("faster", "slower"),
    ("stronger", "weaker"),
    ("richer", "poorer"),
    ("louder", "quieter"),
)
STATES = "tired hungry happy sad cold angry thirsty late lost ill".split()
OPENERS = (
    "One day",
    "Today",
    "This morning",
    "Yesterday",
    "Last week",
    "In the evening",
    "On Monday",
    "On Friday",
    "In spring",
    "In winter",
)

HELD_OUT_SHARE = 5  # one combination in five


@dataclass(frozen=True)
class Lexicon:
    """The words of one split: ``names`` maps "she" and "he" to names, the rest are two-word phrases."""

    names: dict[str, tuple[str, ...]]
    things: tuple[str, ...]
    containers: tuple[str, ...]


def is_held_out(first: str, second: str) -> bool:
    """Whether the combination of two parts is kept out of the training text (a fixed function of the two words)."""
    return crc32(f"{first} {second}".encode()) % HELD_OUT_SHARE == 0


@cache
def lexicon(held_out: bool) -> Lexicon:
    """The training lexicon or the held-out one: they share all parts and no combination."""

    def combine(firsts: list[str], seconds: list[str], joint: str) -> tuple[str, ...]:
        return tuple(f"{a}{joint}{b}" for a in firsts for b in seconds if is_held_out(a, b) == held_out)

    names = {"she": combine(STEMS, FEMALE_ENDINGS, ""), "he": combine(STEMS, MALE_ENDINGS, "")}
    return Lexicon(names, combine(ADJECTIVES, NOUNS, " "), combine(ADJECTIVES, CONTAINERS, " "))
