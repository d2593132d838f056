"""What an analysis looks at and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from nas_llm.models.supernet import Supernet
from nas_llm.search_space import SearchSpace


@dataclass(frozen=True)
class Subject:
    """A network, its search space and its data; what takes time is made when it is asked for.

    Args:
        load: a fresh super-network of ``model.path``, neither sorted nor trained, on its device.
        space_of: the search space ``search_space`` of a super-network, which knows the order of its layers.
        data: the data module ``data``, set up, for a super-network that bounds the sequence length; the same one for
            every network that is asked for.
        tokenizer: of the network.
        run_dir: where tables and pictures go.
    """

    load: Callable[[], Supernet]
    space_of: Callable[[Supernet], SearchSpace]
    data: Callable[[Supernet], Any]
    tokenizer: PreTrainedTokenizerBase
    run_dir: Path


@dataclass(frozen=True)
class Findings:
    """``table``: for people; ``metrics``: for ``results.json``; ``files``: what was written."""

    table: str
    metrics: Sequence[Mapping[str, Any]] = ()
    files: Sequence[Path] = ()


class Analysis(Protocol):
    """A frozen dataclass; its fields are its YAML."""

    def __call__(self, subject: Subject) -> Findings:
        """Measure, write CSV and pictures to ``subject.run_dir``, and say what was found."""
