"""The search loop: ask, answer from the archive, measure the rest, tell.

With W ranks every rank holds the same search and asks the same; a round of W architectures is measured one per rank,
the values are gathered on all, and rank 0 alone writes the archive. All tell the same in the same order, so they stay
the same.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_llm.architecture import Architecture
from nas_llm.search.archive import Archive, Evaluation
from nas_llm.search.protocol import Search

Evaluate = Callable[[Architecture], dict[str, float]]
ASK = 64  # architectures asked for at once; the search itself returns no more than a generation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranks:
    """The processes that share the work."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Those of torch.distributed, or this process alone."""
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks; collective."""
        if self.world_size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values


@dataclass
class SearchResult:
    """What a search measured and what it took. `search_overhead` is the searcher's own time over the measurements'."""

    evaluations: list[Evaluation] = field(default_factory=list)  # in the order in which they were asked
    from_archive: int = 0
    search_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    @property
    def measured(self) -> int:
        return len(self.evaluations) - self.from_archive

    @property
    def search_overhead(self) -> float:
        return self.search_seconds / self.evaluation_seconds if self.evaluation_seconds else math.nan


def open_archive(path: str | Path, ranks: Ranks | None = None) -> Archive:
    """The archive of a run directory on rank 0, and copies in memory on the others; collective."""
    ranks = ranks or Ranks.current()
    archive = Archive(path if ranks.rank == 0 else None)
    recorded = ranks.gather([evaluation.to_dict() for evaluation in archive.evaluations])[0]
    if ranks.rank > 0:
        archive.extend_in_memory(Evaluation.from_dict(data) for data in recorded)
    return archive


def run_search(
    search: Search,
    evaluate: Evaluate,
    archive: Archive,
    *,
    step: int = 0,
    progress: bool = True,
    ranks: Ranks | None = None,
    observe: Callable[[Evaluation], None] | None = None,
) -> SearchResult:
    """Run `search` until it is done, with a progress bar.

    Args:
        search: the same on every rank.
        evaluate: measures one architecture; its values may be more than the search's objectives. Values that are not
            finite are recorded, named in the log, and rank last.
        archive: as `open_archive` gives it; answers what was measured before at this `step`, and takes what is
            measured now.
        step: optimizer step of the super-network, written with each evaluation.
        observe: called with each evaluation as it comes, in the order in which they were asked.

    Raises:
        ValueError: `evaluate` does not return all objectives, or the archive cannot be written.
    """
    from tqdm.auto import tqdm

    ranks = ranks or Ranks.current()
    result = SearchResult()
    names = tuple(search.directions)
    bar = tqdm(total=search.evaluations, desc="search", unit="arch", disable=not progress or ranks.rank > 0)
    with bar:
        while not search.done:
            with _timed(result, "search_seconds"):
                asked = search.ask(ASK)
            told = []
            for evaluation, known in _answers(asked, evaluate, archive, names, search.name, step, ranks, result):
                told.append(evaluation)
                result.from_archive += known
                bar.update()
                if observe is not None:
                    observe(evaluation)
            with _timed(result, "search_seconds"):
                search.tell(told)
            result.evaluations += told
    _log(result, search.evaluations)
    return result


def measure_all(
    architectures: Sequence[Architecture],
    evaluate: Evaluate,
    archive: Archive,
    *,
    names: Iterable[str],
    source: str,
    step: int = 0,
    progress: bool = True,
    ranks: Ranks | None = None,
) -> list[Evaluation]:
    """Evaluations of these architectures, in their order: the archive's where it has `names`, else measured and
    recorded.
    """
    from tqdm.auto import tqdm

    ranks = ranks or Ranks.current()
    answers = _answers(architectures, evaluate, archive, tuple(names), source, step, ranks, SearchResult())
    quiet = not progress or ranks.rank > 0
    return [found for found, _ in tqdm(answers, desc=source, total=len(architectures), unit="arch", disable=quiet)]


def _answers(
    asked: Sequence[Architecture],
    evaluate: Evaluate,
    archive: Archive,
    names: tuple[str, ...],
    source: str,
    step: int,
    ranks: Ranks,
    result: SearchResult,
) -> Iterator[tuple[Evaluation, bool]]:
    """Evaluations in the order asked for, each with whether the archive knew it; unknown ones are measured W at a
    time.
    """
    known = {}
    for architecture in asked:
        found = archive.find(architecture, step=step, source=source)
        known[architecture.id] = found if found is not None and found.objectives.keys() >= set(names) else None
    unknown = [architecture for architecture in asked if known[architecture.id] is None]
    position = 0
    for architecture in asked:
        evaluation = known[architecture.id]
        if evaluation is not None:
            yield evaluation, True
            continue
        if position % ranks.world_size == 0:
            with _timed(result, "evaluation_seconds"):
                measured = _measure_round(unknown[position : position + ranks.world_size], evaluate, ranks)
            for candidate, values in measured.items():
                archive.append(_checked(Evaluation(candidate, values, source, step), names))
        position += 1
        found = archive.find(architecture, step=step, source=source)
        assert found is not None
        yield found, False


def _measure_round(
    architectures: Sequence[Architecture], evaluate: Evaluate, ranks: Ranks
) -> dict[Architecture, dict[str, float]]:
    """Rank r measures the r-th; values of all, on all ranks."""
    mine = architectures[ranks.rank] if ranks.rank < len(architectures) else None
    gathered = ranks.gather(None if mine is None else evaluate(mine))
    return dict(zip(architectures, gathered, strict=False))


def _checked(evaluation: Evaluation, names: tuple[str, ...]) -> Evaluation:
    missing = [name for name in names if name not in evaluation.objectives]
    if missing:
        raise ValueError(f"objectives={missing} were not measured for architecture {evaluation.id}")
    if not evaluation.is_finite:
        shown = ", ".join(f"{name}={value:g}" for name, value in evaluation.objectives.items())
        logger.warning("architecture %s (%s) ranks last: %s", evaluation.id, evaluation.architecture.summary(), shown)
    return evaluation


def _log(result: SearchResult, budget: int) -> None:
    spent = len(result.evaluations)
    if spent < budget:
        logger.warning(
            "the search space is exhausted: all its %d architectures are measured, of %d allowed", spent, budget
        )
    logger.info(
        "search: %d architectures, %d of them from the archive; %.1f s measuring, %.2f s searching (%.2f %%)",
        *(spent, result.from_archive, result.evaluation_seconds, result.search_seconds, 100 * result.search_overhead),
    )


@contextmanager
def _timed(result: SearchResult, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    setattr(result, name, getattr(result, name) + time.perf_counter() - start)
