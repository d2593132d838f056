"""Which sub-networks does each sampler train? (paper 1, section 4.1, figures 2a and 2b)

The network is sorted as before training, and every sampler is asked for the architectures of the same number of
optimizer steps. ``sampling.csv`` has one row for each of them, which says whether it was sampled or is an end of the
sandwich; ``sampling.png`` has a histogram of the parameter counts of the sampled ones per sampler. Nothing is trained.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from nas_llm.analysis.subject import Findings, Subject
from nas_llm.architecture import Architecture
from nas_llm.atomic_files import write_text
from nas_llm.lightning.preparation import Importance, scores_to_sort_by
from nas_llm.lightning.sampling import scoring_of, unprepared, unsorted
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.protocol import Batch
from nas_llm.reporting.numbers import count
from nas_llm.reporting.sampling_plot import COLUMNS, CSV_FILE, LARGEST, SAMPLED, SMALLEST, plot_sampling
from nas_llm.reporting.tables import aligned
from nas_llm.samplers import Sampler, SandwichSampler, Scoring


@dataclass(frozen=True)
class SamplingAnalysis:
    """Parameter counts of what the samplers train.

    Args:
        samplers: name -> a sampler that lacks its space.
        importance: what the network is sorted by; None, or an empty one, leaves it as it is.
        steps: optimizer steps.
        seed: of the draws.

    Raises:
        ValueError: no sampler, or a number below its smallest value.
    """

    samplers: Mapping[str, Callable[..., Sampler]]
    importance: Importance | None = None
    steps: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.samplers:
            raise ValueError("analysis.samplers={}: name at least one, as +sampler@analysis.samplers.random=random")
        for name, value, least in (("steps", self.steps, 1), ("seed", self.seed, 0)):
            if value < least:
                raise ValueError(f"analysis.{name}={value}: allowed is {least} or more")

    def __call__(self, subject: Subject) -> Findings:
        supernet = subject.load()
        batches = partial(_calibration, subject, supernet)
        scores = scores_to_sort_by(supernet, self.importance, batches) if self.importance else {}
        if scores:
            supernet.sort(scores)
        space = subject.space_of(supernet)

        def scoring(setting: str) -> Scoring:
            return scoring_of(supernet, space, batches, lambda: _sorted_by(scores, setting), setting=setting)

        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        params: dict[str, np.ndarray] = {}
        for name, make in self.samplers.items():
            drawn = self._drawn(_ready(make(space=space), scoring, f"analysis.samplers.{name}.candidates"))
            sizes = [supernet.num_parameters(architecture) for _, _, architecture in drawn]
            writer.writerows((name, step, kind, a.id, n) for (step, kind, a), n in zip(drawn, sizes, strict=True))
            sampled = [n for (_, kind, _), n in zip(drawn, sizes, strict=True) if kind == SAMPLED]
            params[name] = np.array(sampled or sizes)
        path = subject.run_dir / CSV_FILE
        write_text(path, text.getvalue())
        smallest, largest = (supernet.num_parameters(end) for end in (space.smallest(), space.largest()))
        picture = plot_sampling(path, smallest=smallest, largest=largest)
        return Findings(self._table(params, smallest, largest), self._metrics(params), (path, picture))

    def _drawn(self, sampler: Sampler) -> list[tuple[int, str, Architecture]]:
        """Step, kind and architecture of everything that is trained."""
        return [
            (step, kind, architecture)
            for step in range(self.steps)
            for kind, architecture in _kinds(sampler, sampler(step, np.random.default_rng([self.seed, step])))
        ]

    def _table(self, params: Mapping[str, np.ndarray], smallest: int, largest: int) -> str:
        edges = np.linspace(smallest, largest, 5)
        head = ["sampler", "networks", "median", *(f"{count(a)} to {count(b)}" for a, b in pairwise(edges))]
        body = [
            [
                name,
                str(len(sizes)),
                count(float(np.median(sizes))),
                *(f"{share:.0%}" for share in np.histogram(sizes, edges)[0] / len(sizes)),
            ]
            for name, sizes in params.items()
        ]
        title = (
            f"parameters of the networks that {self.steps} optimizer steps sample, the sandwich's ends apart, and the "
            "share in each quarter"
        )
        return f"{title}\n{aligned(head, body)}"

    def _metrics(self, params: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        name = "parameters of sampled networks, median"
        return [
            {"name": name, "value": float(np.median(sizes)), "unit": "1", "variant": sampler}
            for sampler, sizes in params.items()
        ]


def _calibration(subject: Subject, supernet: Supernet) -> list[Batch]:
    return list(subject.data(supernet).calibration_dataloader())


def _sorted_by(scores: Mapping[str, Tensor], setting: str) -> Mapping[str, Tensor]:
    if not scores:
        raise unsorted(setting)
    return scores


def _ready(sampler: Sampler, scoring: Callable[[str], Scoring], setting: str) -> Sampler:
    settings = unprepared(sampler)
    return sampler if settings is None else replace(sampler, candidates=settings.prepared(scoring(setting)))  # type: ignore


def _kinds(sampler: Sampler, trained: Sequence[Architecture]) -> list[tuple[str, Architecture]]:
    """What of a step was sampled: all but the ends of a sandwich, which the same sizes by chance are not."""
    if not isinstance(sampler, SandwichSampler):
        return [(SAMPLED, architecture) for architecture in trained]
    kinds = [LARGEST] * sampler.largest + [SAMPLED] * sampler.k + [SMALLEST] * sampler.smallest
    return list(zip(kinds, trained, strict=True))
