"""Latencies of operators for a search: measured once, kept in the run directory with the conditions that they hold for,
and compared with those of the networks that were chosen.

A fraction of the teacher's latency means the same however fast the machine is. A budget in ms does not: where a table
of an earlier search is taken for one, the teacher is timed again, and all latencies are multiplied by

    drift = latency of the teacher now / what the table predicts of it,

so that networks keep the budget on the machine as it is now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from nas_llm.atomic_files import write_text
from nas_llm.config import build
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Operator, OperatorNetwork
from nas_llm.operators import Place
from nas_llm.operators.budgets import is_absolute, refuse_loose_latency
from nas_llm.operators.cost_table import CostTable
from nas_llm.operators.latency_comparison import as_text, compare, teacher_ms
from nas_llm.operators.latency_measurement import LatencyMeasurement
from nas_llm.operators.latency_table import CLOCKS, LatencyTable
from nas_llm.operators.library import Library
from nas_llm.run_directory import OPERATORS

LARGE_DRIFT = 0.25  # beyond which a table is better measured again: what slows a machine does not slow all alike


@dataclass(frozen=True)
class Latencies:
    """``table``: as it holds for the budgets; ``drift``: by which its wall-clock times were multiplied for them, None
    where they are as measured."""

    table: LatencyTable
    drift: float | None = None

    def costs(self, operators: Mapping[Place, Sequence[Operator]]) -> CostTable:
        """Under the name of the budget on them."""
        return replace(self.table.costs(operators), name="latency")


def latencies(
    cfg: DictConfig,
    run_dir: Path,
    supernet: Supernet,
    operators: Mapping[Place, Sequence[Operator]],
    macs: CostTable,
    budgets: Sequence[float],
) -> Latencies | None:
    """Latencies of the operators: measured where there are ``budgets`` on them, else those that are known, if any.

    Args:
        operators: of the pool.
        macs: what they compute.
        budgets: fractions of the teacher's latency, or ms.

    Raises:
        ValueError: a table that was given, or that is asked for, holds for something else; a budget limits nothing, as
            far as that is known before operators are measured.
    """
    measurement: LatencyMeasurement = build(cfg.latency)
    given, force = cfg.latency_table.path, cfg.latency_table.force
    file = Path(given or latency_file(run_dir, measurement))
    in_ms = [budget for budget in budgets if is_absolute(budget)]
    rng = np.random.default_rng(cfg.search.seed)
    anew = f"delete {file}" if given is None else "set latency_table.path=null"
    table = None
    if given is not None or file.exists():
        conditions = measurement.conditions(supernet)
        if not budgets and given is None and not force:
            differing = LatencyTable.load(file, None).conditions.differing(conditions)
            if differing:
                print(f"no latencies are shown: {file} was measured with {differing}")
                return None
        table = LatencyTable.load(file, conditions, force=force, anew=anew)
        table.refuse_other_teacher(supernet)
    if given is None and (table is None or not table.covers(operators)):
        if not budgets:
            return None
        if in_ms:
            refuse_loose_latency(max(in_ms), teacher_ms(supernet, measurement, rng)["wall"], macs)
        print(f"latencies on {measurement.conditions(supernet).device}:", end=" ", flush=True)
        table = measurement(supernet, operators, rng, print)
        table.save(file)
        return Latencies(table)
    assert table is not None
    if not in_ms:
        return Latencies(table)
    if force:
        print(f"budgets in ms are held to {file} as it is, for latency_table.force=true; the teacher is not timed")
        return Latencies(table)
    return as_of_now(table, supernet, measurement, rng, str(file), anew)


def as_of_now(
    table: LatencyTable,
    supernet: Supernet,
    measurement: LatencyMeasurement,
    rng: np.random.Generator,
    name: str,
    anew: str,
) -> Latencies:
    """A table of the same conditions, with the teacher's latency as it is now. Prints how far that is from the table,
    by its ``name``, and where it is far, how a user has it made ``anew``."""
    teacher, now = OperatorNetwork.teacher(len(table.teacher)), teacher_ms(supernet, measurement, rng)
    factors = {clock: now[clock] / table.predicted_ms(teacher, clock) for clock in CLOCKS}
    drift = factors["wall"]
    print(
        f"the teacher takes {now['wall']:.3f} ms now, {drift:.3f} of what {name} says of it: for budgets in ms all "
        f"latencies are multiplied by that"
        + (f"; that far from it they are better measured again: {anew}" if abs(drift - 1) > LARGE_DRIFT else "")
    )
    return Latencies(table.scaled(factors), drift)


def compared(
    cfg: DictConfig,
    run_dir: Path,
    supernet: Supernet,
    networks: Sequence[OperatorNetwork],
    table: LatencyTable,
    library: Library,
) -> str:
    """Latencies of the chosen networks, as the table predicts them and as they are; also in latency_check.txt."""
    measurement: LatencyMeasurement = build(cfg.latency)
    distinct = list(dict.fromkeys(networks))
    rng = np.random.default_rng(cfg.search.seed)
    text = as_text(compare(supernet, distinct, table, measurement, rng, library.make(supernet)))
    write_text(run_dir / "latency_check.txt", text + "\n")
    return text


def latency_file(run_dir: Path, measurement: LatencyMeasurement) -> Path:
    """Where the latencies of operators are kept that were measured so."""
    sizes = f"{measurement.batch_size}x{measurement.sequence_length}"
    return run_dir / OPERATORS / f"latency-{measurement.phase}-{sizes}.json"
