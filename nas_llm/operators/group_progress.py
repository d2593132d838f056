"""Where the training of a group of operators is, in one file: their weights, Adam's moments and the step, from which a
killed run goes on as if it had not been.

``in-work-<key>.safetensors`` in the library's folder, the key a hash of the teacher and of the operators; the settings
and the data are the library's and the run's. It takes 12 bytes a parameter in training and goes when the group is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nas_llm.atomic_files import atomic_path

if TYPE_CHECKING:
    from nas_llm.operators.distilling import Student

PREFIX = "in-work-"


def progress_file(folder: Path, teacher: str, students: Sequence[Student]) -> Path:
    """The file of these operators in training."""
    names = [teacher, *(f"{student.place} {student.operator.name}" for student in students)]
    return folder / f"{PREFIX}{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]}.safetensors"


def keep_progress(file: Path, students: Sequence[Student], step: int) -> None:
    """Writes it behind ``step`` optimizer steps; the whole file, or the one before stays."""
    tensors: dict[str, Tensor] = {}
    for number, student in enumerate(students):
        tensors |= {f"{number}.weight.{name}": p.detach().cpu() for name, p in student.module.state_dict().items()}
        for index, moments in student.optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.adam.{index}.{name}": value.cpu() for name, value in moments.items()}
    said = {
        "step": str(step),
        "rates": json.dumps([student.optimizer.param_groups[0]["lr"] for student in students]),
        "seconds": json.dumps([student.seconds for student in students]),
    }
    with atomic_path(file) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, said)


def take_progress(file: Path, students: Sequence[Student]) -> int:
    """Gives students what the file holds; how many steps are done, 0 where it is not there or damaged."""
    if not file.is_file():
        return 0
    try:
        with safe_open(file, "pt") as held:
            said = held.metadata() or {}
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError:
        return 0
    step, rates, seconds = int(said["step"]), json.loads(said["rates"]), json.loads(said["seconds"])
    for number, student in enumerate(students):
        weights: dict[str, Tensor] = {}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            of, kind, name = key.split(".", 2)
            if int(of) != number:
                continue
            if kind == "weight":
                weights[name] = value
            else:
                index, _, moment = name.partition(".")
                moments.setdefault(int(index), {})[moment] = value
        student.module.load_state_dict(weights)
        state = student.optimizer.state_dict()
        for group in state["param_groups"]:
            group["lr"] = rates[number]
        student.optimizer.load_state_dict({**state, "state": moments})
        student.schedule.last_epoch = step
        student.seconds = seconds[number]
    return step
