"""The importance scores of a run as its pictures need them, read from `importance.safetensors` without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas_llm.run_directory import IMPORTANCE_FILE

Values = np.ndarray  # float64
PER_LAYER = ("ffn", "kv_groups", "heads_per_group")


@dataclass(frozen=True)
class Scores:
    """Higher = more important; units are in the places that they had when they were scored. What a method does not
    score is None or empty.

    Args:
        method: how they were made, in words.
        hidden: (hidden,)
        ffn, groups: layer -> (units,)
        heads: layer -> (groups, heads per group)
        layers: (depth,)
    """

    method: str
    hidden: Values | None
    ffn: Mapping[int, Values]
    groups: Mapping[int, Values]
    heads: Mapping[int, Values]
    layers: Values | None

    @property
    def attention(self) -> Values:
        """(layers, heads); not a number where layers have fewer.

        Methods leave heads out where each has keys and values of its own: they are the groups then.
        """
        found = self.heads or self.groups
        return _rows({layer: values.flatten() for layer, values in found.items()})

    @property
    def heads_per_group(self) -> int:
        """1 where every head has keys and values of its own, or heads are not scored."""
        return max((values.shape[1] for values in self.heads.values()), default=1)

    @property
    def grouped(self) -> Values:
        """(layers, groups)"""
        return _rows(self.groups)


def read(run_dir: Path) -> Scores | None:
    """The scores of a run; None where it has none.

    Raises:
        ValueError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = run_dir / IMPORTANCE_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            method = (file.metadata() or {}).get("method", "")
            tensors = {key: file.get_tensor(key).astype(np.float64) for key in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: delete it, and the report leaves importance out") from error
    per_layer: dict[str, dict[int, Values]] = {axis: {} for axis in PER_LAYER}
    for key, value in tensors.items():
        if key.startswith("layers."):
            _, layer, axis = key.split(".")
            per_layer[axis][int(layer)] = value
    ffn, groups, heads = (dict(sorted(per_layer[axis].items())) for axis in PER_LAYER)
    return Scores(method, tensors.get("hidden"), ffn, groups, heads, tensors.get("layers"))


def falling(values: Values, points: int, *, positive: bool = False) -> list[tuple[float, float]]:
    """(place, score) from the most important unit down, at most ``points`` of them, both ends among them; only those
    above zero where a logarithmic axis is to show them.
    """
    ordered = np.sort(values[values > 0] if positive else values)[::-1]
    places = np.unique(np.linspace(0, len(ordered) - 1, min(points, len(ordered))).round().astype(int))
    return [(float(place + 1), float(ordered[place])) for place in places]


def spreads(values: Values) -> bool:
    """Whether a logarithmic axis shows them better: none below zero, over more than a factor of 30 without the ends."""
    low, high = np.quantile(values, (0.02, 0.98))
    return bool(values.min() >= 0 and low > 0 and high / low > 30)


def _rows(found: Mapping[int, Values]) -> Values:
    width = max((len(values) for values in found.values()), default=0)
    depth = max(found, default=-1) + 1
    table = np.full((depth, width), np.nan)
    for layer, values in found.items():
        table[layer, : len(values)] = values
    return table
