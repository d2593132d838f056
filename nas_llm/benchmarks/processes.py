"""A measurement in a process of its own, and the memory that a process takes.

The peak of a process never goes down, and what an earlier measurement left changes the next one: so each is run as a
program of this package, which prints its figures as one line of JSON, the last.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nas_llm


def printed_by(module: str, *arguments: object, environment: Mapping[str, str] = MappingProxyType({})) -> Any:
    """What ``python -m module arguments`` prints in its last line."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(nas_llm.__file__).parent.parent,
        env={**os.environ, **environment},
    )
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib() -> float:
    """The largest resident set that this process has had."""
    peak = _status("VmHWM")  # Linux's ru_maxrss may be that of the process that started this one
    if peak is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def resident_mib() -> float:
    """The resident set of this process now; where the system does not say, the largest one so far."""
    now = _status("VmRSS")
    return peak_mib() if now is None else now


def _status(name: str) -> float | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return int(re.findall(rf"{name}:\s+(\d+) kB", status.read_text())[0]) / 2**10
