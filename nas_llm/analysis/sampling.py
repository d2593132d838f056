"""Which sub-networks does each sampler train? (paper 1, section 4.1, figures 2a and 2b)

Every sampler is asked for the architectures of the same number of optimizer steps. ``sampling.csv`` has one row for
each of them, ``sampling.png`` a histogram of parameter counts per sampler; nothing is trained.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from nas_llm.analysis.subject import Findings, Subject
from nas_llm.architecture import Architecture
from nas_llm.lightning.sampling import recorded_importance, scoring_of, unprepared
from nas_llm.reporting.numbers import count
from nas_llm.reporting.sampling_plot import COLUMNS, CSV_FILE, plot_sampling
from nas_llm.reporting.tables import aligned
from nas_llm.run_directory import write_text
from nas_llm.samplers import Sampler, Scoring


@dataclass(frozen=True)
class SamplingAnalysis:
    """Parameter counts of what the samplers train.

    Args:
        samplers: name -> a sampler that lacks its space.
        steps: optimizer steps.
        seed: of the draws.

    Raises:
        ValueError: no sampler, or a number below its smallest value.
    """

    samplers: Mapping[str, Callable[..., Sampler]]
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
        space = subject.space_of(supernet)
        scoring = scoring_of(
            supernet,
            space,
            lambda: list(subject.data(supernet).calibration_dataloader()),
            lambda: recorded_importance(subject.run_dir),
        )
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        params: dict[str, np.ndarray] = {}
        for name, make in self.samplers.items():
            drawn = self._drawn(_ready(make(space=space), scoring))
            sizes = [supernet.num_parameters(architecture) for _, architecture in drawn]
            writer.writerows((name, step, a.id, n) for (step, a), n in zip(drawn, sizes, strict=True))
            params[name] = np.array(sizes)
        path = subject.run_dir / CSV_FILE
        write_text(path, text.getvalue())
        smallest, largest = (supernet.num_parameters(end) for end in (space.smallest(), space.largest()))
        picture = plot_sampling(path, smallest=smallest, largest=largest)
        return Findings(self._table(params, smallest, largest), self._metrics(params), (path, picture))

    def _drawn(self, sampler: Sampler) -> list[tuple[int, Architecture]]:
        return [
            (step, architecture)
            for step in range(self.steps)
            for architecture in sampler(step, np.random.default_rng([self.seed, step]))
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
        title = f"parameters of the networks that {self.steps} optimizer steps train, and the share in each quarter"
        return f"{title}\n{aligned(head, body)}"

    def _metrics(self, params: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        return [
            {"name": "parameters, median", "value": float(np.median(sizes)), "unit": "1", "variant": name}
            for name, sizes in params.items()
        ]


def _ready(sampler: Sampler, scoring: Scoring) -> Sampler:
    settings = unprepared(sampler)
    return sampler if settings is None else replace(sampler, candidates=settings.prepared(scoring))  # type: ignore
