"""The run directory: the names of its files, one process at a time, and no new run where an older one's results lie.

Every stage reads and writes one directory. `locked` keeps a second process out; `started` leaves nothing of a run that
is refused before it has results. What is in it is written by `atomic_files`; `metrics` merges into `results.json`;
`run_fingerprints` compares the model, the search space and the data with those the run was started with.
"""

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from nas_llm.atomic_files import TEMPORARY, remove, remove_leftovers
from nas_llm.ranks import is_main_process

LOCK_FILE = ".lock"
RESULTS_FILE = "results.json"
FINGERPRINTS_FILE = "fingerprints.json"
IMPORTANCE_FILE = "importance.safetensors"
SPARSITY_FILE = "sparsity.json"
SPARSE_WEIGHTS_FILE = "sparsity.safetensors"
QUANTIZATION_FILE = "quantization.json"
QUANTIZED_WEIGHTS_FILE = "quantization.safetensors"
OPERATORS = "operators"
MODEL = "model"  # the network that a baseline has made
BASELINE_FILE = "baseline.json"
OUTPUTS = (
    "checkpoints",
    "supernet",
    OPERATORS,
    MODEL,
    BASELINE_FILE,
    "archive.jsonl",
    RESULTS_FILE,
)  # what a run leaves that a new one must not mix with
START_FILES = (
    ".hydra",
    "provenance.json",
    LOCK_FILE,
    FINGERPRINTS_FILE,
    IMPORTANCE_FILE,
    "importance_scores.png",
    SPARSITY_FILE,
    SPARSE_WEIGHTS_FILE,
    QUANTIZATION_FILE,
    QUANTIZED_WEIGHTS_FILE,
    "search_space.json",
    "sampling_grid.json",
    "logs",
)  # what a run has before it has results


def create(run_dir: str | Path) -> None:
    """Make the directory and those above it.

    Raises:
        ValueError: it cannot be made or written.
    """
    try:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"run_dir={run_dir} cannot be made ({error.strerror}): choose another run_dir=") from error
    if not os.access(run_dir, os.W_OK):
        raise ValueError(f"run_dir={run_dir} cannot be written: choose another run_dir=, or mend its permissions")


def refuse_unmakable(folder: str | Path, setting: str) -> None:
    """Make the directory and those above it, and take away again what was not there.

    Raises:
        ValueError: one of them cannot be made, or the directory cannot be written; `setting` names it.
    """
    path = Path(folder).absolute()
    made = [place for place in (path, *path.parents) if not place.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{setting}={folder} cannot be made ({error.strerror}): choose another {setting}=") from error
    finally:
        for place in made:
            if place.is_dir():
                place.rmdir()
    if not made and not os.access(path, os.W_OK):
        raise ValueError(f"{setting}={folder} cannot be written: choose another {setting}=")


@contextmanager
def started(
    run_dir: str | Path, *, refusals: tuple[type[Exception], ...] = (ValueError,), plans: bool = False
) -> Iterator[None]:
    """Make the directory; where the block refuses its input before there are results, leave nothing new behind, nor
    where it only ``plans``.

    Raises:
        ValueError: as `create`; and what the block raises.
    """
    path = Path(run_dir).absolute()
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        create(path)
        yield
    except refusals:
        _forget(path, made)
        raise
    if plans:
        _forget(path, made)


@contextmanager
def locked(run_dir: str | Path) -> Iterator[Path]:
    """Create `run_dir` if need be and hold it against every other process; yields it as an absolute path.

    What killed processes were writing there is cleared away. Ranks other than the main one share the main one's
    directory and take no lock.

    Raises:
        ValueError: another process holds the directory (its pid is named), or it cannot be created or written.
    """
    path = Path(run_dir).absolute()
    if not is_main_process():
        yield path
        return
    create(path)
    try:
        lock = (path / LOCK_FILE).open("a+b", buffering=0)  # no buffer that closing would try to write once more
    except OSError as error:
        raise _not_writable(run_dir, error) from error
    with lock:
        _hold(lock, run_dir)
        remove_leftovers(path)
        yield path
        lock.truncate(0)


def refuse_outputs(run_dir: str | Path) -> None:
    """Refuse to start a new run in a directory that holds an older one's results; changes nothing there.

    Raises:
        ValueError: `run_dir` holds checkpoints, a super-network, an archive, a baseline's model or results.
    """
    found = [name for name in OUTPUTS if _has_content(Path(run_dir) / name)]
    if found:
        ended = MODEL in found or BASELINE_FILE in found
        raise ValueError(
            f"run_dir={run_dir} already holds a run ({', '.join(found)}): "
            f"{'' if ended else 'continue it with ckpt_path=last, or '}choose another run_dir="
        )


def refuse_baseline(run_dir: str | Path) -> None:
    """Refuse a directory in which there is no super-network, because a baseline has made its network.

    Raises:
        ValueError: it is one.
    """
    if (Path(run_dir) / BASELINE_FILE).is_file():
        model = Path(run_dir) / MODEL
        raise ValueError(
            f"run_dir={run_dir} holds a network that a baseline has made, and no super-network: measure it with "
            f"nas-llm evaluate evaluate.model_path={model}, or train it with nas-llm train model.path={model}"
        )


def _forget(path: Path, made: Sequence[Path]) -> None:
    """Removes the directory where it was made with the folders ``made`` and holds no results."""
    if made and is_main_process() and {file.name for file in path.glob("*")} <= set(START_FILES):
        remove(path)
        for folder in made[1:]:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


def _has_content(path: Path) -> bool:
    if not path.is_dir():
        return path.exists()
    return any(not TEMPORARY.fullmatch(file.name) for file in path.iterdir())


def _hold(lock: FileIO, run_dir: str | Path) -> None:
    """Lock the open file and write into it who holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}\n".encode())
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().decode().strip() or "unknown"
        raise ValueError(
            f"run_dir={run_dir} is in use by another process (pid {holder}): wait, or choose another run_dir="
        ) from error
    except OSError as error:
        raise _not_writable(run_dir, error) from error


def _not_writable(run_dir: str | Path, error: OSError) -> ValueError:
    return ValueError(f"run_dir={run_dir} cannot be written ({error.strerror}): mend that, or choose another run_dir=")
