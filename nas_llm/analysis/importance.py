"""Does sorting by importance make sub-networks better before any training (paper 1, section 4.2, figure 2d)?

For every method a fresh super-network is scored on the calibration split and sorted, and the same random sub-networks
of the search space are measured on the validation split: mean token cross-entropy in nats. ``importance.csv`` has one
row per method and sub-network, ``importance.png`` the losses against the numbers of parameters.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from nas_llm.analysis.subject import Findings, Subject
from nas_llm.atomic_files import write_text
from nas_llm.importance.scores import refuse_not_finite
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.loss import Loss
from nas_llm.objectives.protocol import Batch
from nas_llm.reporting.sorting_plot import COLUMNS, CSV_FILE, plot_sorting

Importance = Callable[[Supernet, Any], dict[str, Tensor]]
SPLIT = "validation"
FRACTIONS, BAND = (0.75, 0.5, 0.25), 0.125  # of the full parameters; sub-networks within the band count


@dataclass(frozen=True)
class ImportanceAnalysis:
    """Losses of untrained sub-networks after sorting by each of the methods.

    Args:
        methods: name -> importance; an empty one leaves the network as it is.
        compare: the names among them that are measured, in this order; None: all.
        subnetworks: how many random ones, the same sizes for every method.
        batches: of the validation split, from the first on; None: all.
        seed: of the sub-networks.

    Raises:
        ValueError: an unknown method, no method, or a number below its smallest value.
    """

    methods: Mapping[str, Importance | None]
    compare: Sequence[str] | None = None
    subnetworks: int = 64
    batches: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self._compared if name not in self.methods]
        if unknown or not self._compared:
            raise ValueError(
                f"analysis.compare={list(self._compared)}: allowed are {', '.join(self.methods)}; others by "
                f"+importance@analysis.methods.NAME=OPTION"
            )
        for name, value, least in (("subnetworks", self.subnetworks, 1), ("seed", self.seed, 0)):
            if value < least:
                raise ValueError(f"analysis.{name}={value}: allowed is {least} or more")
        if self.batches is not None and self.batches < 1:
            raise ValueError(f"analysis.batches={self.batches}: allowed is 1 or more, or null for all")

    @property
    def _compared(self) -> tuple[str, ...]:
        return tuple(self.methods if self.compare is None else self.compare)

    def __call__(self, subject: Subject) -> Findings:
        validation: list[Batch] = []
        rows = [row for name in self._compared for row in self._measured(name, subject, validation)]
        samples = sum(len(batch["input_ids"]) for batch in validation)
        return self._findings(rows, subject, samples)

    def _measured(self, name: str, subject: Subject, validation: list[Batch]) -> list[dict[str, Any]]:
        """One row for the full network and one for each sub-network; the first call fills ``validation``."""
        supernet, importance = subject.load(), self.methods[name]
        data = subject.data(supernet)
        if not validation:
            validation += islice(data.val_dataloader(), self.batches)
        if importance:
            scores = importance(supernet, data.calibration_dataloader())
            refuse_not_finite(scores, supernet)
            supernet.sort(scores)
        space, rng = subject.space_of(supernet), np.random.default_rng(self.seed)
        loss, full = Loss(validation), supernet.largest()
        drawn = [space.sample(rng) for _ in range(self.subnetworks)]
        whole = supernet.num_parameters(full)
        rows = []
        for kind, architecture in [("full", full), *(("subnetwork", architecture) for architecture in drawn)]:
            params = supernet.num_parameters(architecture)
            kept = " ".join(str(layer.index) for layer in architecture.layers)
            values = (name, kind, architecture.id, params, params / whole, loss(supernet, architecture))
            rows.append(dict(zip(COLUMNS, (*values, architecture.summary(), kept), strict=True)))
        return rows

    def _findings(self, rows: Sequence[dict[str, Any]], subject: Subject, samples: int) -> Findings:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path = subject.run_dir / CSV_FILE
        write_text(path, text.getvalue())
        picture = plot_sorting(path)
        summaries = {name: Summary.of(name, rows) for name in self._compared}
        full = [row["loss"] for row in rows if row["kind"] == "full"]
        lines = [
            f"loss [nats/token] of the same {self.subnetworks} random sub-networks, untrained, "
            f"on {samples} records of the {SPLIT} split",
            table(list(summaries.values())),
            f"full network: {full[0]:.3f}, after sorting the same to {max(full) - min(full):.0e}",
        ]
        where = {"unit": "nats/token", "split": SPLIT, "samples": samples, "subnetworks": self.subnetworks}
        metrics = [
            {"name": f"loss of sub-networks, {statistic}", "value": value, "variant": name, **where}
            for name, summary in summaries.items()
            for statistic, value in summary.statistics.items()
        ]
        return Findings("\n".join(lines), metrics, (path, picture))


@dataclass(frozen=True)
class Summary:
    """The losses of one method's sub-networks; ``bands`` maps a fraction of the parameters to the median of those near
    it and their number."""

    method: str
    statistics: Mapping[str, float]  # median, lower quartile, upper quartile, mean
    bands: Mapping[float, tuple[float, int]]

    @classmethod
    def of(cls, method: str, rows: Sequence[Mapping[str, Any]]) -> Summary:
        own = [row for row in rows if row["method"] == method and row["kind"] == "subnetwork"]
        losses = [row["loss"] for row in own]
        low, median, high = np.quantile(losses, (0.25, 0.5, 0.75)).tolist()
        statistics = {"median": median, "lower quartile": low, "upper quartile": high, "mean": float(np.mean(losses))}
        bands = {}
        for fraction in FRACTIONS:
            near = [row["loss"] for row in own if abs(row["fraction"] - fraction) <= BAND]
            bands[fraction] = (float(np.median(near)) if near else float("nan"), len(near))
        return cls(method, statistics, bands)


def table(summaries: Sequence[Summary]) -> str:
    """One row per method; the last columns are medians of the sub-networks near a fraction of the parameters."""
    counts = {fraction: summaries[0].bands[fraction][1] for fraction in FRACTIONS}
    head = ["method", "median", "quartiles", "mean", *(f"{f:.0%} of parameters (n={counts[f]})" for f in FRACTIONS)]
    body = [
        [
            summary.method,
            f"{summary.statistics['median']:.3f}",
            f"{summary.statistics['lower quartile']:.3f} to {summary.statistics['upper quartile']:.3f}",
            f"{summary.statistics['mean']:.3f}",
            *(f"{median:.3f}" if number else "none" for median, number in summary.bands.values()),
        ]
        for summary in summaries
    ]
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *body]
    )
