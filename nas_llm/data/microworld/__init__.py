"""The microworld: a closed little world in English, generated from a seed; the embedded models are trained on it."""

from nas_llm.data.microworld.module import MicroworldData
from nas_llm.data.microworld.questions import instruction_records, questions
from nas_llm.data.microworld.records import Item, Record, draw, instruction, multiple_choice_sets, narrative
from nas_llm.data.microworld.tokenizer import train_tokenizer
from nas_llm.data.microworld.world import FAMILIES, Question, Story

__all__ = [
    "FAMILIES",
    "Item",
    "MicroworldData",
    "Question",
    "Record",
    "Story",
    "draw",
    "instruction",
    "instruction_records",
    "multiple_choice_sets",
    "narrative",
    "questions",
    "train_tokenizer",
]
