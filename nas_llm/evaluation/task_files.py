"""Questions from files named by their task: TASK.json, or TASK/test.json and TASK/train.json as in LLM-Adapters.

A folder gives, of each task, the file of the role that is asked for: "test" for measuring, "validation" (a file
validation.* or train.*, of the task's training data) for choosing.
"""

import hashlib
import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from nas_llm.data.questions import Question, question
from nas_llm.data.sources import open_source
from nas_llm.evaluation.answers import LEAKING, TASKS, known_task, rule_of

log = logging.getLogger(__name__)

Role = Literal["validation", "test"]
STEMS: dict[str, tuple[str, ...]] = {"validation": ("validation", "train"), "test": ("test",)}
SUFFIXES = (".json", ".jsonl", ".parquet")


def read_tasks(
    path: str | Sequence[str], role: Role, key: str, *, tasks: Sequence[str] | None = None, limit: int | None = None
) -> dict[str, list[Question]]:
    """Task -> its questions in the file's order, of a file, a folder or a list of them.

    Args:
        path: where they lie.
        role: which file of a folder.
        key: the setting that names `path`, for errors.
        tasks: those that are read; None for all that there are.
        limit: the first so many questions of each.

    Raises:
        ValueError: nothing there, an unknown task or one without a file, two files of one task, an empty file, a record
            without an answer or with one that can never be read from a text.
    """
    files: dict[str, Path] = {}
    for given in [path] if isinstance(path, str) else path:
        for file in _files(Path(given).expanduser(), role, key):
            task = task_of(file, key)
            if task in files:
                raise ValueError(f"{key}: {files[task]} and {file} are both of the task {task}; name one of them")
            files[task] = file
    if tasks is not None:
        files = _chosen(files, tasks, key)
    for task in files:
        if task in LEAKING:
            log.warning("%s: math_10k holds questions of %s; after training on it, mawps tells more", key, task)
    return {task: _questions(file, task, key, limit) for task, file in files.items()}


def content_of(path: str | Sequence[str], role: Role, key: str) -> dict[str, Path]:
    """A hash of the content of each file that `read_tasks` would look at -> the file."""
    given = [path] if isinstance(path, str) else path
    files = [file for name in given for file in _files(Path(name).expanduser(), role, key)]
    return {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in files}


def task_of(file: Path, key: str) -> str:
    """The task that a file is named by. Raises ValueError if it is not known."""
    roles = [stem for stems in STEMS.values() for stem in stems]
    return known_task(file.resolve().parent.name if file.stem in roles else file.stem, f"{key}: {file}")


def _files(path: Path, role: Role, key: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(
            f"{key}={path}: no such file or folder; set {key} to a file named by its task, as boolq/test.json or "
            "boolq.json, to a folder of such files, or to a list"
        )
    found = []
    for folder in [path, *sorted(child for child in path.iterdir() if child.is_dir())]:
        if own := [file for stem in STEMS[role] for file in _of_stem(folder, stem)]:
            found.append(own[0])
    found += [file for task in TASKS for file in _of_stem(path, task)]
    if not found:
        looked = " or ".join(f"TASK/{stem}.json" for stem in STEMS[role])
        raise ValueError(f"{key}={path}: the folder holds no {looked}, nor TASK.json, of {', '.join(TASKS)}")
    return found


def _of_stem(folder: Path, stem: str) -> list[Path]:
    return [file for suffix in SUFFIXES if (file := folder / f"{stem}{suffix}").is_file()]


def _chosen(files: dict[str, Path], tasks: Sequence[str], key: str) -> dict[str, Path]:
    if not tasks:
        raise ValueError("objectives.generated_accuracy.tasks=[] leaves nothing to ask: name tasks, or null for all")
    for task in tasks:
        if known_task(task, "objectives.generated_accuracy.tasks") not in files:
            raise ValueError(
                f"objectives.generated_accuracy.tasks={task}: {key} has no file of it (of {', '.join(files)}); leave "
                f"it out, or add its file to {key}"
            )
    return {task: files[task] for task in tasks}


def _questions(file: Path, task: str, key: str, limit: int | None) -> list[Question]:
    found = [question(row, where, task) for where, row in islice(open_source(str(file), key).rows(), limit)]
    for asked in found:
        rule_of(asked)  # a wrong record is refused before a network is run
    return found
