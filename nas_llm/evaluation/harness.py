"""lm-eval's harness on a causal language model or on the sub-network that is active in a super-network.

Every metric of a task is what the harness makes of it; accuracies are given in percent. The standard error of a mean is
s / sqrt(n), that of other statistics is the harness's bootstrap. Perplexities and bits per byte of rolling tasks, for
which the harness has none, get one here: documents are drawn with replacement ``bootstrap_iters`` times, and the
standard deviation of exp(-sum l / sum w) over them is taken, l (documents,) being log-likelihoods and w words or bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nas_llm.evaluation.harness_tasks import FEWSHOT_SEED, LoadedTasks, hushed, load_tasks, refuse_limit, shots_of
from nas_llm.models.modes import evaluating

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from nas_llm.evaluation.harness_model import HarnessModel

KEY = "harness."
PERCENT = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "mc1", "mc2")
UNITS = {**dict.fromkeys(PERCENT, "%"), "bits_per_byte": "bits/byte"}
UNIT = "1"
CHOOSING = ("acc", "acc_norm")  # metrics that a guess has a known value of
NOT_COMPARED = ("tasks", "task_path", "num_fewshot", "bootstrap_iters", "batch_size")  # no matter for a task's value
Json = dict[str, Any]


@dataclass(frozen=True)
class TaskMetric:
    """One metric of one task (or group), in `unit`.

    filter: how answers are read of generated texts, where a task does it in several ways; "none" elsewhere.
    chance: the value of a guess among the options; None where there are none.
    cut: requests whose prompts were cut from the left.
    """

    task: str
    name: str
    filter: str
    value: float
    unit: str
    standard_error: float | None
    samples: int
    num_fewshot: int
    chance: float | None = None
    cut: int = 0


@dataclass(frozen=True)
class HarnessResults:
    """The metrics, and the harness's own JSON with the settings beside it (`nas_llm`)."""

    metrics: tuple[TaskMetric, ...]
    json: Json


@dataclass(frozen=True, eq=False)
class Harness:
    """What is asked of every network.

    Args:
        tasks: names of tasks, groups or tags.
        task_path: a folder of task files of one's own.
        limit: so many documents of each task, below 1 a part of them; None: all.
        offset: the first document that is asked.
        num_fewshot: examples before each question, for all tasks or by name; None: as each task says.
        bootstrap_iters: draws of the bootstrap; 0: no standard errors.
        batch_size: requests that are run at once, or "auto".
        max_length: tokens of a sequence; None: the model's positions.
        add_bos_token: before every text; None: as the tokenizer does by itself, once.
        truncate: cut prompts that are longer than the model's context from the left, instead of refusing them.

    Raises:
        ValueError: an impossible value; from `loaded` and the call what `load_tasks` and `HarnessModel` refuse.
    """

    tasks: str | Sequence[str]
    task_path: str | None = None
    limit: int | float | None = None
    offset: int = 0
    num_fewshot: int | Mapping[str, int] | None = None
    bootstrap_iters: int = 1000
    batch_size: int | str = "auto"
    max_length: int | None = None
    add_bos_token: bool | None = None
    truncate: bool = False

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"{KEY}tasks={self.tasks} leaves nothing to ask: name tasks, or set harness=none")
        refuse_limit(f"{KEY}limit", self.limit)
        if self.offset < 0:
            raise ValueError(f"{KEY}offset={self.offset}: allowed is 0 or more documents to pass over")
        shots = self.num_fewshot if isinstance(self.num_fewshot, Mapping) else {"": self.num_fewshot}
        for name, number in shots.items():
            if number is not None and number < 0:
                place = f"{KEY}num_fewshot{f'.{name}' if name else ''}"
                raise ValueError(f"{place}={number}: allowed is 0 or more, or null for each task's own")
        if self.bootstrap_iters < 0:
            raise ValueError(f"{KEY}bootstrap_iters={self.bootstrap_iters}: allowed is 0 (none) or more")
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            raise ValueError(f"{KEY}batch_size={self.batch_size}: allowed are a whole number or auto")
        for key in ("batch_size", "max_length"):
            value = getattr(self, key)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{KEY}{key}={value} must be at least 1; leave it out")

    @cached_property
    def loaded(self) -> LoadedTasks:
        """The tasks and their data, read once."""
        return load_tasks(
            self.tasks,
            self.task_path,
            key=KEY,
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            offset=self.offset,
        )

    @property
    def settings(self) -> Json:
        """What the value of a task follows from, beside the task and its examples; JSON-able."""
        from lm_eval import __version__

        kept = {key: value for key, value in asdict(self).items() if key not in NOT_COMPARED}
        return {**kept, "lm_eval_version": __version__}

    def __call__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, progress: bool = False
    ) -> HarnessResults:
        """Asks `model`, which is in evaluation mode for the time of it: any causal language model, or what
        ``supernet.activate(architecture)`` yields. Random states are left as they were.
        """
        import torch
        from lm_eval.evaluator import evaluate

        from nas_llm.evaluation.harness_model import HarnessModel

        loaded = self.loaded
        for task in loaded.leaves.values():
            task.set_fewshot_seed(FEWSHOT_SEED)
        with evaluating(model), torch.random.fork_rng(), hushed(progress):
            torch.manual_seed(FEWSHOT_SEED)
            asked = HarnessModel(
                model,
                tokenizer,
                batch_size=self.batch_size,
                max_length=self.max_length,
                add_bos_token=self.add_bos_token,
                truncate=self.truncate,
                key=KEY,
            )
            results: Any = evaluate(
                asked,
                task_dict=_as_dict(loaded),
                samples=dict(loaded.documents),
                bootstrap_iters=self.bootstrap_iters,
            )
        return HarnessResults(tuple(self._metrics(results, loaded, asked)), self._json(results, loaded, asked))

    def _metrics(self, results: Json, loaded: LoadedTasks, asked: HarnessModel) -> Iterator[TaskMetric]:
        """Of every name that was asked for; of the parts of a group that has no value of its own, instead."""
        for name, members in loaded.parts.items():
            whole = any("," in key for key in results["results"].get(name, {}))
            for task in [name] if whole else members:
                found = results["results"][task]
                leaves = members if whole else (task,)
                cut = sum(asked.cut.get(leaf, 0) for leaf in leaves)
                shots = max(shots_of(loaded.leaves[leaf]) for leaf in leaves)
                for metric, read, value, error in _values(found):
                    scale = 100.0 if metric in PERCENT else 1.0
                    if error is None and task in loaded.leaves:
                        error = self._bootstrapped(metric, read, results["samples"][task])
                    guess = _chance([loaded.leaves[leaf] for leaf in leaves]) if metric in CHOOSING else None
                    yield TaskMetric(
                        task,
                        metric,
                        read,
                        scale * value,
                        UNITS.get(metric, UNIT),
                        None if error is None else scale * error,
                        int(found["sample_len"]),
                        shots,
                        None if guess is None else scale * guess,
                        cut,
                    )

    def _bootstrapped(self, metric: str, read: str, samples: Sequence[Json]) -> float | None:
        """The standard error of a weighted perplexity or of bits per byte; None for what is none of these."""
        pairs = [sample[metric] for sample in samples if sample["filter"] == read and metric in sample]
        if self.bootstrap_iters < 2 or len(pairs) < 2 or not all(isinstance(pair, tuple) for pair in pairs):
            return None
        if metric not in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
            return None
        likelihoods, weights = np.array(pairs, dtype=np.float64).T
        return bootstrap_error(likelihoods, weights, self.bootstrap_iters, in_bits=metric == "bits_per_byte")

    def _json(self, results: Json, loaded: LoadedTasks, asked: HarnessModel) -> Json:
        from lm_eval import __version__
        from transformers import __version__ as transformers_version

        kept = {key: value for key, value in results.items() if key != "samples"}
        config = {
            "model_dtype": str(asked.model.model.dtype),
            "batch_size": asked.batch_size,
            "device": str(asked.device),
            "limit": self.limit,
            "bootstrap_iters": self.bootstrap_iters,
            "torch_seed": FEWSHOT_SEED,
            "fewshot_seed": FEWSHOT_SEED,
        }
        more = {
            "config": config,
            "max_length": asked.max_length,
            "lm_eval_version": __version__,
            "transformers_version": transformers_version,
            "nas_llm": {
                "settings": self.settings,
                "documents": {leaf: [span.start, span.stop] for leaf, span in loaded.documents.items()},
                "cut": dict(asked.cut),
            },
        }
        return _plain(json.loads(json.dumps({**kept, **more}, default=str)))


