"""Timing passes of a causal language model: CUDA events on a GPU, a monotonic clock on a CPU.

Prefill is one pass over (batch, sequence) tokens without a cache; decode is one pass over (batch, 1) tokens after a
key/value cache of ``sequence``, of which every pass gets its own copy, made outside of the time. A generation is the
prefill of (batch, sequence) tokens and every decode after it, greedily.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Time:
    """Milliseconds of one run: ``wall_ms`` as the user waits, ``process_ms`` of this process on the CPU's cores.

    On a shared machine the second leaves out what other processes took; with several threads it is their sum.
    """

    wall_ms: float
    process_ms: float


@dataclass(frozen=True)
class Timings:
    """Milliseconds of each repeat, in the order of the runs."""

    milliseconds: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return float(np.median(self.milliseconds))

    @property
    def spread_ms(self) -> float:
        """Interquartile range."""
        low, high = np.percentile(self.milliseconds, [25, 75])
        return float(high - low)


@dataclass(frozen=True)
class Pass:
    """A forward pass that can be repeated: ``run(prepare())``."""

    prepare: Callable[[], Any]
    run: Callable[[Any], Any]

    @classmethod
    def of(cls, model: PreTrainedModel, tokens: Tensor, phase: Phase, cache: Any = None) -> Pass:
        """Of ``tokens`` (batch, sequence); the decoding pass makes its cache from them where none is given."""
        if phase == "prefill":
            return cls(lambda: None, lambda _: model(input_ids=tokens, use_cache=False))
        held = cache if cache is not None else model(input_ids=tokens, use_cache=True).past_key_values
        last = tokens[:, -1:]
        return cls(lambda: copy.deepcopy(held), lambda own: model(input_ids=last, past_key_values=own, use_cache=True))

    @classmethod
    def generating(cls, model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> Pass:
        """``new_tokens`` after a ``prompt`` (batch, sequence), every time as many, for nothing ends a sequence; ``run``
        gives them, (batch, new_tokens)."""

        def run(cache: Any) -> Tensor:
            written = [prompt]
            for _ in range(new_tokens):
                out = model(input_ids=written[-1], past_key_values=cache, use_cache=True)
                written.append(out.logits[:, -1:].argmax(-1))
                cache = out.past_key_values
            return torch.cat(written[1:], dim=1)

        return cls(lambda: None, run)

    def time(self, device: torch.device) -> Time:
        argument = self.prepare()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the copy of the cache is done
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            busy = time.process_time()
            start.record()
            self.run(argument)
            end.record()
            torch.cuda.synchronize(device)
            return Time(start.elapsed_time(end), 1000 * (time.process_time() - busy))
        busy, begin = time.process_time(), time.perf_counter()
        self.run(argument)
        wall = time.perf_counter() - begin
        return Time(1000 * wall, 1000 * (time.process_time() - busy))


def interleaved(
    passes: Sequence[Pass],
    device: torch.device,
    *,
    warmup: int,
    rounds: int,
    rng: np.random.Generator | None = None,
) -> list[list[Time]]:
    """The times of each pass, (passes, rounds): one of every pass in a round, so that what slows a machine for a while
    falls on all alike. ``rng`` draws the order in a round; None keeps that of ``passes``. ``warmup`` rounds before are
    not timed."""
    for _ in range(warmup):
        for forward in passes:
            forward.run(forward.prepare())
    times: list[list[Time]] = [[] for _ in passes]
    for _ in range(rounds):
        for index in range(len(passes)) if rng is None else rng.permutation(len(passes)):
            times[index].append(passes[index].time(device))
    return times


def tokens_to_time(model: PreTrainedModel, batch_size: int, sequence_length: int) -> Tensor:
    """(batch, sequence) token ids on the model's device: 0, 1, 2, ..."""
    shape = (batch_size, sequence_length)
    return torch.arange(shape[0] * shape[1], device=model.device).reshape(shape) % model.config.vocab_size


def refuse_too_long(model: PreTrainedModel, sequence_length: int, phase: Phase, setting: str) -> None:
    """Raises ValueError where the model has fewer positions; ``setting`` is the node that ``sequence_length`` is of."""
    positions, extra = model.config.max_position_embeddings, int(phase == "decode")
    needed = sequence_length + extra
    if needed > positions:
        raise ValueError(
            f"{setting}.sequence_length={sequence_length} ({phase}) needs {needed} positions, the model has "
            f"{positions}: set {setting}.sequence_length={positions - extra} or less"
        )


def refuse_absent(device: str | None, setting: str) -> None:
    """Raises ValueError for what torch knows no device by, and for a GPU that is not there; ``setting`` names it."""
    try:
        kind = None if device is None else torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"{setting}={device} is no device: set it to cpu, cuda or null") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{setting}={device}: there is no CUDA device here; set it to cpu or null")


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """As many threads of a CPU inside the block; None leaves the process's."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
