"""The answer in a generated text, read by a pattern per task as LLM-Adapters does (Hu et al., EMNLP 2023).

Commonsense: the first match of the words that the task's answers can be. Arithmetic: the last number, commas removed
before, right within 1e-3. AQuA: the last capital letter A to E that stands alone; LLM-Adapters takes the first one
anywhere, which reads "Bill's average speed ... The answer is (D)." as B (48 of 252 rationales of its own test file).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from nas_llm.data.questions import Question

TOLERANCE = 1e-3  # of numbers


@dataclass(frozen=True)
class AnswerRule:
    """How the answers of a task look, and which of several counts.

    pattern: a regular expression without groups that matches one answer.
    counts: the "first" match in the text, or the "last".
    numeric: answers are numbers: commas are removed from the text, and two are equal within TOLERANCE.
    ends: the text before this mark is the answer, as a sentence before its full stop.
    """

    pattern: str
    counts: Literal["first", "last"] = "first"
    numeric: bool = False
    ends: str | None = None

    def read(self, text: str) -> str | None:
        """The answer that the text gives; None where it gives none."""
        if self.ends is not None:
            text = text.partition(self.ends)[0]
        found = re.findall(self.pattern, text.replace(",", "") if self.numeric else text)
        return found[0 if self.counts == "first" else -1] if found else None

    def is_right(self, read: str | None, answer: str) -> bool:
        """Whether what was read is the right answer."""
        if read is None or not self.numeric:
            return read == answer
        return abs(float(read) - float(answer.replace(",", ""))) <= TOLERANCE

    def settled(self, text: str) -> bool:
        """Whether no text that follows could change what is read, so that generation may stop."""
        if self.ends is not None and self.ends in text:
            return True
        return self.counts == "first" and self.read(text) is not None

    def gives(self, answer: str) -> bool:
        """Whether a text that is nothing but this answer would be read as it."""
        plain = answer.replace(",", "") if self.numeric else answer
        return re.fullmatch(self.pattern, plain) is not None and self.is_right(self.read(answer), answer)


TRUE_FALSE = AnswerRule("true|false")
SOLUTION = AnswerRule("solution[12]")
ANSWER = AnswerRule("answer[1-5]")
ENDING = AnswerRule("ending[1-4]")
OPTION = AnswerRule("option[12]")
LETTER = AnswerRule(r"\b[A-E]\b", counts="last")
NUMBER = AnswerRule(r"-?\d+\.?\d*", counts="last", numeric=True)

TASKS: Mapping[str, AnswerRule] = {
    "boolq": TRUE_FALSE,
    "piqa": SOLUTION,
    "social_i_qa": ANSWER,
    "hellaswag": ENDING,
    "winogrande": OPTION,
    "ARC-Easy": ANSWER,
    "ARC-Challenge": ANSWER,
    "openbookqa": ANSWER,
    "AQuA": LETTER,
    "gsm8k": NUMBER,
    "mawps": NUMBER,
    "SVAMP": NUMBER,
    "MultiArith": NUMBER,
    "AddSub": NUMBER,
    "SingleEq": NUMBER,
}
LEAKING = ("MultiArith", "AddSub", "SingleEq")  # math_10k was made of the collection that these are parts of
FORMS = (TRUE_FALSE, SOLUTION, ANSWER, ENDING, OPTION, LETTER, NUMBER)  # told apart by the answers themselves


def rule_of(question: Question) -> AnswerRule:
    """By the question's own pattern (the last match in the first sentence counts), its task, or its answer's form.

    Raises:
        ValueError: an unknown task, or an answer that the rule could never read from a text.
    """
    if question.pattern is not None:
        rule = AnswerRule(question.pattern, counts="last", ends=".")
    elif question.task:
        rule = TASKS[known_task(question.task, question.where)]
    else:
        fitting = [rule for rule in FORMS if rule.gives(question.answer)]
        if not fitting:
            patterns = ", ".join(rule.pattern for rule in FORMS)
            raise ValueError(
                f"{question.where}: answer={question.answer!r} is of no form that can be read from a text "
                f"({patterns}); correct the record"
            )
        rule = fitting[0]
    if not rule.gives(question.answer):
        task = f" of {question.task}" if question.task else ""
        raise ValueError(
            f"{question.where}: answer={question.answer!r} can never be read from a text: answers{task} match "
            f"{_short(rule.pattern)}; correct the record, or name the file by its task"
        )
    return rule


def known_task(name: str, where: str) -> str:
    """The name itself. Raises ValueError if it is none of a known task, and says which was likely meant."""
    if name in TASKS:
        return name
    near = get_close_matches(name.lower(), [task.lower() for task in TASKS], n=1, cutoff=0.6)
    meant = [f"did you mean {task}? " for task in TASKS if [task.lower()] == near]
    raise ValueError(f"{where}: the task {name!r} is not known: {''.join(meant)}Known are {', '.join(TASKS)}")


def _short(pattern: str) -> str:
    return pattern if len(pattern) <= 80 else f"{pattern[:70]} ..."
