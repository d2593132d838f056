"""The search loop: ask, answer from the archive, measure the rest, tell.

With W ranks every rank holds the same search and asks the same; a round of W architectures is measured one per rank,
the values are gathered on all, and rank 0 alone writes the archive. All tell the same in the same order, so they stay
the same.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nas_llm.architecture import Architecture
from nas_llm.search.archive import Archive, Evaluation
from nas_llm.search.protocol import Search

Evaluate = Callable[[Architecture, Mapping[str, float]], Mapping[str, float]]
"""An architecture and the values that are known of it -> at least the values that are not, by objective."""
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
    """What a search measured and what it took. `search_overhead` is the searcher's own time over the measurements'.

    Both times are of all its evaluations: a resumed search asks for every one again, and those that the archive
    answers bring the seconds that they once took.
    """

    evaluations: list[Evaluation] = field(default_factory=list)  # in the order in which they were asked
    from_archive: int = 0
    search_seconds: float = 0.0

    @property
    def evaluation_seconds(self) -> float:
        return sum(evaluation.seconds for evaluation in self.evaluations)

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
        evaluate: measures of one architecture what is not known; its values may be more than the search's objectives.
            Values that are not finite are recorded, named in the log, and rank last.
        archive: as `open_archive` gives it; answers what was measured before at this `step`, and takes what is
            measured now. Of an architecture that lacks some objectives there, only those are measured.
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
            with _searching(result):
                asked = search.ask(ASK)
            told = []
            for evaluation, known in _answers(asked, evaluate, archive, names, search.name, step, ranks):
                told.append(evaluation)
                result.from_archive += known
                bar.update()
                if observe is not None:
                    observe(evaluation)
            with _searching(result):
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
    """Evaluations of these architectures, in their order: the archive's values, and of `names` those that it lacks
    measured and recorded.
    """
    from tqdm.auto import tqdm

    ranks = ranks or Ranks.current()
    answers = _answers(architectures, evaluate, archive, tuple(names), source, step, ranks)
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
) -> Iterator[tuple[Evaluation, bool]]:
    """Evaluations in the order asked for, each with whether the archive knew all of it; what is unknown is measured W
    at a time.
    """

    def recorded(architecture: Architecture) -> Evaluation:
        found = archive.find(architecture, step=step, source=source)
        return Evaluation(architecture, {}, source, step) if found is None else found

    distinct = dict.fromkeys(asked)
    unknown = [architecture for architecture in distinct if not recorded(architecture).objectives.keys() >= set(names)]
    position = 0
    for architecture in asked:
        if position == len(unknown) or architecture != unknown[position]:
            yield recorded(architecture), True
            continue
        if position % ranks.world_size == 0:
            before = [recorded(candidate) for candidate in unknown[position : position + ranks.world_size]]
            for evaluation in _measure_round(before, evaluate, ranks):
                archive.append(_checked(replace(evaluation, source=source), names))
        position += 1
        yield recorded(architecture), False


def _measure_round(before: Sequence[Evaluation], evaluate: Evaluate, ranks: Ranks) -> list[Evaluation]:
    """Rank r completes the r-th; all of them, on all ranks, which share the seconds of the round."""
    start = time.perf_counter()
    mine = before[ranks.rank] if ranks.rank < len(before) else None
    gathered = ranks.gather(None if mine is None else dict(evaluate(mine.architecture, mine.objectives)))
    seconds = (time.perf_counter() - start) / len(before)
    return [
        replace(evaluation, objectives={**evaluation.objectives, **values}, seconds=evaluation.seconds + seconds)
        for evaluation, values in zip(before, gathered, strict=False)
    ]


def _checked(evaluation: Evaluation, names: tuple[str, ...]) -> Evaluation:
    missing = [name for name in names if name not in evaluation.objectives]
    if missing:
        raise ValueError(f"objectives={missing} were not measured for architecture {evaluation.id}")
    if not evaluation.is_finite(names):
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
        "search: %d architectures, %d of them from the archive; %.1f s measuring them, %.2f s searching (%.2f %%)",
        *(spent, result.from_archive, result.evaluation_seconds, result.search_seconds, 100 * result.search_overhead),
    )


@contextmanager
def _searching(result: SearchResult) -> Iterator[None]:
    start = time.perf_counter()
    yield
    result.search_seconds += time.perf_counter() - start
