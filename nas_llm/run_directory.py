"""The run directory: one process at a time, whole files only, metrics merged, and no resuming with something else.

Every stage reads and writes one directory. `locked` keeps a second process out; `atomic_path` and the writers built on
it leave either the old content or the new one, never a part; `add_metrics` merges into `results.json`;
`refuse_mismatch` compares the model, the search space and the data with those the run was started with.
"""

import errno
import fcntl
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

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
METRIC_IDENTITY = (
    "name",
    "architecture",
    "split",
    "data",
    "variant",
    "model",
    "num_fewshot",
)  # a metric that agrees in these replaces the older one
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
)
TEMPORARY = re.compile(r"\.(?P<target>.+)\.\d+\.nas_llm(?P<old>\.old)?\.tmp")  # the names of `atomic_path`


def is_main_process() -> bool:
    """Whether this process is the one that writes the run directory (rank 0, or the only one)."""
    rank = next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0")
    return int(rank) == 0


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


def _forget(path: Path, made: Sequence[Path]) -> None:
    """Removes the directory where it was made with the folders ``made`` and holds no results."""
    if made and is_main_process() and {file.name for file in path.glob("*")} <= set(START_FILES):
        _remove(path)
        for folder in made[1:]:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


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
        _remove_leftovers(path)
        yield path
        lock.truncate(0)


@contextmanager
def atomic_path(path: str | Path, *, setting: str = "run_dir") -> Iterator[Path]:
    """Yield a temporary path beside `path` to write a file or a directory to; it becomes `path` when the block ends.

    `setting` is the key that chooses the place, for errors.

    Raises:
        ValueError: the disk is full or refuses the write. On every error the temporary is removed, `path` is as before.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.nas_llm.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # of any kind: a part of the path is a file, or lies where nothing can be made
        raise _unwritable(target, os.strerror(error.errno or errno.EIO), setting) from error
    try:
        _remove(temporary)
        yield temporary
        _synchronise(temporary)
        _replace(temporary, target)
    except Exception as error:  # tokenizers raises nothing more special
        reason = disk_error(error)
        if reason is None:
            raise
        raise _unwritable(target, reason, setting) from error
    finally:
        _remove(temporary)


def _unwritable(target: Path, reason: str, setting: str) -> ValueError:
    return ValueError(f"{target} could not be written ({reason}): mend that, or choose another place with {setting}=")


def disk_error(error: BaseException | None) -> str | None:
    """What the disk refused, in words, by an error or by the one it was raised from; None where it refused nothing."""
    if error is None:
        return None
    rust = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors and tokenizers say it
    code = error.errno if isinstance(error, OSError) else int(rust[1]) if rust else None
    return os.strerror(code) if code in DISK_ERRORS else disk_error(error.__cause__)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file, or leave the old one as it was."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 file, or leave the old one as it was."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write strict, indented JSON (NaN and infinity are refused), or leave the old file as it was."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path, *needed: str) -> Any:
    """Read JSON; an object with the `needed` keys where some are named.

    Raises:
        ValueError: the file is missing, is not JSON (the line is named), or lacks a key.
    """
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} does not exist: is run_dir= right, and did the stage that writes it finish?"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON, line {error.lineno}: {error.msg}; restore it or run its stage again"
        ) from error
    missing = [key for key in needed if not isinstance(value, dict) or key not in value]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}; restore it or run its stage again")
    return value


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The metrics of `results.json`; empty where there is none yet."""
    path = Path(run_dir) / RESULTS_FILE
    return read_json(path, "metrics")["metrics"] if path.exists() else []


def add_metrics(
    run_dir: str | Path,
    metrics: Iterable[Mapping[str, Any]],
    *,
    without: Callable[[Mapping[str, Any]], bool] | None = None,
) -> None:
    """Merge metrics into `results.json`; one that agrees with an older one in METRIC_IDENTITY takes its place, and
    older ones that `without` tells go.

    Each metric is `{"name", "value", "unit", "architecture" or "model", "split", "samples", ...}`; a value that is not
    finite becomes null.
    """
    older = [metric for metric in read_metrics(run_dir) if without is None or not without(metric)]
    merged = {_identity(metric): metric for metric in older}
    for metric in metrics:
        merged[_identity(metric)] = {key: _finite(value) for key, value in metric.items()}
    write_json(Path(run_dir) / RESULTS_FILE, {"metrics": list(merged.values())})


