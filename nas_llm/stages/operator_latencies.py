"""Latencies of operators for a search: measured once, kept in the run directory with the conditions that they hold for,
and compared with those of the networks that were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from nas_llm.config import build
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Operator, OperatorNetwork
from nas_llm.operators import Place
from nas_llm.operators.cost_table import CostTable
from nas_llm.operators.latency_comparison import as_text, compare
from nas_llm.operators.latency_measurement import LatencyMeasurement
from nas_llm.operators.latency_table import LatencyTable
from nas_llm.operators.library import Library
from nas_llm.run_directory import OPERATORS, write_text


def latencies(
    cfg: DictConfig, run_dir: Path, supernet: Supernet, operators: Mapping[Place, Sequence[Operator]], *, asked: bool
) -> dict[str, CostTable]:
    """Latencies of the operators: measured where a budget has ``asked`` for them, else those that are known, if any.

    Raises:
        ValueError: a table that was given, or that is asked for, holds for something else.
    """
    measurement: LatencyMeasurement = build(cfg.latency)
    given, force = cfg.latency_table.path, cfg.latency_table.force
    file = Path(given or latency_file(run_dir, measurement))
    table = None
    if given is not None or file.exists():
        conditions = measurement.conditions(supernet)
        if not asked and given is None and not force:
            differing = LatencyTable.load(file, None).conditions.differing(conditions)
            if differing:
                print(f"no latencies are shown: {file} was measured with {differing}")
                return {}
        anew = f"delete {file}" if given is None else "set latency_table.path=null"
        table = LatencyTable.load(file, conditions, force=force, anew=anew)
        table.refuse_other_teacher(supernet)
    if given is None and (table is None or not table.covers(operators)):
        if not asked:
            return {}
        print(f"latencies on {measurement.conditions(supernet).device}:", end=" ", flush=True)
        table = measurement(supernet, operators, np.random.default_rng(cfg.search.seed), print)
        table.save(file)
    assert table is not None
    return {"latency": replace(table.costs(operators), name="latency")}


def compared(
    cfg: DictConfig, run_dir: Path, supernet: Supernet, networks: Sequence[OperatorNetwork], library: Library
) -> str:
    """Latencies of the chosen networks, as the table predicts them and as they are; also in latency_check.txt."""
    measurement: LatencyMeasurement = build(cfg.latency)
    table = LatencyTable.load(latency_file(run_dir, measurement), None)
    distinct = list(dict.fromkeys(networks))
    rng = np.random.default_rng(cfg.search.seed)
    text = as_text(compare(supernet, distinct, table, measurement, rng, library.make(supernet)))
    write_text(run_dir / "latency_check.txt", text + "\n")
    return text


def latency_file(run_dir: Path, measurement: LatencyMeasurement) -> Path:
    """Where the latencies of operators are kept that were measured so."""
    sizes = f"{measurement.batch_size}x{measurement.sequence_length}"
    return run_dir / OPERATORS / f"latency-{measurement.phase}-{sizes}.json"
