"""The tasks of lm-eval by name, of its own collection and of a folder of task files, with what is wrong in one line.

A name is a task, a group (mmlu) or a tag; its leaves are the tasks that are asked. Of every leaf the documents
[offset, offset + limit) of its test (or validation) split are asked, in their own order.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

FEWSHOT_SEED = 1234  # the harness's own default
NEAR = 5  # names that are offered for an unknown one

Shots = int | Mapping[str, int] | None


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks whose data are there.

    items: what was asked for by name, tasks and groups of them.
    leaves: the tasks by their own names.
    parts: of every name that was asked for, its leaves.
    documents: of every leaf, the indices of the documents that are asked.
    """

    items: tuple[Task | Group, ...]
    leaves: Mapping[str, Task]
    parts: Mapping[str, tuple[str, ...]]
    documents: Mapping[str, range]


def load_tasks(
    names: str | Sequence[str],
    task_path: str | None,
    *,
    key: str,
    num_fewshot: Shots = None,
    limit: int | float | None = None,
    offset: int | Mapping[str, int] = 0,
) -> LoadedTasks:
    """Loads tasks and their data.

    Args:
        names: of tasks, groups or tags.
        task_path: a folder of task files, whose names come first.
        key: where the settings lie, for errors, as "harness.".
        num_fewshot: examples before each question, for all tasks or by name; None: as each task says.
        limit: so many documents of each task, below 1 a part of them; None: all.
        offset: the first document that is asked, of all tasks or by the leaves' names.

    Raises:
        ValueError: an unknown task, one whose data cannot be reached or that does not load, a setting that cannot take
            effect.
    """
    asked = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    folder = None if task_path is None else _folder(task_path, key)
    items: list[Task | Group] = []
    leaves: dict[str, Task] = {}
    parts: dict[str, tuple[str, ...]] = {}
    with hushed():
        manager = _manager(asked, folder, key)
        for name in asked:
            loaded = _load(manager, name, task_path, key)
            inside: Mapping[str, Group] = loaded.get("groups", {})
            items += [inside[name]] if name in inside else list(loaded["tasks"].values())
            for leaf, task in loaded["tasks"].items():
                if leaf in leaves:
                    raise ValueError(f"{key}tasks: {leaf} is asked for twice, by {name} too: name it once")
                leaves[leaf] = task
            parts[name] = tuple(loaded["tasks"])
        _set_shots(parts, leaves, num_fewshot, key)
        firsts = offset if isinstance(offset, Mapping) else dict.fromkeys(leaves, offset)
        documents = {leaf: _documents(leaf, task, limit, firsts.get(leaf, 0), key) for leaf, task in leaves.items()}
    return LoadedTasks(tuple(items), leaves, parts, documents)


@contextmanager
def hushed(progress: bool = False) -> Iterator[None]:
    """The harness without its notes, and without bars and prints unless `progress`; no processes for its bootstrap."""
    logs = [logging.getLogger(name) for name in ("lm_eval", "transformers")]  # the second tells of long texts
    levels, pooled = [log.level for log in logs], os.environ.get("DISABLE_MULTIPROC")
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        if not progress:
            stack.enter_context(redirect_stderr(io.StringIO()))
        try:
            for log in logs:
                log.setLevel(logging.CRITICAL)
            os.environ["DISABLE_MULTIPROC"] = "1"  # it would fork this process, whose threads hold locks
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)
            if pooled is None:
                del os.environ["DISABLE_MULTIPROC"]
            else:
                os.environ["DISABLE_MULTIPROC"] = pooled


def refuse_limit(place: str, limit: int | float | None) -> None:
    """Refuses a number of documents that cannot be; `place` is its key."""
    if limit is not None and (limit <= 0 or (limit > 1 and limit != int(limit))):
        raise ValueError(
            f"{place}={limit}: allowed are 1 or more documents of each task, a part of them below 1, or null for all"
        )


def shots_of(task: Task) -> int:
    """Examples before each question."""
    return int(task.get_config("num_fewshot") or 0)


def _folder(task_path: str, key: str) -> Path:
    folder = Path(task_path).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"{key}task_path={task_path}: no such folder; name one that holds task files (*.yaml) of lm-eval"
        )
    if not any(folder.rglob("*.yaml")):
        raise ValueError(f"{key}task_path={task_path}: the folder holds no task files (*.yaml) of lm-eval")
    return folder.resolve()


def _manager(names: Sequence[str], folder: Path | None, key: str) -> TaskManager:
    """Knows the folder's tasks, and the collection's where those are not all: reading it takes long."""
    from lm_eval.tasks import TaskManager

    own = None if folder is None else TaskManager(include_path=str(folder), include_defaults=False)
    if own is not None and set(names) <= set(own.all_subtasks):
        return own
    manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in manager.task_index:
            raise ValueError(_unknown(name, manager.all_tasks, () if own is None else own.all_tasks, folder, key))
    return manager


