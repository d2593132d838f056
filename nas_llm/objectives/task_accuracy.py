"""Accuracy on multiple-choice tasks of lm-eval, in percent: the mean over the tasks, for the search loop.

Requests, their tokens and what counts as right are the harness's; log-likelihoods are this package's own, whose shared
beginnings are run once (``evaluation/multiple_choice.py``). A search chooses by the first ``limit`` documents of each
task, and what is chosen is measured on those after them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from nas_llm.architecture import Architecture
from nas_llm.evaluation.harness_tasks import FEWSHOT_SEED, LoadedTasks, hushed, load_tasks, refuse_limit
from nas_llm.evaluation.multiple_choice import Pair, summed
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.protocol import Details, Direction, Estimate

if TYPE_CHECKING:
    from lm_eval.api.task import Task

KEY = "objectives.task_accuracy."


@dataclass(frozen=True)
class _Document:
    """One question: its task, the document and its number, and the tokens of every request that the harness makes."""

    leaf: str
    number: int
    content: Any
    pairs: Sequence[Pair]


@dataclass(frozen=True, eq=False)
class TaskAccuracy:
    """Accuracy of the sub-network inside the super-network; every task (or group) that is named weighs the same.

    Args:
        supernet, tokenizer, split: runtime arguments: the network and its tokenizer, and "validation" where networks
            are chosen, "test" where they are measured.
        tasks: names of tasks, groups or tags whose tasks are multiple choice.
        task_path: a folder of task files of one's own.
        limit: the first so many documents of each task choose, below 1 a part of them; None: all, and none are left.
        test_limit: so many of those after them measure; None: all.
        normalised: acc_norm of the tasks that have it, instead of acc.
        num_fewshot: examples before each question, for all tasks or by name; None: as each task says.
        truncate: cut prompts that are longer than the model's positions from the left, instead of refusing them.
        batch_size: sequences that are run at once.

    Raises:
        ValueError: an impossible number; from the first measurement what ``load_tasks`` refuses, a task of another
            kind, one without the metric, prompts that are too long.
    """

    name: ClassVar[str] = "task_accuracy"
    unit: ClassVar[str] = "%"
    direction: ClassVar[Direction] = "max"

    supernet: Supernet = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    split: Literal["validation", "test"] = field(repr=False)
    tasks: str | Sequence[str]
    task_path: str | None = None
    limit: int | float | None = 100
    test_limit: int | float | None = None
    normalised: bool = False
    num_fewshot: int | Mapping[str, int] | None = None
    truncate: bool = False
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"{KEY}tasks={self.tasks} leaves nothing to ask: name tasks")
        for key in ("limit", "test_limit"):
            refuse_limit(f"{KEY}{key}", getattr(self, key))
        if self.batch_size < 1:
            raise ValueError(f"{KEY}batch_size={self.batch_size} must be at least 1; set {KEY}batch_size=64")

    @cached_property
    def loaded(self) -> LoadedTasks:
        """The tasks, with the documents of the split.

        Raises:
            ValueError: as the class.
        """
        choosing = self._load(self.limit, {})
        if self.split == "validation":
            return choosing
        behind = {leaf: span.stop for leaf, span in choosing.documents.items()}
        for leaf, first in behind.items():
            if first >= len(choosing.leaves[leaf].eval_docs):
                raise ValueError(
                    f"{KEY}limit={self.limit}: all {first} documents of {leaf} choose networks, and none are left to "
                    f"measure them; set {KEY}limit below that"
                )
        return self._load(self.test_limit, behind)

    @property
    def samples(self) -> int:
        """Documents of the split, over all tasks."""
        return sum(map(len, self.loaded.documents.values()))

    def __call__(self, supernet: Supernet, architecture: Architecture) -> float:
        return self._whole(self._right(supernet, architecture)).value

    def details(self, supernet: Supernet, architecture: Architecture) -> Details:
        """The mean, each task, and whether each document was answered rightly."""
        right = self._right(supernet, architecture)
        records = [
            {"task": document.leaf, "document": document.number, "right": value}
            for document, value in zip(self._documents, right, strict=True)
        ]
        return Details(self._whole(right), self._parts(right), records)

    def refuse_shared(self, asked: Mapping[str, range], mend: str) -> None:
        """Compare documents that are to measure a network with those of this objective, which chose it.

        Args:
            asked: task -> numbers of its documents.
            mend: the setting that passes over the first so many; "{}" is their number.

        Raises:
            ValueError: some are the same.
        """
        for leaf, chosen in self.loaded.documents.items():
            measuring = asked.get(leaf, range(0))
            shared = range(max(chosen.start, measuring.start), min(chosen.stop, measuring.stop))
            if shared:
                raise ValueError(
                    f"{len(shared)} of the {len(measuring)} documents of {leaf} are among those that the search chose "
                    f"by: measure on those after them, {mend.format(chosen.stop)}"
                )

    def _load(self, limit: int | float | None, offsets: Mapping[str, int]) -> LoadedTasks:
        return load_tasks(
            self.tasks,
            self.task_path,
            key=KEY,
            num_fewshot=self.num_fewshot,
            limit=limit,
            offset=offsets,
        )

    @cached_property
    def _metrics(self) -> Mapping[str, str]:
        """Task -> the metric of it that counts."""
        found = {}
        for leaf, task in self.loaded.leaves.items():
            if task.OUTPUT_TYPE != "multiple_choice":
                raise ValueError(
                    f"{KEY}tasks={leaf} is a task of the kind {task.OUTPUT_TYPE}, not multiple_choice: leave it out "
                    "here, and measure it with nas-llm evaluate harness=tasks"
                )
            has = list(task.aggregation())
            found[leaf] = "acc_norm" if self.normalised and "acc_norm" in has else "acc"
            if found[leaf] not in has:
                raise ValueError(f"{KEY}tasks={leaf} has no acc, but {', '.join(has)}: leave it out")
        if self.normalised and "acc_norm" not in found.values():
            raise ValueError(
                f"{KEY}normalised=true cannot take effect: none of {', '.join(found)} has acc_norm; leave it out"
            )
        return found

    @cached_property
    def _documents(self) -> Sequence[_Document]:
        """What is asked, in tokens; made once."""
        from nas_llm.evaluation.harness_model import token_pairs

        _ = self._metrics
        requests = []
        with hushed():
            for leaf, task in self.loaded.leaves.items():
                task.set_fewshot_seed(FEWSHOT_SEED)
                task.build_all_requests(samples=self.loaded.documents[leaf])  # type: ignore[arg-type]
                requests += [(leaf, instance) for instance in task.instances]
            asked = [instance for _, instance in requests]
            pairs = token_pairs(self.supernet.model, self.tokenizer, asked, truncate=self.truncate, key=KEY)
        found = []
        numbered = [(leaf, instance, pair) for (leaf, instance), pair in zip(requests, pairs, strict=True)]
        for (leaf, number), members in groupby(numbered, key=lambda entry: (entry[0], entry[1].doc_id)):
            of = sorted(members, key=lambda entry: entry[1].idx)
            start = self.loaded.documents[leaf].start
            found.append(_Document(leaf, start + number, of[0][1].doc, [pair for _, _, pair in of]))
        return found

    def _right(self, supernet: Supernet, architecture: Architecture) -> list[float]:
        """Of each document, what the harness makes of it: 1 where it is answered rightly, as a rule."""
        documents = self._documents
        with supernet.activate(architecture) as model:
            scored = summed(
                model,
                [document.pairs for document in documents],
                batch_size=self.batch_size,
                pad=self.tokenizer.pad_token_id or 0,
            )
        return [self._value(document, sums) for document, sums in zip(documents, scored, strict=True)]

    def _value(self, document: _Document, sums: np.ndarray) -> float:
        task: Task = self.loaded.leaves[document.leaf]
        answers = [(float(value), False) for value in sums]  # greedily or not is no matter for acc
        return float(task.process_results(document.content, answers)[self._metrics[document.leaf]])

    def _parts(self, right: Sequence[float]) -> dict[str, Estimate]:
        """Of every name that was asked for; a group's documents all weigh the same, as in the harness."""
        values: dict[str, list[float]] = {}
        for document, value in zip(self._documents, right, strict=True):
            values.setdefault(document.leaf, []).append(100 * value)
        return {
            name: _estimate([value for leaf in leaves for value in values[leaf]])
            for name, leaves in self.loaded.parts.items()
        }

    def _whole(self, right: Sequence[float]) -> Estimate:
        """The unweighted mean over tasks, whose errors are independent."""
        parts = list(self._parts(right).values())
        error = float(np.linalg.norm([part.standard_error for part in parts])) / len(parts)
        return Estimate(float(np.mean([part.value for part in parts])), sum(part.samples for part in parts), error)


def _estimate(values: Sequence[float]) -> Estimate:
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Estimate(float(np.mean(values)), len(values), error)
