"""Before training: score the units of the network on calibration data and sort it, or sort it as the run had it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from nas_llm.importance.scores import FILE_NAME, read_scores, write_scores
from nas_llm.models.supernet import Supernet
from nas_llm.run_directory import is_main_process

Importance = Callable[[Supernet, Iterable[Mapping[str, Tensor]]], dict[str, Tensor]]


def sort_by_importance(
    supernet: Supernet,
    importance: Importance | None,
    batches: Callable[[], Iterable[Mapping[str, Tensor]]],
    run_dir: Path,
    *,
    resumes: bool,
) -> None:
    """Sort ``supernet``; None leaves it as it is.

    A resumed run, and the ranks that the first one starts, take the scores that lie in ``run_dir``: the order of the
    units is then the same to the last tie. Otherwise the scores are computed, and the first rank writes them.
    """
    if importance is None:
        return
    recorded = (resumes or not is_main_process()) and (run_dir / FILE_NAME).is_file()
    scores = read_scores(run_dir) if recorded else importance(supernet, batches())
    if not recorded and is_main_process():
        write_scores(scores, run_dir, method=type(importance).__name__)
    supernet.sort(scores)
