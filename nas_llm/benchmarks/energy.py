"""The energy that a GPU takes, by the counter of its driver (NVML): joules since the driver was loaded, of all that
runs on it, idle power included."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from nas_llm.models.timing import Pass


@dataclass(frozen=True)
class EnergyCounter:
    """The counter of one GPU; ``nvml`` is the module that reads it."""

    nvml: Any
    handle: Any

    @property
    def joules(self) -> float:
        return self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1000

    def joules_per_token(self, forward: Pass, tokens: int, device: torch.device, seconds: float) -> float:
        """Of a pass over so many tokens, repeated for so long: the counter moves in steps of a tenth of a second. What
        prepares a pass (the copy of a cache) is counted alone and taken off."""
        before, begin, runs = self.joules, time.perf_counter(), 0
        while runs == 0 or time.perf_counter() - begin < seconds:
            forward.run(forward.prepare())
            torch.cuda.synchronize(device)
            runs += 1
        taken = self.joules - before
        if forward.prepare() is not None:
            before = self.joules
            for _ in range(runs):
                forward.prepare()
                torch.cuda.synchronize(device)
            taken -= self.joules - before
        return taken / (runs * tokens)


def energy_counter(device: torch.device) -> EnergyCounter | str:
    """The counter of a device, or why there is none."""
    if device.type != "cuda":
        return "energy is counted on NVIDIA GPUs alone"
    try:
        import pynvml
    except ModuleNotFoundError:
        return "energy is not counted: NVML is not installed, pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        counter = EnergyCounter(pynvml, handle)
        _ = counter.joules
    except pynvml.NVMLError as error:
        return f"energy is not counted: NVML says {error}"
    return counter
