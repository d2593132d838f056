"""Where results come from: versions, git state, seed, command, hardware, times and exit status of every stage."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nas_llm.atomic_files import read_json, write_json
from nas_llm.ranks import is_main_process

PROVENANCE_FILE = "provenance.json"
PACKAGES = (
    "nas-llm",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "hydra-core",
    "omegaconf",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "pymoo",
    "lm-eval",
    "wandb",
)


@contextmanager
def recorded(run_dir: str | Path, *, stage: str, argv: Sequence[str], seed: int) -> Iterator[None]:
    """Append an entry to `provenance.json` when the block starts and complete it when it ends, however it ends.

    Ranks other than the main one record nothing.
    """
    if not is_main_process():
        yield
        return
    path = Path(run_dir) / PROVENANCE_FILE
    before = read_json(path, "stages")["stages"] if path.exists() else []
    entry: dict[str, Any] = {"stage": stage, "argv": list(argv), "seed": seed, "status": "running", **_surroundings()}
    write_json(path, {"stages": [*before, entry]})
    start = time.perf_counter()

    def end(status: str, **why: str) -> None:
        seconds = round(time.perf_counter() - start, 3)
        write_json(
            path, {"stages": [*before, {**entry, "status": status, **why, "seconds": seconds, "finished": _now()}]}
        )

    try:
        yield
    except BaseException as error:
        with suppress(ValueError, OSError):  # a full disk must not hide what ended the stage
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            end(status, error=f"{type(error).__name__}: {error}".strip())
        raise
    end("finished")


def versions() -> dict[str, str]:
    """Python's version and those of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: str | Path) -> dict[str, Any] | None:
    """Commit and uncommitted changes of the repository that holds `folder`; None outside of one."""
    commit = _output(["git", "-C", str(folder), "rev-parse", "HEAD"])
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_output(["git", "-C", str(folder), "status", "--porcelain"]))}


def source_state(file: Path) -> dict[str, Any] | None:
    """`git_state` of the repository that tracks `file`; None where none does, as for an installed package."""
    tracked = _output(["git", "-C", str(file.parent), "ls-files", "--error-unmatch", file.name])
    return None if tracked is None else git_state(file.parent)


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB and graphics cards, read without loading torch."""
    gpus = _output(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus.splitlines() if gpus else [],
    }


def _surroundings() -> dict[str, Any]:
    return {
        "started": _now(),
        "cwd": str(Path.cwd()),
        "versions": versions(),
        "git": source_state(Path(__file__).resolve()),
        "hardware": hardware(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _output(command: Sequence[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
