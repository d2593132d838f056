"""The microworld's byte-level BPE tokenizer, trained on the words themselves: one token per part of a name or thing."""

from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nas_llm.data.microworld.lexicon import (
    ADJECTIVES,
    COLOURS,
    COMPARISONS,
    CONTAINERS,
    FEMALE_ENDINGS,
    MALE_ENDINGS,
    NOUNS,
    NUMBERS,
    PLACES,
    STATES,
    STEMS,
    lexicon,
)
from nas_llm.data.microworld.records import draw, narrative
from nas_llm.data.template import alpaca_prompt

# Stems alone are repeated so that they are merged before any piece that spans a stem and an ending.
STEM_REPEATS, ENDING_REPEATS, WORD_REPEATS, STORY_SIZE = 400, 200, 100, 5


def train_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """Trains the tokenizer; special tokens are ``<pad>`` (0) and ``<eos>`` (1), which also begins a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def _corpus(seed: int) -> list[str]:
    words = [*ADJECTIVES, *NOUNS, *CONTAINERS, *PLACES, *COLOURS, *NUMBERS, *STATES]
    words += [f"{word[:-2]}{ending}" for pair in COMPARISONS for word in pair for ending in ("", "er", "est")]
    texts = [f" {stem}" for stem in STEMS] * STEM_REPEATS + [f" {word}" for word in words] * WORD_REPEATS
    texts += [*FEMALE_ENDINGS, *MALE_ENDINGS] * ENDING_REPEATS + [alpaca_prompt("", " ") + "So"] * STEM_REPEATS
    rng = Random(f"tokenizer {seed}")
    forms = [rng.choice(("questions", "prose")) for _ in range(1500)]
    return texts + [narrative(rng, draw(rng, lexicon(held_out=False), STORY_SIZE), form).text for form in forms]
