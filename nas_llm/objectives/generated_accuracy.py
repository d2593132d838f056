"""Accuracy by generation in percent: the mean over the tasks of the share of questions that are answered rightly.

A search chooses on questions of its validation split, or of a file of the tasks' training data; the test questions are
others, by content: no question is in both.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from nas_llm.architecture import Architecture
from nas_llm.data.questions import Question
from nas_llm.evaluation.answers import rule_of
from nas_llm.evaluation.generation import GeneratedAnswers, answer
from nas_llm.evaluation.task_files import content_of, read_tasks
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.protocol import Details, Direction, Estimate

log = logging.getLogger(__name__)

GROUP = "objectives.generated_accuracy."
MIXED = "all"  # the one task of records whose task is told by the answer alone

Tasks = Mapping[str, Sequence[Question]]


class Questions(Protocol):
    """A data module, as far as questions go."""

    def questions(self, split: str) -> Sequence[Question]: ...


@dataclass(frozen=True, eq=False)
class GeneratedAccuracy:
    """Accuracy by generation of the sub-network inside the super-network; every task weighs the same.

    tokenizer, data, split: runtime arguments: the model's tokenizer, the run's data, and "validation" where networks
    are chosen, "test" where they are measured.
    *_path: a file named by its task, a folder of such, or a list; None: the split of the data.
    tasks: those that are read of the paths; None: all. *_limit: the first so many questions of each task.

    Raises:
        ValueError: a number below 1; files or data that hold no questions (``read_tasks``); a file that is to choose
            and to measure.
    """

    name: ClassVar[str] = "generated_accuracy"
    unit: ClassVar[str] = "%"
    direction: ClassVar[Direction] = "max"

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    data: Questions = field(repr=False)
    split: Literal["validation", "test"] = field(repr=False)
    validation_path: str | Sequence[str] | None = None
    test_path: str | Sequence[str] | None = None
    tasks: Sequence[str] | None = None
    validation_limit: int | None = None
    test_limit: int | None = None
    max_new_tokens: int = 32
    batch_size: int = 32

    def __post_init__(self) -> None:
        for key in ("validation_limit", "test_limit", "max_new_tokens", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                allowed = " or null for all" if key.endswith("limit") else ""
                raise ValueError(f"{GROUP}{key}={value} must be at least 1{allowed}; set {GROUP}{key}=32")
        if self.tasks is not None and self.validation_path is None and self.test_path is None:
            raise ValueError(
                f"{GROUP}tasks={list(self.tasks)} cannot take effect without {GROUP}validation_path or "
                f"{GROUP}test_path, whose files are named by tasks; leave it out"
            )

    @cached_property
    def asked(self) -> Tasks:
        """The questions of the split, by task.

        Raises:
            ValueError: as the class.
        """
        self._refuse_same_file()
        asked = self._read(self.split, self._limit(self.split))
        if self.split == "test" or self.test_path is None:
            return asked
        test = {question.prompt for questions in self._read("test", None).values() for question in questions}
        kept = {task: [q for q in questions if q.prompt not in test] for task, questions in asked.items()}
        for task, questions in asked.items():
            if not kept[task]:
                raise ValueError(
                    f"{GROUP}validation_path: all {len(questions)} questions of {task} are test questions too; "
                    f"choose by the task's training data, as {task}/train.json"
                )
            if left_out := len(questions) - len(kept[task]):
                log.info("%s: %d validation questions left out, they are test questions too", task, left_out)
        return kept

    @property
    def samples(self) -> int:
        """Questions of the split, over all tasks."""
        return sum(map(len, self.asked.values()))

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        return self._whole(self._answers(supernet, architecture)).value

    def details(self, supernet: Supernet, architecture: Architecture) -> Details:
        """The mean, each task, and the text of every question."""
        answers = self._answers(supernet, architecture)
        records = [
            {
                "task": task,
                "prompt": given.question.prompt,
                "text": given.text,
                "read": given.read,
                "answer": given.question.answer,
                "right": given.right,
            }
            for task, members in answers.items()
            for given in members.answers
        ]
        parts = {
            task: Estimate(100 * members.accuracy, members.samples, 100 * members.standard_error)
            for task, members in answers.items()
        }
        return Details(self._whole(answers), parts, records)

    def refuse_shared(self, chosen: "GeneratedAccuracy") -> None:
        """Compare the questions with those that a network was chosen by.

        Raises:
            ValueError: some are the same.
        """
        known = {question.prompt for questions in chosen.asked.values() for question in questions}
        asked = [question for questions in self.asked.values() for question in questions]
        shared = [question for question in asked if question.prompt in known]
        if shared:
            given = "the test split" if self.test_path is None else f"{GROUP}test_path={self.test_path}"
            raise ValueError(
                f"{given}: {len(shared)} of {len(asked)} questions are among those that the search chose by (first: "
                f"{shared[0].where}); measure on others, or search again with {GROUP}test_path=, which leaves them out"
            )

    def _answers(self, supernet: Supernet, architecture: Architecture) -> dict[str, GeneratedAnswers]:
        asked = self.asked
        with supernet.activate(architecture) as model:
            return answer(
                model,
                self.tokenizer,
                asked,
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
                group=GROUP,
            )

    @staticmethod
    def _whole(answers: Mapping[str, GeneratedAnswers]) -> Estimate:
        """The unweighted mean over tasks, whose errors are independent."""
        value = float(np.mean([members.accuracy for members in answers.values()]))
        error = float(np.linalg.norm([members.standard_error for members in answers.values()])) / len(answers)
        return Estimate(100 * value, sum(members.samples for members in answers.values()), 100 * error)

    def _limit(self, split: str) -> int | None:
        return self.test_limit if split == "test" else self.validation_limit

    def _read(self, split: Literal["validation", "test"], limit: int | None) -> Tasks:
        path = self.test_path if split == "test" else self.validation_path
        if path is not None:
            return read_tasks(path, split, f"{GROUP}{split}_path", tasks=self.tasks, limit=limit)
        found: dict[str, list[Question]] = {}
        for question in self.data.questions(split):
            members = found.setdefault(question.task or MIXED, [])
            if limit is None or len(members) < limit:
                rule_of(question)
                members.append(question)
        if not found:
            raise ValueError(
                f"the {split} split is empty, so there is nothing to ask; set data.{split}_size above 0, or name "
                f"files: {GROUP}{split}_path="
            )
        return found

    def _refuse_same_file(self) -> None:
        if self.validation_path is None or self.test_path is None:
            return
        chosen = content_of(self.validation_path, "validation", f"{GROUP}validation_path")
        measured = content_of(self.test_path, "test", f"{GROUP}test_path")
        for digest, file in chosen.items():
            if digest in measured:
                raise ValueError(
                    f"{GROUP}validation_path: {file} is a test file too ({GROUP}test_path: {measured[digest]}); what "
                    f"chooses a network cannot measure it: set {GROUP}validation_path to the task's training data, as "
                    "boolq/train.json, or null for the validation split"
                )
