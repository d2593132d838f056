"""Predicted against measured latency of complete networks of operators: how far the look-up table can be trusted.

Errors are predicted / measured - 1. The teacher is measured beside the networks, and drift = measured / predicted of
it says how much slower the machine is now than when the table was made. Of the ``relative`` errors both are fractions
of the teacher's, which is to say that predictions are multiplied by the drift: they are of the table's structure alone,
and budgets are such fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nas_llm.models.operator_assembly import Make, assemble
from nas_llm.models.supernet import Supernet
from nas_llm.models.timing import refuse_too_long, threads
from nas_llm.operator_network import OperatorNetwork
from nas_llm.operators.latency_measurement import LatencyMeasurement, even, untrained
from nas_llm.operators.latency_table import CLOCKS, Clock, LatencyTable


@dataclass(frozen=True)
class Comparison:
    """One network by one clock; ``spread_ms`` is half of the range of the middle half of the measured times."""

    id: str
    clock: Clock
    predicted_ms: float
    measured_ms: float
    spread_ms: float
    relative_error: float

    @property
    def error(self) -> float:
        return self.predicted_ms / self.measured_ms - 1


def compare(
    supernet: Supernet,
    networks: Sequence[OperatorNetwork],
    table: LatencyTable,
    measurement: LatencyMeasurement,
    rng: np.random.Generator,
    make: Make | None = None,
) -> list[Comparison]:
    """One row per clock and network, the teacher before the others; all are held in memory at once.

    Args:
        supernet: the teacher.
        networks: to be assembled and timed in interleaved rounds.
        table: what predicts.
        measurement: how it was measured.
        rng: draws the order in a round.
        make: as in ``assemble``; None makes modules without trained weights, which take as long.

    Raises:
        ValueError: the table is another teacher's or holds for other conditions, or lacks an operator.
    """
    table.refuse_other_teacher(supernet)
    table.conditions.refuse_other(measurement.conditions(supernet), "the table of latencies", "measure it again")
    every = [OperatorNetwork.teacher(supernet.largest().num_layers), *networks]
    predicted = {clock: [table.predicted_ms(network, clock) for network in every] for clock in CLOCKS}
    rows = []
    for clock, measured in timed(supernet, every, measurement, rng, make).items():
        low, middle, high = np.percentile(measured, [25, 50, 75], axis=0)
        for i, network in enumerate(every):
            ms = predicted[clock][i]
            relative = (ms / predicted[clock][0]) / (middle[i] / middle[0]) - 1
            spread = float(high[i] - low[i]) / 2
            rows.append(Comparison(network.id, clock, ms, float(middle[i]), spread, float(relative)))
    return rows


def timed(
    supernet: Supernet,
    networks: Sequence[OperatorNetwork],
    measurement: LatencyMeasurement,
    rng: np.random.Generator,
    make: Make | None = None,
) -> dict[Clock, np.ndarray]:
    """Milliseconds (rounds, networks) of whole networks in interleaved rounds, slow rounds made even, by clock.
    Arguments as of :func:`compare`.

    Raises:
        ValueError: a sequence beyond the model's positions.
    """
    refuse_too_long(supernet.model, measurement.sequence_length, measurement.phase, "latency")
    device = measurement.device_of(supernet)
    with torch.inference_mode(), threads(measurement.threads):
        models = [assemble(supernet, network, make or untrained(supernet)).to(device).eval() for network in networks]  # type: ignore[arg-type]
        times = even(measurement.timed([measurement.whole_pass(model) for model in models], device, rng))
    return dict(zip(CLOCKS, times, strict=True))


def teacher_ms(supernet: Supernet, measurement: LatencyMeasurement, rng: np.random.Generator) -> dict[Clock, float]:
    """The median latency of the whole teacher as the machine is now, by clock: a few of its passes, where a table takes
    those of all operators."""
    teacher = OperatorNetwork.teacher(supernet.largest().num_layers)
    return {clock: float(np.median(ms)) for clock, ms in timed(supernet, [teacher], measurement, rng).items()}


def as_text(rows: Sequence[Comparison]) -> str:
    """The rows as a table, the drift of the machine, and the median error of the networks behind the teacher."""
    lines = [f"{'network':14}{'clock':9}{'predicted ms':>14}{'measured ms':>14}{'+-':>8}{'error':>9}{'relative':>10}"]
    for row in rows:
        numbers = f"{row.predicted_ms:14.3f}{row.measured_ms:14.3f}{row.spread_ms:8.3f}"
        lines.append(f"{row.id:14}{row.clock:9}{numbers}{row.error:9.1%}{row.relative_error:10.1%}")
    for clock in CLOCKS:
        teacher, *networks = (row for row in rows if row.clock == clock)
        if networks:
            error = np.median([abs(row.error) for row in networks])
            relative = np.median([abs(row.relative_error) for row in networks])
            drift = teacher.measured_ms / teacher.predicted_ms
            lines.append(
                f"{clock}: median error {relative:.1%} of predictions times {drift:.3f}, which is how much slower the "
                f"teacher is now than in the table; {error:.1%} as they are"
            )
    return "\n".join(lines)
