"""The models that `nas-llm bench latency` times: loaded, on their device, and as they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from nas_llm.models.loading import from_pretrained
from nas_llm.models.model_directory import ADAPTER, resolve

MEBI = 2**20


@dataclass(frozen=True)
class Subject:
    """A model on the device: the name it is shown by, what tells it from others in the results, and where a process of
    its own loads it from (None: it cannot). ``weights_mib`` is what its tensors take on a GPU."""

    name: str
    identity: Mapping[str, str]
    model: PreTrainedModel = field(repr=False)
    path: str | None
    weights_mib: float = 0.0


def load(path: str, dtype: str | None) -> PreTrainedModel:
    """A model in evaluation mode.

    Raises:
        ValueError: there is none, or adapters lie beside its weights, which would be left out.
    """
    if (Path(resolve(path)) / ADAPTER).is_dir():
        raise ValueError(
            f"bench.paths={path} has low-rank adapters beside its weights, which would be left out: export it with "
            "export.adapters=merged"
        )
    try:
        return from_pretrained(path, dtype=dtype).eval()
    except ValueError as error:
        raise ValueError(str(error).replace("model.path=", "bench.paths=", 1)) from error


def on_device(
    name: str,
    identity: Mapping[str, str],
    model: PreTrainedModel,
    path: str | None,
    device: torch.device,
    change: Callable[[PreTrainedModel], object] | None = None,
) -> Subject:
    """A model put on the device, in evaluation mode, and changed there."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    model.to(device).eval()  # type: ignore[arg-type]
    if change is not None:
        change(model)
    after = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    return Subject(name, identity, model, path, (after - before) / MEBI)


def shown_names(paths: Sequence[str]) -> dict[str, str]:
    """A directory's own name, a hub name with -- for its slash; the whole path where several would be alike."""
    short = [Path(path).resolve().name if Path(path).is_dir() else path.replace("/", "--") for path in paths]
    return {path: name if short.count(name) == 1 else path for path, name in zip(paths, short, strict=True)}
