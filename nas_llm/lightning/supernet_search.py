"""The search of a trained super-network in its run directory, after training and by itself.

Values in the archive are reused, so they have to be comparable: the data, the batches and the settings of every
objective are recorded with the run, and others are refused.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from nas_llm.models.supernet import Supernet
from nas_llm.objectives import Objective, Sampled, measure
from nas_llm.run_fingerprints import refuse_mismatch
from nas_llm.search import Search, SearchOutcome, search_run_directory
from nas_llm.search.directory import Log
from nas_llm.search.pareto import COSTS
from nas_llm.search.run import Evaluate

Batch = Mapping[str, torch.Tensor]
SPLIT = "validation"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupernetSearch:
    """Everything a search of a super-network needs but the step.

    Args:
        run_dir: where it is recorded.
        make_search: what asks for architectures, made when the search begins: it may start from some that depend on
            the network as it then is.
        objectives: what is measured.
        batches: of the validation split, which the objectives were built with.
        untrained: loads the network as it was before sorting and training, sparse or quantised as the run's is, for
            the truncation baseline; None leaves that out. Called on every rank, once the front is known.
        settings: name of each objective -> its configuration, compared with what the archive's values were measured
            with.
        progress: show progress bars.
    """

    run_dir: Path
    make_search: Callable[[], Search]
    objectives: Sequence[Objective]
    batches: Sequence[Batch] = field(repr=False)
    untrained: Callable[[], Supernet] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True

    def __call__(self, supernet: Supernet, step: int, log: Log | None = None) -> SearchOutcome:
        """Search `supernet` as it is after optimizer step `step`, or continue from the archive. Collective over ranks.

        `log` takes the hypervolume after every evaluation, on rank 0.

        Raises:
            ValueError: as `search_run_directory`, or the archive's values were measured in another way.
        """
        samples = sum(len(batch["input_ids"]) for batch in self.batches)
        refuse_mismatch(
            self.run_dir,
            {"search samples": samples, **{f"objectives.{name}": value for name, value in self.settings.items()}},
        )
        return search_run_directory(
            self.run_dir,
            self.make_search(),
            partial(measure, self.objectives, supernet),
            units={"params": "parameters", **{objective.name: objective.unit for objective in self.objectives}},
            full=supernet.largest(),
            split=SPLIT,
            samples=samples,
            own_samples={o.name: o.samples for o in self.objectives if isinstance(o, Sampled)},
            untrained=None if self.untrained is None else lambda: self._baseline(supernet),
            step=step,
            progress=self.progress,
            log=log,
        )

    def _baseline(self, supernet: Supernet) -> Evaluate:
        """How well the untrained network does; what a network costs does not depend on its weights."""
        assert self.untrained is not None
        logger.info("truncation baseline: the network as it was before sorting and training")
        original = self.untrained().to(supernet.model.device).eval()
        qualities = [objective for objective in self.objectives if objective.name not in COSTS]
        return partial(measure, qualities, original)


def validation_batches(data: Any, limit: int | float | None = None) -> list[Batch]:
    """The batches that a search measures on, of a data module that is set up; limited as the trainer's validation
    is.
    """
    loader = data.val_dataloader()
    number = limit if limit is None or isinstance(limit, int) else max(1, int(limit * len(loader)))
    return list(islice(loader, number))
