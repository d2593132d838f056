"""A run directory as read from its files, and from nothing else: configuration, provenance, archive, metrics, logs,
exports.
"""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nas_llm.atomic_files import read_json
from nas_llm.metrics import read_metrics
from nas_llm.reporting.importance_scores import Scores, read
from nas_llm.search.archive import TRUNCATION, Evaluation, read_archive
from nas_llm.search.directory import ARCHIVE_FILE, HYPERVOLUME, SEARCH_FILE, first_layers
from nas_llm.search.pareto import COSTS, pareto_front

LOG_RATIO = 5.0  # values that spread further than this are drawn on a logarithmic axis
NAMELESS = ("prune", "evaluate", "bench", "analyse", "reproduce")  # stages whose runs are no super-network with a name
SIZES = ("largest", "middle", "smallest")
PREPARED = {"sparsity": "sparse", "quantization": "quantised"}  # groups of the configuration: what they make a network
TRAINING = "training"  # the loss that training lowers, of the sampled networks where it is logged apart


@dataclass(frozen=True)
class Progress:
    """Hypervolumes of a run's searches: (evaluations, value) where one rose and at its end; the middle network's."""

    curves: Mapping[str, tuple[tuple[float, float], ...]]  # by searcher
    heuristic: float

    @property
    def evaluations(self) -> float:
        return max(points[-1][0] for points in self.curves.values())

    def span(self) -> tuple[float, float]:
        """What is worth showing: from the middle network, or the curves once a tenth of them is over, to the best."""
        early = self.evaluations / 10
        begun = [max((y for x, y in points if x <= early), default=points[0][1]) for points in self.curves.values()]
        low = min([self.heuristic, *begun])
        high = max([self.heuristic, *(points[-1][1] for points in self.curves.values())])
        air = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
        return low - air, high + air


@dataclass(frozen=True)
class Search:
    """What a search compared and found. `truncation` maps ids of the front to the baseline at the same sizes."""

    objectives: Mapping[str, Mapping[str, str]]  # name -> unit, direction
    full: Evaluation
    front: tuple[Evaluation, ...]  # sorted by the first objective
    dominated: tuple[Evaluation, ...]
    truncation: Mapping[str, Evaluation]
    facts: Mapping[str, Any]  # search.json

    @property
    def progress(self) -> Progress | None:
        """None where no hypervolume could be measured."""
        found = self.facts.get(HYPERVOLUME)
        if found is None:
            return None
        curves = {name: tuple((x, y) for x, y in points) for name, points in found["curves"].items()}
        return Progress(curves, found["heuristic"])

    @property
    def costs(self) -> list[str]:
        """Objectives that say what a network costs; parameters where there is none."""
        return [name for name in self.objectives if name in COSTS] or ["params"]

    @property
    def qualities(self) -> list[str]:
        """Objectives that say how well it does; costs where there is none."""
        return [name for name in self.objectives if name not in COSTS] or self.costs[1:] or self.costs

    def planes(self) -> list[tuple[str, str]]:
        """Pairs (cost, quality) worth a picture; perplexity beside the loss would show the same twice."""
        shown = [name for name in self.qualities if name != "perplexity" or "loss" not in self.objectives]
        pairs = [(cost, quality) for quality in shown for cost in self.costs if cost != quality]
        return pairs or [(self.costs[0], self.qualities[0])]

    def unit(self, name: str) -> str:
        return self.objectives[name]["unit"] if name in self.objectives else "parameters"

    def is_better(self, name: str, value: float, than: float) -> bool:
        return value > than if self.objectives[name]["direction"] == "max" else value < than

    def is_logarithmic(self, name: str, values: Sequence[float]) -> bool:
        """Whether an axis of this objective is: one to be minimised, whose values spread widely."""
        return self.objectives[name]["direction"] == "min" and spreads_widely(values)

    def fraction(self, evaluation: Evaluation) -> float:
        """Of the full network's parameters."""
        return evaluation.objectives["params"] / self.full.objectives["params"]

    def closest(self, fraction: float) -> Evaluation:
        """The network of the front that is closest to this fraction of the parameters."""
        return min(self.front, key=lambda evaluation: abs(self.fraction(evaluation) - fraction))


@dataclass(frozen=True)
class Export:
    """An exported model below `subnets/`. `config` is its configuration as it is written."""

    path: Path
    evaluation: Evaluation
    config: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.evaluation.id


@dataclass(frozen=True)
class Curve:
    """One logged value over the optimizer steps."""

    name: str
    points: tuple[tuple[float, float], ...]


