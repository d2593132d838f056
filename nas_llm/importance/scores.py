"""Saved importance scores: ``importance.safetensors``, one tensor per axis, and whose they are in its metadata.

Scores belong to the units of one network as they lie in its weights: of another network, or of the same one after
sorting or training, they would sort by nothing. So the file says the family, the sizes of all axes and a fingerprint of
the weights that were scored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nas_llm.atomic_files import atomic_path
from nas_llm.models.fingerprint import fingerprint
from nas_llm.models.supernet import Supernet
from nas_llm.run_directory import IMPORTANCE_FILE

_MEND = f"name a run's {IMPORTANCE_FILE}, or score this network anew, as with importance=activation"


def write_scores(scores: Mapping[str, Tensor], folder: Path, *, method: str, supernet: Supernet) -> None:
    """Writes ``folder/importance.safetensors`` whole or not at all.

    Args:
        scores: of the units as they lie in ``supernet`` now, before it is sorted by them.
        folder: the run directory.
        method: how the scores were made, in words.
        supernet: the network that was scored.
    """
    from safetensors.torch import save_file

    with atomic_path(folder / IMPORTANCE_FILE) as temporary:
        save_file(
            {key: value.contiguous() for key, value in scores.items()},
            temporary,
            metadata={"method": method, **identity(supernet)},
        )


def refuse_not_finite(scores: Mapping[str, Tensor], supernet: Supernet) -> None:
    """Refuses scores by which nothing can be sorted, and says what of the network they come from.

    Raises:
        ValueError: a score is not finite; the first weight that is not is named.
    """
    if all(bool(torch.isfinite(values).all()) for values in scores.values()):
        return
    path = f"={supernet.model.name_or_path}" if supernet.model.name_or_path else ""
    for name, weight in supernet.model.named_parameters():
        lost = weight.numel() - int(torch.isfinite(weight).sum())
        if lost:
            raise ValueError(
                f"model.path{path}: {lost} of the {weight.numel()} values of {name} are not finite, so that its units "
                "cannot be sorted by importance: set model.path to a network without such weights"
            )
    key = next(key for key, values in scores.items() if not torch.isfinite(values).all())
    raise ValueError(
        f"importance: the scores of {key} are not finite, though every weight of model.path{path} is: choose another "
        "method, as importance=magnitude, or a wider model.dtype=float32"
    )


def read_scores(folder: Path) -> dict[str, Tensor]:
    """The scores that the run in ``folder`` was sorted by, in the order of the unsorted network.

    Raises:
        ValueError: there are none, or the file is damaged.
    """
    return _read(folder / IMPORTANCE_FILE, f"run_dir={folder}")[0]


def read_scores_of(supernet: Supernet, path: Path, *, setting: str) -> dict[str, Tensor]:
    """The scores in a file, which must be of this network as it lies now. ``setting``: what named the file, for errors.

    Raises:
        ValueError: there is no such file, it holds no scores, or they are of another network.
    """
    scores, recorded = _read(path, setting)
    for key, value in identity(supernet).items():
        if key not in recorded:
            raise ValueError(f"{setting}: {path} does not say of which network its scores are; {_MEND}")
        if recorded[key] != value:
            raise ValueError(
                f"{setting}: the scores in {path} are of another network, {key} {_short(recorded[key])} there and "
                f"{_short(value)} here; set model.path to the network that was scored, or {_MEND}"
            )
    return scores


def recorded_method(path: Path, *, setting: str) -> str:
    """How the scores of a file were made, in words; empty where it does not say.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    return _read(path, setting)[1].get("method", "")


def identity(supernet: Supernet) -> dict[str, str]:
    """The network whose units are scored: its family, the sizes of its axes, and a fingerprint of its weights."""
    full = supernet.largest()
    shapes = [layer.shape for layer in full.layers]
    axes = {"hidden": full.hidden, "layers": shapes if len(set(shapes)) > 1 else [len(shapes), *shapes[0]]}
    return {"family": supernet.family, "axes": json.dumps(axes), "weights": fingerprint(supernet)}


def _read(path: Path, setting: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Scores and metadata."""
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        inside = path / IMPORTANCE_FILE
        raise ValueError(f"{setting} is a folder; " + (f"name {inside} in it" if inside.is_file() else _MEND))
    if not path.is_file():
        raise ValueError(f"{setting}: there is no file {path}; {_MEND}")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{setting}: {path} is no safetensors file, or a damaged one; {_MEND}") from error


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:70]}..."
