"""What the later stages read of a run directory: the trained super-network, its space, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_llm.architecture import Architecture
from nas_llm.atomic_files import read_json
from nas_llm.reporting.run_files import RunFiles
from nas_llm.run_directory import refuse_baseline
from nas_llm.search.archive import TRUNCATION, Archive, Evaluation
from nas_llm.search_space import SearchSpace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nas_llm.models.supernet import Supernet
    from nas_llm.search.pareto import Front

SUPERNET, SPACE, ARCHIVE, SEARCH = "supernet", "search_space.json", "archive.jsonl", "search.json"
REFERENCES = ("largest", "smallest", "middle")


@dataclass(frozen=True)
class FinishedRun:
    """A run directory whose training has ended.

    Raises:
        ValueError: from every property whose file is missing; it names the stage that writes it.
    """

    run_dir: Path

    @cached_property
    def supernet(self) -> Supernet:
        """The sorted, trained super-network."""
        from nas_llm.peft.saving import load_supernet

        return load_supernet(self._need(SUPERNET, "train"))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from nas_llm.models.tokenizer import load_tokenizer

        return load_tokenizer(self._need(SUPERNET, "train"))

    @cached_property
    def space(self) -> SearchSpace:
        return SearchSpace.from_dict(read_json(self._need(SPACE, "train")))

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Everything measured on the trained super-network."""
        archive = Archive(self._need(ARCHIVE, "search"))
        return [evaluation for evaluation in archive.evaluations if evaluation.source != TRUNCATION]

    @cached_property
    def front(self) -> Front:
        from nas_llm.search.pareto import Front

        search = read_json(self._need(SEARCH, "search"), "objectives", "front", "full", "step")
        directions: dict[str, Any] = {name: entry["direction"] for name, entry in search["objectives"].items()}
        known = {e.id: e for e in self.evaluations if e.step == search["step"]}
        lost = [id for id in search["front"] if id not in known]
        if lost:
            raise ValueError(
                f"{self.run_dir / ARCHIVE} lacks {', '.join(lost[:3])} of the front; "
                f"measure it again: nas-llm search run_dir={self.run_dir}"
            )
        return Front(tuple(known[id] for id in search["front"]), directions, known.get(search["full"]))

    def choose(
        self, architecture: str | None, max_params: float | None = None, max_latency_ms: float | None = None
    ) -> Architecture:
        """A sub-network by its id (or the beginning of it), by name, or the best on the front within a budget.

        Raises:
            ValueError: both or neither of a name and a budget, an unknown or ambiguous id, or nothing that fits.
        """
        budget = {"max_params": max_params, "max_latency_ms": max_latency_ms}
        if (architecture is None) == all(value is None for value in budget.values()):
            given = " or ".join(
                f"{key}={value}" for key, value in {"architecture": architecture, **budget}.items() if value is not None
            )
            raise ValueError(
                f"{f'{given}: give one, not both' if given else 'no sub-network was chosen: give one'}, of "
                f"architecture=<id>|{'|'.join(REFERENCES)} or a budget (max_params=0.5, max_latency_ms=10)"
            )
        if architecture is None:
            return self.front.pick(max_params=max_params, max_latency_ms=max_latency_ms).architecture
        if architecture in REFERENCES:
            return getattr(self.space, architecture)()
        found = {e.id: e.architecture for e in self.evaluations if e.id.startswith(str(architecture))}
        if len(found) != 1:
            best = ", ".join(evaluation.id for evaluation in self.front.evaluations[:5])
            raise ValueError(
                f"architecture={architecture}: {len(found) or 'no'} such ids in the archive; allowed are "
                f"{', '.join(REFERENCES)} or an id, as {best} (all are in {self.run_dir / 'pareto.csv'})"
            )
        return next(iter(found.values()))

    def _need(self, name: str, stage: str) -> Path:
        path = self.run_dir / name
        if not path.exists():
            refuse_baseline(self.run_dir)
            command = f"nas-llm {stage} run_dir={self.run_dir}"
            if stage == "search":
                command += " search=nsga2" if RunFiles(self.run_dir).strategy("search") is None else ""
                command += f", or give architecture={'|'.join(REFERENCES)}, which need none"
            raise ValueError(f"run_dir={self.run_dir} has no {name}; make it: {command}")
        return path
