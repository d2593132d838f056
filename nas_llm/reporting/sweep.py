"""A folder of runs (a Hydra multirun) read as an ablation: one arm per setting, one run per seed.

The arm of a run is what the overrides of its last search say that differs between the runs, seeds apart. Of every run
the best value of each quality among the measured networks of at most a fraction f of the full network's parameters is
taken,

    q(f) = best { q(theta) : params(theta) <= f params(full) },

and an arm is the mean of its runs' q(f) with their standard deviation (n - 1; none for a single run).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nas_llm.reporting import numbers
from nas_llm.reporting.run_files import RunFiles, Search
from nas_llm.search.directory import HYPERVOLUME
from nas_llm.search.pareto import hypervolume

FRACTIONS = tuple(round(0.05 * place, 2) for place in range(2, 21))  # of the full network's parameters
TABLE_FRACTIONS = (0.75, 0.5, 0.25)
SEEDS = ("seed", "search.seed")


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over runs; ``runs`` is their number."""

    mean: float
    deviation: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        deviation = "" if self.deviation is None else f" ± {numbers.significant(self.deviation)}"
        return f"{numbers.significant(self.mean)}{deviation}"


@dataclass(frozen=True)
class Arm:
    """The runs that differ in their seed alone."""

    name: str
    searches: tuple[Search, ...]

    def best(self, quality: str, fraction: float) -> Spread | None:
        """q(f) of the runs; None where one of them has no network that small."""
        values = [_best(search, quality, fraction) for search in self.searches]
        found = [value for value in values if value is not None]
        return Spread.of(found) if len(found) == len(values) else None


@dataclass(frozen=True)
class Sweep:
    """The arms of a folder, in the order of their runs."""

    path: Path
    arms: tuple[Arm, ...]

    @classmethod
    def of(cls, folder: str | Path) -> Sweep:
        """Every run below the folder that was searched.

        Raises:
            ValueError: there is none, or the runs measured different objectives.
        """
        path = Path(folder)
        runs = {place: RunFiles(place) for place in runs_below(path)}
        searched = {place: run.search for place, run in runs.items() if run.search is not None}
        if not searched:
            raise ValueError(
                f"run_dir={folder} holds no run, and no runs that were searched: name a folder that nas-llm train, or "
                "nas-llm train -m, has made"
            )
        objectives = {tuple(search.objectives) for search in searched.values()}
        if len(objectives) > 1:
            raise ValueError(
                f"run_dir={folder}: the runs measured different objectives ({sorted(objectives)}), which cannot be "
                "compared; report each run by itself"
            )
        arms: dict[str, list[Search]] = {}
        settings = {place: _settings(place) for place in searched}
        varied = _varied(list(settings.values()))
        for place, search in searched.items():
            arms.setdefault(_name(settings[place], varied), []).append(search)
        return cls(path, tuple(Arm(name, tuple(found)) for name, found in arms.items()))

    @cached_property
    def qualities(self) -> list[str]:
        return self.arms[0].searches[0].qualities

    def unit(self, quality: str) -> str:
        return self.arms[0].searches[0].unit(quality)

    def hypervolume(self, arm: Arm, quality: str) -> Spread:
        """Of the runs' networks in the plane of (fraction of the parameters, quality), in the quality's unit.

        The reference point, the same for all arms, is the full size and the worst value of any run's front, so that
        volumes of two folders do not compare.
        """
        worst = self.worst(quality)
        return Spread.of([_volume(search, quality, worst) for search in arm.searches])

    def worst(self, quality: str) -> float:
        """The worst value on the fronts of all runs, the reference of their hypervolumes."""
        searches = [search for arm in self.arms for search in arm.searches]
        values = [evaluation.objectives[quality] for search in searches for evaluation in search.front]
        return min(values) if searches[0].objectives[quality]["direction"] == "max" else max(values)

    @cached_property
    def shares_networks(self) -> bool:
        """Whether the arms searched the same super-networks, run by run, whose three reference networks say so."""
        boxes = [[_box(search) for search in arm.searches] for arm in self.arms]
        return len(boxes) > 1 and all(mine == boxes[0] and None not in mine for mine in boxes)


def is_run(folder: Path) -> bool:
    """Whether this folder is a run's own."""
    return (folder / ".hydra" / "overrides.yaml").is_file()


def runs_below(folder: Path) -> list[Path]:
    """Run directories in a folder, two levels down at most, in the order of the jobs' numbers."""
    found = [record.parent.parent for depth in ("*", "*/*") for record in folder.glob(f"{depth}/.hydra/overrides.yaml")]
    return sorted(found, key=lambda place: (_number(place.relative_to(folder).parts[0]), str(place)))


def _number(name: str) -> float:
    first = name.partition("-")[0]
    return float(first) if first.isdigit() else math.inf


def _settings(place: Path) -> dict[str, str]:
    from omegaconf import OmegaConf

    stages = (place / ".hydra" / "search", place / ".hydra")  # a search by itself has settings of its own
    record = next(file for folder in stages if (file := folder / "overrides.yaml").is_file())
    lines = [str(line) for line in OmegaConf.load(record)]
    return {key: value for key, _, value in (line.partition("=") for line in lines) if not key.startswith("hydra.")}


def _varied(settings: Sequence[Mapping[str, str]]) -> list[str]:
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if key not in SEEDS and len({each.get(key) for each in settings}) > 1]


def _name(settings: Mapping[str, str], varied: Sequence[str]) -> str:
    if len(varied) == 1:
        return settings.get(varied[0], "default").rpartition("/")[2]
    return ", ".join(f"{key}={settings[key]}" for key in varied if key in settings) or "all runs"


def _box(search: Search) -> dict[str, dict[str, float]] | None:
    """Of the hypervolume, around the largest, middle and smallest network; None where one could not be measured."""
    found = search.facts.get(HYPERVOLUME)
    return None if found is None else found["box"]


def _best(search: Search, quality: str, fraction: float) -> float | None:
    sign = -1.0 if search.objectives[quality]["direction"] == "max" else 1.0
    values = [
        sign * evaluation.objectives[quality]
        for evaluation in (*search.front, *search.dominated)
        if search.fraction(evaluation) <= fraction + 1e-9 and math.isfinite(evaluation.objectives[quality])
    ]
    return sign * min(values) if values else None


def _volume(search: Search, quality: str, worst: float) -> float:
    from dataclasses import replace

    direction = search.objectives[quality]["direction"]
    points = [
        replace(e, objectives={"fraction": search.fraction(e), quality: e.objectives[quality]})
        for e in (*search.front, *search.dominated)
    ]
    directions = {"fraction": "min", quality: direction}
    return hypervolume(points, directions, {"fraction": 1.0, quality: worst})  # type: ignore[arg-type]