def _unknown(name: str, known: Sequence[str], own: Sequence[str], folder: Path | None, key: str) -> str:
    near = list(
        dict.fromkeys([*get_close_matches(name, own, n=NEAR), *get_close_matches(name, known, n=NEAR, cutoff=0.7)])
    )
    meant = f" did you mean {', '.join(near[:NEAR])}?" if near else ""
    if folder is None:
        rest = f"tasks of files of your own: {key}task_path=FOLDER"
    else:
        damaged = [str(path) for path in sorted(folder.rglob("*.yaml")) if not _readable(path)]
        rest = f"{key}task_path={folder} has {', '.join(own) or 'none that can be read'}"
        rest += f"; {damaged[0]} cannot be read" if damaged else ""
    return f"{key}tasks={name} is no task of lm-eval:{meant} ({rest})"


def _readable(path: Path) -> bool:
    from lm_eval.tasks._yaml_loader import load_yaml
    from yaml import YAMLError

    try:
        load_yaml(path, resolve_func=False)
    except (YAMLError, OSError, ValueError):
        return False
    return True


def _load(manager: TaskManager, name: str, task_path: str | None, key: str) -> Any:
    try:
        return manager.load([name])
    except OSError as error:  # of datasets: the hub, a file, a folder
        raise ValueError(_unreachable(manager, name, error, task_path, key)) from error
    except ImportError as error:
        raise ValueError(f"{key}tasks={name} needs {error.name or _line(error)}: pip install it") from error
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:  # a task file fails in any way
        raise ValueError(f"{key}tasks={name} does not load ({type(error).__name__}: {_line(error)})") from error


def _unreachable(manager: TaskManager, name: str, error: OSError, task_path: str | None, key: str) -> str:
    """What was looked for, and how a local copy is named instead."""
    config = manager.task_index[name].cfg or {}
    source, files = config.get("dataset_path"), (config.get("dataset_kwargs") or {}).get("data_files")
    if source in ("json", "csv", "parquet", "text", "arrow"):
        looked = f"files {files}" if files else "its files"
        where = f"; relative paths are taken from {Path.cwd()}, not from the task file" if files else ""
        return f"{key}tasks={name}: {looked} cannot be read ({_line(error)}){where}: mend data_files in the task file"
    what = f"the data {source} of the hub" if source else "its data"
    instead = f"the task file in {task_path}" if task_path and name in _names_in(task_path) else "a task file of it"
    return (
        f"{key}tasks={name}: {what} cannot be reached ({_line(error)}); where there is no network, put a copy on this "
        f"machine and {instead} that reads it (dataset_path: json, dataset_kwargs: {{data_files: ...}}), and name the "
        f"folder: {key}task_path=FOLDER"
    )


def _names_in(task_path: str) -> Sequence[str]:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=task_path, include_defaults=False).all_tasks


def _set_shots(parts: Mapping[str, Sequence[str]], leaves: Mapping[str, Task], shots: Shots, key: str) -> None:
    """As the harness does, but that what it would ignore is refused."""
    named = shots if isinstance(shots, Mapping) else {}
    for name in named:
        if name not in parts and name not in leaves:
            raise ValueError(
                f"{key}num_fewshot.{name}={named[name]} cannot take effect: it is not among {key}tasks "
                f"({', '.join(parts)}); leave it out"
            )
    for name, members in parts.items():
        for leaf in members:
            task = leaves[leaf]
            own = task.get_config("num_fewshot")
            asked = named.get(leaf, named.get(name)) if isinstance(shots, Mapping) else shots
            if own == 0 and asked:
                raise ValueError(
                    f"{key}num_fewshot={asked} cannot take effect: the task {leaf} says num_fewshot: 0, its prompt "
                    f"has its examples; leave it out, or name the other tasks alone, {key}num_fewshot={{NAME: {asked}}}"
                )
            if asked and task.OUTPUT_TYPE == "loglikelihood_rolling":
                raise ValueError(
                    f"{key}num_fewshot={asked} cannot take effect on {leaf}, whose texts are scored by themselves: "
                    f"leave it out, or name the other tasks alone, {key}num_fewshot={{NAME: {asked}}}"
                )
            task.set_config("num_fewshot", (own or 0) if asked is None else asked)
            if shots_of(task) and _takes_from_what_it_asks(task):
                raise ValueError(
                    f"{key}num_fewshot={shots_of(task)}: the task {leaf} has no training or validation split, so that "
                    "its examples would be test questions, the one that is asked among them: add fewshot_split: test "
                    f"to its file (the harness then leaves that one out), or set {key}num_fewshot=0"
                )


def _takes_from_what_it_asks(task: Task) -> bool:
    from lm_eval.api.task import ConfigurableTask

    if not isinstance(task, ConfigurableTask):
        return False
    given = task.fewshot_cfg.split is not None or task.fewshot_cfg.samples is not None
    return not given and not task.has_training_docs() and not task.has_validation_docs()


def _documents(name: str, task: Task, limit: int | float | None, offset: int, key: str) -> range:
    there = len(task.eval_docs)
    if offset >= there:
        raise ValueError(f"{key}offset={offset}: the task {name} has {there} documents; set {key}offset below that")
    number = there if limit is None else math.ceil(limit * there) if limit < 1 else int(limit)
    return range(offset, min(there, offset + number))


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:230]} ..."
