"""The networks that `nas-llm evaluate` measures: sub-networks, active in a run's super-network, or a saved model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nas_llm.architecture import Architecture
from nas_llm.metrics import read_metrics
from nas_llm.models.fingerprint import fingerprint
from nas_llm.models.loading import from_pretrained
from nas_llm.models.model_directory import ADAPTER, resolve
from nas_llm.models.supernet import Supernet
from nas_llm.models.tokenizer import load_tokenizer
from nas_llm.peft.files import SETTINGS
from nas_llm.peft.saving import load_supernet as load_adapted
from nas_llm.run_directory import RESULTS_FILE
from nas_llm.stages.export import SUBNETS
from nas_llm.stages.finished_run import ARCHIVE, FinishedRun
from nas_llm.stages.search import device, load_supernet

if TYPE_CHECKING:
    from nas_llm.search_space import SearchSpace

MEND = "or measure anew with evaluate.replace=true"


@dataclass(frozen=True)
class Subject:
    """One network.

    shown: its name in tables.
    label: of its files in the run directory.
    where: what tells its metrics from those of others.
    """

    shown: str
    label: str
    architecture: Architecture
    where: Mapping[str, str]


@dataclass(frozen=True)
class Subjects:
    """Networks that lie in one: each is `activated` in `supernet`, which a saved model is the largest network of."""

    supernet: Supernet
    tokenizer: PreTrainedTokenizerBase
    members: tuple[Subject, ...]
    space: SearchSpace | None = None

    @contextmanager
    def activated(self, subject: Subject) -> Iterator[PreTrainedModel]:
        with self.supernet.activate(subject.architecture) as model:
            yield model

    @cached_property
    def network(self) -> str:
        """Which weights these are, in 16 hex digits."""
        return fingerprint(self.supernet)

    @property
    def signature(self) -> dict[str, str]:
        """What metrics of a saved model say beside its name, which others may have too; those of a run's sub-networks
        need nothing."""
        return {"network": self.network} if any("model" in each.where for each in self.members) else {}


def chosen_subjects(cfg: DictConfig) -> Subjects:
    """The saved model of ``evaluate.model_path``; else sub-networks of the run: by ``architecture`` or a budget one;
    else the largest, every exported one (the middle one where the run was not searched, or nothing of it exported) and
    the smallest.

    Raises:
        ValueError: there is no such model, run or sub-network.
    """
    return _of_run(cfg) if cfg.evaluate.model_path is None else _saved(cfg)


def refuse_other_networks(run_dir: Path, subjects: Subjects) -> None:
    """
    Raises:
        ValueError: the run directory has results of another network by one of these names, with which those of this
            one would be mixed.
    """
    for subject in subjects.members:
        for metric in read_metrics(run_dir):
            if is_of_another(metric, subject, subjects.network):
                on = f" on {metric['data']}" if "data" in metric else ""
                there = f"{run_dir / RESULTS_FILE} has {metric['name']}{on} of another network called {subject.label}"
                raise ValueError(
                    f"{there} (weights {metric['network']}, here {subjects.network}): choose another run_dir="
                    f"{other_name(subject)}, {MEND}"
                )


def is_of_another(metric: Mapping[str, Any], subject: Subject, network: str) -> bool:
    """Whether a metric has the subject's name and is known to be of other weights than ``network``."""
    named = all(metric.get(key) == value for key, value in subject.where.items())
    return named and metric.get("network", network) != network


def other_name(subject: Subject) -> str:
    """What a refusal offers beside another run_dir=."""
    return " or evaluate.name=" if "model" in subject.where else ""


def _of_run(cfg: DictConfig) -> Subjects:
    run = FinishedRun(Path(cfg.run_dir))
    members = [
        Subject(name, architecture.id, architecture, {"architecture": architecture.id})
        for name, architecture in _chosen(run, cfg).items()
    ]
    return Subjects(load_supernet(run.run_dir, cfg), run.tokenizer, tuple(members), run.space)


def _chosen(run: FinishedRun, cfg: DictConfig) -> dict[str, Architecture]:
    if any(value is not None for value in (cfg.architecture, cfg.max_params, cfg.max_latency_ms)):
        architecture = run.choose(cfg.architecture, cfg.max_params, cfg.max_latency_ms)
        return {cfg.architecture or architecture.id: architecture}
    searched = (run.run_dir / ARCHIVE).exists()
    known = {evaluation.id: evaluation.architecture for evaluation in run.evaluations} if searched else {}
    exported = sorted(path.name for path in (run.run_dir / SUBNETS).glob("*") if path.name in known)
    between = {id: known[id] for id in exported} or {"middle": run.space.middle()}
    return {"largest": run.space.largest(), **between, "smallest": run.space.smallest()}


def _saved(cfg: DictConfig) -> Subjects:
    path, setting = str(cfg.evaluate.model_path), "evaluate.model_path"
    label = _label(cfg)
    try:
        supernet = _with_adapters(path, cfg)
    except ValueError as error:
        raise ValueError(str(error).replace("model.path=", f"{setting}=")) from error
    tokenizer = load_tokenizer(path, setting=setting)
    member = Subject(label, label, supernet.largest(), {"model": label})
    return Subjects(supernet.to(device(cfg)).eval(), tokenizer, (member,))


def _with_adapters(path: str, cfg: DictConfig) -> Supernet:
    """In the precision of its file, with the adapters that a run's super-network has beside it."""
    attention = cfg.model.attn_implementation
    folder = Path(resolve(path)) / ADAPTER
    if (folder / SETTINGS).is_file():
        return load_adapted(folder.parent, attn_implementation=attention)
    if folder.is_dir():
        raise ValueError(
            f"model.path={path} has low-rank adapters beside its weights, which would be left out: measure the "
            "sub-network in its run (architecture=ID), or export it with export.adapters=merged"
        )
    return Supernet(from_pretrained(path, attn_implementation=attention))


def _label(cfg: DictConfig) -> str:
    """A name that a file can have."""
    path, name = str(cfg.evaluate.model_path), cfg.evaluate.name
    if name is None:
        folder = Path(path).expanduser()
        return folder.resolve().name if folder.is_dir() else path.replace("/", "--")
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"evaluate.name={name} is no name of a file: write one without / and . in front")
    return str(name)