def bootstrap_error(likelihoods: np.ndarray, weights: np.ndarray, draws: int, *, in_bits: bool = False) -> float:
    """Standard deviation of exp(-sum l / sum w), or of bits -sum l / sum w / ln 2, over documents drawn with
    replacement.

    Args:
        likelihoods: l, nats of each document, (documents,).
        weights: w, its words or bytes, (documents,).
        draws: number of draws, at least 2.
        in_bits: the second.
    """
    rng = np.random.default_rng(0)
    rates = np.empty(draws)
    for draw in range(draws):
        drawn = rng.integers(len(weights), size=len(weights))
        rates[draw] = -likelihoods[drawn].sum() / weights[drawn].sum()
    return float(np.std(rates / math.log(2) if in_bits else np.exp(rates), ddof=1))


def _as_dict(loaded: LoadedTasks) -> Any:
    """As the harness's own loader gives them."""
    from lm_eval.api.group import Group

    groups = {item.name: item for item in loaded.items if isinstance(item, Group)}
    for group in list(groups.values()):
        groups |= {inner.name: inner for inner in group.get_all_groups()}
    return {
        "tasks": dict(loaded.leaves),
        "groups": groups,
        "group_map": {name: group.child_names for name, group in groups.items()},
    }


def _values(found: Mapping[str, Any]) -> Iterator[tuple[str, str, float, float | None]]:
    """Metric, filter, value and standard error of the harness's "metric,filter" and "metric_stderr,filter"."""
    for key, value in found.items():
        metric, comma, read = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float | np.number):
            continue
        error = found.get(f"{metric}_stderr,{read}")
        yield metric, read, float(value), float(error) if isinstance(error, int | float | np.number) else None


def _chance(tasks: Sequence[Task]) -> float | None:
    """The mean over documents of one over the number of options; None for other tasks than multiple choice."""
    options: dict[tuple[int, Any], int] = {}
    for number, task in enumerate(tasks):
        if task.OUTPUT_TYPE != "multiple_choice" or callable(task.get_config("process_results")):
            return None
        for instance in task.instances:
            options[number, instance.doc_id] = options.get((number, instance.doc_id), 0) + 1
    return float(np.mean([1 / count for count in options.values()]))


def _plain(value: Any) -> Any:
    """Strict JSON: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
