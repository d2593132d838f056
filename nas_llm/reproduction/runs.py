"""Runs the command lines of a row, or of what rows share, for one seed; what is finished is not run again.

Beside the folder FOLDER of a place lie ``FOLDER.json`` (the commands that have finished, and the numbers read after
the last) and ``FOLDER.logs/`` (what each printed). Where the commands have changed, the place begins anew.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_llm.atomic_files import atomic_path, read_json, write_json

RunCommand = Callable[[Sequence[str], Path], int]
"""Runs a command line of `nas-llm` (without that word) and writes what it prints to the path; gives the exit status."""
STARTING = (
    "train",
    "pretrain",
    "prune",
)  # stages that refuse a folder that holds a run, unless they go on with a checkpoint
SAID = 400  # characters of what a failed command said


class CommandFailed(ValueError):
    """A command line of a row ended with another status than 0."""


@dataclass(frozen=True)
class Place:
    """The commands of one row and one seed. ``commands`` may hold placeholders that ``fill`` knows, once the commands
    before them have run. ``after`` says which runs of others it builds on; others make it begin anew."""

    folder: Path
    commands: tuple[str, ...]
    fill: Callable[[str], str]
    after: Mapping[str, Any]

    @property
    def record_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def logs(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.logs")

    def record(self) -> dict[str, Any]:
        """What has been done so far."""
        empty: dict[str, Any] = {"after": dict(self.after), "commands": [], "values": None}
        if not self.record_file.is_file():
            return empty
        found: dict[str, Any] = read_json(self.record_file, "after", "commands", "values")
        done = [command["asked"] for command in found["commands"]]
        same = done == list(self.commands[: len(done)]) and found["after"] == empty["after"]
        return found if same else {**empty, "begins anew": True}

    @property
    def is_finished(self) -> bool:
        return len(self.record()["commands"]) == len(self.commands)


def run_commands(place: Place, run: RunCommand) -> float:
    """Runs what is missing; returns the seconds that all commands took, those of earlier calls too.

    Raises:
        CommandFailed: one did; the line says which, and what it said last.
    """
    record = place.record()
    if record.pop("begins anew", False):
        for path in (place.folder, place.logs):
            shutil.rmtree(path, ignore_errors=True)
        write_json(place.record_file, record)
    done = record["commands"]
    for number, asked in list(enumerate(place.commands))[len(done) :]:
        begun = {"asked": asked, "line": place.fill(asked)}
        arguments = _resumed(shlex.split(begun["line"]))
        log = place.logs / f"{number}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        status = run(arguments, log)
        if status != 0:
            raise CommandFailed(f"nas-llm {begun['line']}: status {status}, {_said(log)} ({log})")
        done.append({**begun, "seconds": round(time.perf_counter() - start, 1)})
        write_json(place.record_file, record)
    return float(sum(command["seconds"] for command in done))


def keep_values(place: Place, values: Mapping[str, Any], sources: Any) -> None:
    """Writes the numbers that were read after the last command, with where they were looked for."""
    write_json(place.record_file, {**place.record(), "values": {"read": dict(values), "sources": sources}})


def kept_values(place: Place, sources: Any) -> Mapping[str, Any] | None:
    """Those of an earlier call, where the commands are all done and the numbers were looked for in the same places."""
    record = place.record()
    kept = record["values"]
    if kept is None or kept["sources"] != sources or len(record["commands"]) != len(place.commands):
        return None
    found: Mapping[str, Any] = kept["read"]
    return found


def copy_file(source: Path, target: Path) -> None:
    """A whole copy, or none."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _resumed(arguments: Sequence[str]) -> list[str]:
    """A training that was cut off goes on with its checkpoint; without one its folder is emptied first."""
    folder = next((word.partition("=")[2] for word in arguments if word.startswith("run_dir=")), None)
    if arguments[0] not in STARTING or folder is None or not Path(folder).is_dir():
        return list(arguments)
    if (Path(folder) / "checkpoints" / "last.ckpt").is_file():
        return [*arguments, "ckpt_path=last"]
    shutil.rmtree(folder)
    return list(arguments)


def _said(log: Path) -> str:
    lines = (
        [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    )
    errors = [line for line in lines if line.startswith("nas-llm: error:")]
    said = (errors or lines or ["it printed nothing"])[-1].removeprefix("nas-llm: error:").strip()
    return said if len(said) <= SAID else f"{said[:SAID]} ..."
