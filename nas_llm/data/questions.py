"""Questions with answers: records {"instruction", "input" (optional), "answer"} in the form that a network is asked in.

LLM-Adapters' test and training files have these fields; the prompt is the one that training uses (``data/template``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas_llm.data.sources import Row, text_field
from nas_llm.data.template import alpaca_prompt

MEND = "questions have the fields 'instruction', 'input' (may be left out) and 'answer'"


@dataclass(frozen=True)
class Question:
    """What is asked, and what is right.

    task: the name that tells how an answer is read, or "" where the answer's own form tells it (mixed training sets).
    where: file and record, for errors.
    pattern: a regular expression of the task's answers, where its name is not known to ``nas_llm.evaluation.answers``.
    """

    task: str
    prompt: str
    answer: str
    where: str
    pattern: str | None = None


def question(row: Row, where: str, task: str = "", pattern: str | None = None) -> Question:
    """A record as a question. Raises ValueError for a missing field, and for an answer that is no text or number."""
    instruction = text_field(row, "instruction", where, mend=MEND)
    context = text_field(row, "input", where, mend=MEND, optional=True)
    return Question(task, alpaca_prompt(instruction, context), _answer(row, where), where, pattern)


def _answer(row: Row, where: str) -> str:
    """The field `answer`; numbers as text, as `str` writes them."""
    if isinstance(row, Mapping) and _is_number(row.get("answer")):
        return str(row["answer"])
    answer = text_field(row, "answer", where, mend=MEND).strip()
    if not answer:
        raise ValueError(f"{where}: field 'answer' is empty; {MEND}")
    return answer


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
