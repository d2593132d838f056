"""The other end of ``nas_llm.worker``: a process that runs and checks command lines, started for as long as needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, "-m", "nas_llm.worker")  # by its name: stages know nothing of what lies above them


@dataclass(frozen=True)
class Worker:
    """Answers one request after the other."""

    process: subprocess.Popen[str]

    def run(self, words: Sequence[str], log: Path) -> int:
        """The exit status of `nas-llm words`, which prints to ``log``."""
        return int(self._asked({"run": list(words), "log": str(log)})["status"])

    def check(self, commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """The configurations of command lines that nothing is wrong with.

        Raises:
            ValueError: of the first that something is wrong with.
        """
        answer = self._asked({"check": [list(words) for words in commands]})
        if "error" in answer:
            raise ValueError(answer["error"])
        found: list[dict[str, Any]] = answer["configurations"]
        return found

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {' '.join(PROGRAM[1:])} has ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def worker() -> Iterator[Worker]:
    """A worker for the block."""
    with subprocess.Popen(PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Worker(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
