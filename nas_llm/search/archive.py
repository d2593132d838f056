"""The archive: one JSON line per measured architecture, on disk before the next one is measured.

`archive.jsonl` is only ever appended to, each line in one write followed by fsync, so that a process killed at any
moment loses at most the line it was writing. Opening drops such a torn last line and says so. Values that are not
finite are written as null and read as NaN. What is measured later of an architecture at the same step is a line of its
own, with the values known before beside the new ones; when read, its lines are one evaluation.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nas_llm.architecture import Architecture
from nas_llm.json_lines import append_line

TRUNCATION = "truncation"  # source of values measured on the network as it was before sorting and training
REFERENCE = "reference"  # source of values measured beside the search (the full network, ...)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What one architecture measured.

    `objectives` maps names to values in the objectives' units; `source` is the search's name, "reference" or
    "truncation"; `step` is the optimizer step of the super-network it was measured on. `seconds` that all values took
    to be measured are no part of what it is.
    """

    architecture: Architecture
    objectives: Mapping[str, float]
    source: str = REFERENCE
    step: int = 0
    seconds: float = field(default=0.0, compare=False)

    @property
    def id(self) -> str:
        return self.architecture.id

    def is_finite(self, names: Iterable[str]) -> bool:
        """Whether the values of these objectives are."""
        return all(math.isfinite(self.objectives[name]) for name in names)

    def to_dict(self) -> dict[str, Any]:
        objectives = {name: float(value) if math.isfinite(value) else None for name, value in self.objectives.items()}
        architecture = self.architecture.to_dict()
        return {
            "id": self.id,
            "architecture": architecture,
            "objectives": objectives,
            "source": self.source,
            "step": self.step,
            "seconds": round(self.seconds, 6),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Evaluation":
        """Inverse of `to_dict`; seconds may be missing, as in archives from before they were recorded.

        Raises:
            ValueError: another field is missing, or the id is not the architecture's.
        """
        missing = [key for key in ("id", "architecture", "objectives", "source", "step") if key not in data]
        if missing:
            raise ValueError(f"not an evaluation: {missing} missing")
        objectives = {name: math.nan if value is None else float(value) for name, value in data["objectives"].items()}
        architecture, seconds = Architecture.from_dict(data["architecture"]), float(data.get("seconds", 0.0))
        evaluation = cls(architecture, objectives, str(data["source"]), int(data["step"]), seconds)
        if evaluation.id != data["id"]:
            raise ValueError(f"id {data['id']} is not that of its architecture, {evaluation.id}")
        return evaluation


class Archive:
    """Append-only record of evaluations, one for each architecture, step and network; `path=None` keeps it in memory.

    Raises:
        ValueError: a line before the last is not an evaluation; its number is named.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._known: dict[tuple[bool, int, str], Evaluation] = {}
        if self.path is not None and self.path.exists():
            evaluations, whole = _read(self.path)
            if whole < self.path.stat().st_size:
                logger.warning("%s: dropped a torn last line; it will be measured again", self.path)
                os.truncate(self.path, whole)
            self.extend_in_memory(evaluations)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """In the order in which they were first measured."""
        return tuple(self._known.values())

    @property
    def step(self) -> int:
        """The latest step of the super-network that anything was measured at; 0 for an empty archive."""
        return max((evaluation.step for evaluation in self._known.values()), default=0)

    def at(self, step: int, *, source: str | None = None) -> list[Evaluation]:
        """The evaluations at `step`: of the truncation baseline if so asked, else of the rest."""
        wanted = source == TRUNCATION
        return [
            evaluation
            for (baseline, at_step, _), evaluation in self._known.items()
            if baseline == wanted and at_step == step and source in (None, evaluation.source)
        ]

    def find(self, architecture: Architecture, *, step: int, source: str = REFERENCE) -> Evaluation | None:
        """What this architecture measured at `step`, whoever asked for it.

        The truncation baseline measures another network, so only `source="truncation"` finds its values.
        """
        return self._known.get((source == TRUNCATION, step, architecture.id))

    def append(self, evaluation: Evaluation) -> None:
        """Record one evaluation; it is on the disk when this returns.

        Raises:
            ValueError: the disk is full or refuses the write; the file then ends with the last whole line.
        """
        if self.path is not None:
            append_line(self.path, evaluation.to_dict())
        self.extend_in_memory([evaluation])

    def extend_in_memory(self, evaluations: Iterable[Evaluation]) -> None:
        """Take over evaluations that another process has written."""
        for evaluation in evaluations:
            key = (evaluation.source == TRUNCATION, evaluation.step, evaluation.id)
            before = self._known[key].objectives if key in self._known else {}
            self._known[key] = replace(evaluation, objectives={**before, **evaluation.objectives})


def read_archive(path: str | Path) -> list[Evaluation]:
    """The evaluations of an archive file, merged as in `Archive`; the file is not changed, a torn last line not
    read.
    """
    archive = Archive()
    archive.extend_in_memory(_read(Path(path))[0])
    return list(archive.evaluations)


def _read(path: Path) -> tuple[list[Evaluation], int]:
    """Evaluations, and the number of bytes that hold them."""
    lines = path.read_bytes().splitlines(keepends=True)
    evaluations, whole = [], 0
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("the line has no end")
            evaluations.append(Evaluation.from_dict(json.loads(line)))
        except (
            ValueError,
            TypeError,
            AttributeError,
        ) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            if number == len(lines):
                break
            raise ValueError(
                f"{path}, line {number}: {_reason(error)}; remove that line to measure its architecture again"
            ) from error
        whole += len(line)
    return evaluations, whole


def _reason(error: Exception) -> str:
    """Without the line and column that a JSON error counts inside of the one line it was given."""
    return f"not JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else str(error)
