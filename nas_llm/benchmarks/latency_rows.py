"""What `nas-llm bench latency` times, and one of its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedModel

from nas_llm.models.timing import Pass, tokens_to_time

Measure = Literal["prefill", "decode", "throughput"]
UNITS: Mapping[Measure, str] = {"prefill": "ms", "decode": "ms/token", "throughput": "tokens/s"}
NAMES: Mapping[Measure, str] = {"prefill": "prefill_latency", "decode": "decode_latency", "throughput": "throughput"}


@dataclass(frozen=True)
class Workload:
    """What is timed: ``new_tokens`` after ``prompt`` tokens of each of ``batch`` sequences."""

    measure: Measure
    batch: int
    prompt: int
    new_tokens: int = 0

    @property
    def positions(self) -> int:
        """That the model reads; the last new token is not read again."""
        return self.prompt + {"prefill": 0, "decode": 1, "throughput": self.new_tokens - 1}[self.measure]

    @property
    def tokens(self) -> int:
        """That one pass reads (prefill) or writes."""
        return self.batch * {"prefill": self.prompt, "decode": 1, "throughput": self.new_tokens}[self.measure]

    @property
    def text(self) -> str:
        out = f" in, {self.new_tokens} out" if self.measure == "throughput" else ""
        return f"{self.measure}, {self.batch} x {self.prompt}{out}"

    def on(self, model: PreTrainedModel) -> Pass:
        tokens = tokens_to_time(model, self.batch, self.prompt)
        if self.measure == "throughput":
            return Pass.generating(model, tokens, self.new_tokens)
        return Pass.of(model, tokens, self.measure)


@dataclass(frozen=True)
class LatencyRow:
    """One model at one workload; ``value`` and ``spread`` in the measure's unit, ``ratio`` to the first model's."""

    workload: Workload
    subject: str
    identity: Mapping[str, str]
    conditions: Mapping[str, Any]
    value: float
    spread: float
    ratio: float
    rounds: int
    peak_mib: float | None = None
    joules_per_token: float | None = None

    def cells(self) -> Mapping[str, str]:
        return {
            "measure": self.workload.text,
            "model": self.subject,
            "median": _digits(self.value),
            "IQR": _digits(self.spread),
            "unit": UNITS[self.workload.measure],
            "ratio": f"{self.ratio:.3f}",
            "peak MiB": "-" if self.peak_mib is None else f"{self.peak_mib:.1f}",
            "J/token": "-" if self.joules_per_token is None else f"{self.joules_per_token:.4f}",
        }

    def metrics(self) -> list[dict[str, Any]]:
        measure = self.workload.measure
        size = {"batch_size": self.workload.batch, "prompt_tokens": self.workload.prompt}
        size |= {"new_tokens": self.workload.new_tokens} if measure == "throughput" else {}
        of = {**self.identity, **size, **self.conditions}
        of["variant"] = ", ".join([self.workload.text, *map(str, self.conditions.values())])
        timed = {"samples": self.rounds, "spread": self.spread, "ratio": self.ratio}
        found = [{"name": NAMES[measure], "value": self.value, "unit": UNITS[measure], **timed, **of}]
        if self.peak_mib is not None:
            found.append({"name": f"{measure}_peak_memory", "value": self.peak_mib, "unit": "MiB", "samples": 1, **of})
        if self.joules_per_token is not None:
            energy = {"name": f"{measure}_energy", "value": self.joules_per_token, "unit": "J/token", "samples": 1}
            found.append({**energy, **of})
        return found


def _digits(number: float) -> str:
    return f"{number:.3f}" if number < 100 else f"{number:.1f}"
