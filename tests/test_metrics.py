"""Metrics merge into `results.json` by what they are about."""

import math
from pathlib import Path

from nas_llm.metrics import add_metrics, read_metrics


def test_metrics_merge_by_what_they_are_about(tmp_path: Path) -> None:
    loss = {"name": "loss", "value": 2.0, "unit": "nats/token", "architecture": "a", "split": "test", "samples": 3}
    add_metrics(tmp_path, [loss, {**loss, "split": "validation"}])
    add_metrics(tmp_path, [{**loss, "value": 1.0}, {**loss, "architecture": "b", "value": math.inf}])
    found = {(metric["architecture"], metric["split"]): metric["value"] for metric in read_metrics(tmp_path)}
    assert found == {("a", "test"): 1.0, ("a", "validation"): 2.0, ("b", "test"): None}
