"""The metrics of a run, in `results.json`: what a stage measures is merged into what the others have."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nas_llm.atomic_files import read_json, write_json
from nas_llm.run_directory import RESULTS_FILE

METRIC_IDENTITY = (
    "name",
    "architecture",
    "split",
    "data",
    "variant",
    "model",
    "num_fewshot",
)  # a metric that agrees in these replaces the older one


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The metrics of `results.json`; empty where there is none yet."""
    path = Path(run_dir) / RESULTS_FILE
    return read_json(path, "metrics")["metrics"] if path.exists() else []


def add_metrics(
    run_dir: str | Path,
    metrics: Iterable[Mapping[str, Any]],
    *,
    without: Callable[[Mapping[str, Any]], bool] | None = None,
) -> None:
    """Merge metrics into `results.json`; one that agrees with an older one in METRIC_IDENTITY takes its place, and
    older ones that `without` tells go.

    Each metric is `{"name", "value", "unit", "architecture" or "model", "split", "samples", ...}`; a value that is not
    finite becomes null.
    """
    older = [metric for metric in read_metrics(run_dir) if without is None or not without(metric)]
    merged = {_identity(metric): metric for metric in older}
    for metric in metrics:
        merged[_identity(metric)] = {key: _finite(value) for key, value in metric.items()}
    write_json(Path(run_dir) / RESULTS_FILE, {"metrics": list(merged.values())})


def _identity(metric: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(metric.get(key) for key in METRIC_IDENTITY)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