class RunFiles:
    """Reads what is there, when it is asked for; what is not there is None or empty.

    Raises:
        ValueError: `run_dir` is no directory, or one of its files is damaged.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir)
        if not self.path.is_dir():
            raise ValueError(f"run_dir={run_dir} is no directory: name one that nas-llm train has made")

    @cached_property
    def configuration(self) -> str:
        """The composed configuration, as YAML."""
        file = self.path / ".hydra" / "config.yaml"
        return file.read_text() if file.exists() else ""

    def setting(self, key: str) -> Any:
        """One value of the configuration; None where it is absent or cannot be resolved outside of the run."""
        from omegaconf import OmegaConf

        return OmegaConf.select(self._config, key, throw_on_resolution_failure=False)

    @cached_property
    def _config(self) -> Any:
        from omegaconf import OmegaConf

        return OmegaConf.create(self.configuration)

    def strategy(self, group: str) -> str | None:
        """The class chosen in a group of the configuration, as words: ForwardKL -> forward KL."""
        target = self.setting(f"{group}._target_")
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", str(target or "").rpartition(".")[2])
        return " ".join(word if word.isupper() else word.lower() for word in words) or None

    @property
    def untrained(self) -> str:
        """What the truncation baseline cuts, in words."""
        kinds = [word for group, word in PREPARED.items() if self.strategy(group)]
        return f"the {' and '.join(kinds)}, untrained network" if kinds else "the untrained network"

    @property
    def name(self) -> str:
        made_alone = bool(self.stages) and self.stages[0].get("stage") in NAMELESS
        return str((None if made_alone else self.setting("name")) or self.path.resolve().name)

    @cached_property
    def stages(self) -> list[dict[str, Any]]:
        """Entries of provenance.json, one per stage that was run."""
        file = self.path / "provenance.json"
        return read_json(file, "stages")["stages"] if file.exists() else []

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.path)

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        file = self.path / ARCHIVE_FILE
        return read_archive(file) if file.exists() else []

    @cached_property
    def search(self) -> Search | None:
        """The last search; None where there was none."""
        file = self.path / SEARCH_FILE
        if not file.exists():
            return None
        facts = read_json(file, "objectives", "step", "full")
        names = {"params", *facts["objectives"]}
        measured = {id: e for id, e in self._at(facts["step"]).items() if names <= e.objectives.keys()}
        if facts["full"] not in measured:
            raise ValueError(
                f"{self.path / ARCHIVE_FILE} lacks the full network {facts['full']}: run nas-llm search again"
            )
        qualities = facts["objectives"].keys() - set(COSTS)
        untrained = [e for e in self.evaluations if e.source == TRUNCATION and qualities <= e.objectives.keys()]
        baseline = {e.id: e for e in untrained if qualities}
        front = pareto_front(measured.values(), {name: o["direction"] for name, o in facts["objectives"].items()})
        matches = {e.id: baseline.get(first_layers(e.architecture).id) for e in front}
        on_front = {e.id for e in front}
        return Search(
            objectives=facts["objectives"],
            full=measured[facts["full"]],
            front=tuple(front),
            dominated=tuple(e for e in measured.values() if e.id not in on_front and e.is_finite(names)),
            truncation={id: found for id, found in matches.items() if found is not None},
            facts=facts,
        )

    @cached_property
    def exports(self) -> list[Export]:
        """Models in `subnets/<id>` of which the last search's network was measured, the largest first."""
        known = {} if self.search is None else self._at(self.search.facts["step"])
        found = []
        for file in (self.path / "subnets").glob("*/config.json"):
            if file.parent.name in known:
                found.append(Export(file.parent, known[file.parent.name], json.loads(file.read_text())))
        return sorted(found, key=lambda export: -export.evaluation.objectives["params"])

    @cached_property
    def curves(self) -> list[Curve]:
        """Losses of the training log: validation of the largest, the middle and the smallest network, and training."""
        rows = self._log()
        columns = list(dict.fromkeys(column for row in rows for column in row))
        chosen = {size: _column(columns, "val", size) for size in SIZES} | {
            TRAINING: _column(columns, "train", "sampled")
        }
        curves = [Curve(name, _points(rows, column)) for name, column in chosen.items() if column is not None]
        return [curve for curve in curves if len(curve.points) > 1]

    @cached_property
    def importance(self) -> Scores | None:
        """The scores that the super-network was sorted by; None where there are none."""
        return read(self.path)

    def _at(self, step: int) -> dict[str, Evaluation]:
        """What was measured of the super-network as it was after this optimizer step, by id."""
        return {e.id: e for e in self.evaluations if e.step == step and e.source != TRUNCATION}

    def _log(self) -> list[dict[str, str]]:
        """Rows of the CSV logs in the order of the versions; a resumed run goes on in the next one."""
        versions = sorted(self.path.glob("logs/version_*/metrics.csv"), key=lambda f: int(f.parent.name.split("_")[1]))
        rows = []
        for file in versions:
            with file.open(newline="") as handle:
                rows += list(csv.DictReader(handle))
        return rows


def spreads_widely(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > LOG_RATIO


def _column(columns: list[str], prefix: str, network: str) -> str | None:
    """The column of `val/loss_largest` and the like: a loss of that network in that loop."""
    words = {prefix, "loss", network}
    return next((column for column in columns if words <= set(re.split(r"[/_.]", column.lower()))), None)


def _points(rows: list[dict[str, str]], column: str) -> tuple[tuple[float, float], ...]:
    by_step = {float(row["step"]): float(row[column]) for row in rows if row.get("step") and row.get(column)}
    return tuple(sorted((step, loss) for step, loss in by_step.items() if math.isfinite(loss)))
