"""Whole files only: what is written appears complete or not at all, and a write that the disk refuses is one error.

`atomic_path` and the writers built on it leave either the old content or the new one, never a part; `remove_leftovers`
clears away what killed processes were writing.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        remove(temporary)
        yield temporary
        _synchronise(temporary)
        _replace(temporary, target)
    except Exception as error:  # tokenizers raises nothing more special
        reason = disk_error(error)
        if reason is None:
            raise
        raise _unwritable(target, reason, setting) from error
    finally:
        remove(temporary)


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


def remove_leftovers(run_dir: Path) -> None:
    """Clear away what killed processes were writing; a directory caught between its two renames is put back."""
    for path in [*run_dir.glob(".*.tmp"), *run_dir.glob("*/.*.tmp")]:
        found = TEMPORARY.fullmatch(path.name)
        if found is None:
            continue
        target = path.with_name(found["target"])
        if found["old"] and not target.exists():
            path.replace(target)
        else:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole directory; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _unwritable(target: Path, reason: str, setting: str) -> ValueError:
    return ValueError(f"{target} could not be written ({reason}): mend that, or choose another place with {setting}=")


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
    remove(old)
