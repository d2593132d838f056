"""Before training: score the units of the network on calibration data and sort it, or sort it as the run had it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nas_llm.importance.scores import read_scores_of, write_scores
from nas_llm.models.supernet import Supernet
from nas_llm.run_directory import IMPORTANCE_FILE, is_main_process

Batches = Iterable[Mapping[str, Tensor]]
Importance = Callable[[Supernet, Batches], dict[str, Tensor]]


def sort_by_importance(
    supernet: Supernet,
    importance: Importance | None,
    batches: Callable[[], Batches],
    run_dir: Path,
    *,
    resumes: bool,
) -> None:
    """Sort ``supernet``; None leaves it as it is.

    A resumed run, and the ranks that the first one starts, take the scores that lie in ``run_dir``: the order of the
    units is then the same to the last tie. Otherwise the scores are computed, and the first rank writes them;
    ``batches`` is called only where the method looks at data.

    Raises:
        ValueError: the scores in ``run_dir`` are of another network; and what ``importance`` raises.
    """
    if importance is None:
        return
    recorded = (resumes or not is_main_process()) and (run_dir / IMPORTANCE_FILE).is_file()
    if recorded:
        scores = read_scores_of(supernet, run_dir / IMPORTANCE_FILE, setting=f"run_dir={run_dir}")
    else:
        scores = importance(supernet, WhenAsked(batches))
    if not recorded and is_main_process():
        write_scores(scores, run_dir, method=repr(importance), supernet=supernet)
    supernet.sort(scores)


@dataclass(frozen=True)
class WhenAsked:
    """Batches that are made when someone goes through them: a method that needs no data asks for none."""

    make: Callable[[], Batches]

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        return iter(self.make())
