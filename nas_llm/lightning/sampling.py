"""Before training: the grid of sub-networks that a sampler draws from, made once or read as the run had it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from nas_llm.architecture import Architecture
from nas_llm.atomic_files import read_json, write_json
from nas_llm.importance.retained import Retained
from nas_llm.importance.scores import read_scores
from nas_llm.models.magnitude import Magnitude
from nas_llm.models.supernet import Supernet
from nas_llm.objectives import Loss
from nas_llm.objectives.protocol import Batch
from nas_llm.ranks import is_main_process
from nas_llm.run_directory import IMPORTANCE_FILE
from nas_llm.samplers import DrawsCandidates, Grid, Sampler, Scoring
from nas_llm.samplers.candidates import Score, Unprepared
from nas_llm.search_space import SearchSpace

GRID_FILE = "sampling_grid.json"


def scoring_of(
    supernet: Supernet,
    space: SearchSpace,
    batches: Callable[[], Sequence[Batch]],
    importance: Callable[[], Mapping[str, Tensor]],
    *,
    setting: str = "sampler.candidates",
) -> Scoring:
    """The scores that a grid may be calibrated by, of the sorted network; ``batches`` are of calibration data.

    ``importance`` gives the scores that the network was sorted by, ``setting`` is the key of the grid's settings.

    Loss and perplexity rank alike (the one is the logarithm of the other), so that one measurement serves both.
    """

    def by_loss() -> Score:
        loss = Loss(batches())
        return lambda architecture: -loss(supernet, architecture)

    return Scoring(
        space,
        supernet.num_parameters,
        {
            "magnitude": lambda: Magnitude.of(supernet, space),
            "loss": by_loss,
            "perplexity": by_loss,
            "importance": lambda: Retained.of(importance(), supernet.largest()),
        },
        setting,
    )


def prepared_sampler(sampler: Sampler, scoring: Scoring, run_dir: Path, *, resumes: bool) -> Sampler:
    """The sampler with its grid, if it draws from one.

    A resumed run, and the ranks that the first one starts, read the grid that lies in ``run_dir``; otherwise the grid
    is made, and the first rank writes it.
    """
    candidates = unprepared(sampler)
    if candidates is None:
        return sampler
    path = run_dir / GRID_FILE
    if (resumes or not is_main_process()) and path.is_file():
        grid = Grid(tuple(Architecture.from_dict(point) for point in read_json(path)["architectures"]))
    else:
        grid = candidates.prepared(scoring)
        if is_main_process():
            points = [architecture.to_dict() for architecture in grid.architectures]
            sizes = [scoring.num_parameters(architecture) for architecture in grid.architectures]
            write_json(path, {"parameters": sizes, "architectures": points})
    return replace(sampler, candidates=grid)  # type: ignore[type-var]


def unprepared(sampler: Sampler) -> Unprepared | None:
    """The settings of the grid that the sampler needs; None where it needs none, or has it."""
    if isinstance(sampler, DrawsCandidates) and isinstance(sampler.candidates, Unprepared):
        return sampler.candidates
    return None


def recorded_importance(run_dir: Path) -> Mapping[str, Tensor]:
    """The scores that the run was sorted by.

    Raises:
        ValueError: it was not sorted.
    """
    if not (run_dir / IMPORTANCE_FILE).is_file():
        raise unsorted("sampler.candidates")
    return read_scores(run_dir)


def unsorted(setting: str) -> ValueError:
    """What a grid that is calibrated by importance scores is refused with where the network has none."""
    return ValueError(
        f"{setting}.by=importance needs the scores that the network is sorted by, and importance=none has none: set "
        "importance=activation"
    )