def refuse_mismatch(
    run_dir: str | Path, fingerprints: Mapping[str, Any], *, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Compare JSON-able fingerprints (`model`, `search_space`, `data`, ...) with the run's; those not yet recorded are.

    `settings`: of a fingerprint, as `data`, what it follows from, by the keys that a user sets. They are recorded with
    it and not compared; but where the fingerprint differs, the first that does is what is named.

    Raises:
        ValueError: one differs; the key and both values are named.
    """
    recorded = recorded_fingerprints(run_dir)
    new = json.loads(json.dumps(dict(fingerprints)))
    behind = json.loads(json.dumps({f"settings of {key}": dict(values) for key, values in (settings or {}).items()}))
    for key, value in new.items():
        if key in recorded and recorded[key] != value:
            now, before = (known.get(f"settings of {key}", {}) for known in (behind, recorded))
            setting = next((name for name in now if name in before and now[name] != before[name]), None)
            if setting is not None:
                raise _other(setting, now[setting], before[setting], run_dir, mend=setting)
            raise _other(*_first_difference(key, value, recorded[key]), run_dir, mend=key)
    if is_main_process() and not new.keys() <= recorded.keys():
        write_json(Path(run_dir) / FINGERPRINTS_FILE, {**behind, **recorded, **new})


def recorded_fingerprints(run_dir: str | Path) -> dict[str, Any]:
    """What the run was started with, as `refuse_mismatch` recorded it; empty before."""
    path = Path(run_dir) / FINGERPRINTS_FILE
    return read_json(path) if path.exists() else {}


def _other(key: str, now: Any, before: Any, run_dir: str | Path, *, mend: str) -> ValueError:
    return ValueError(
        f"{key}={_short(now)} differs from {key}={_short(before)} that {run_dir} was started with: resume with the "
        f"same {mend}, or start a new run with another run_dir="
    )


def _first_difference(key: str, new: Any, recorded: Any) -> tuple[str, Any, Any]:
    """The setting of a group that differs, with both values; the whole groups where they are of another kind."""
    if not (isinstance(new, dict) and isinstance(recorded, dict)) or new.get("_target_") != recorded.get("_target_"):
        return key, new, recorded
    differing = next(name for name in [*new, *recorded] if new.get(name) != recorded.get(name))
    return f"{key}.{differing}", new.get(differing), recorded.get(differing)


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


def forget_start(run_dir: str | Path) -> None:
    """Forget the fingerprints of a start that left no results, so that a new run may be another one.

    Only for the process that holds the directory's lock: the start may be that of a run that is under way.
    """
    (Path(run_dir) / FINGERPRINTS_FILE).unlink(missing_ok=True)


def _has_content(path: Path) -> bool:
    if not path.is_dir():
        return path.exists()
    return any(not TEMPORARY.fullmatch(file.name) for file in path.iterdir())


def _identity(metric: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(metric.get(key) for key in METRIC_IDENTITY)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else f"{text[:150]}... ({len(text)} characters)"


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


def _remove_leftovers(run_dir: Path) -> None:
    """Clear away what killed processes were writing; a directory caught between its two renames is put back."""
    for path in [*run_dir.glob(".*.tmp"), *run_dir.glob("*/.*.tmp")]:
        found = TEMPORARY.fullmatch(path.name)
        if found is None:
            continue
        target = path.with_name(found["target"])
        if found["old"] and not target.exists():
            path.replace(target)
        else:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _synchronise(path: Path) -> None:
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _replace(temporary: Path, target: Path) -> None:
    if not target.is_dir():
        temporary.replace(target)
        return
    old = target.with_name(
        f".{target.name}.{os.getpid()}.nas_llm.old.tmp"
    )  # a directory cannot be renamed over a full one
    target.replace(old)
    try:
        temporary.replace(target)
    except OSError:
        old.replace(target)
        raise
    _remove(old)
