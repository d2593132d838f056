"""Files of one JSON object a line that are written line by line, so that a killed run loses at most the one it was
writing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_llm.atomic_files import disk_error


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Record one line; it is on the disk when this returns.

    Raises:
        ValueError: the disk is full or refuses the write; the file then ends with the last whole line.
    """
    data = memoryview(f"{json.dumps(record, allow_nan=False)}\n".encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(end)
            raise ValueError(
                f"{path} could not be written ({disk_error(error) or error}): make room and start the same command "
                "again, it continues from there"
            ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines; a torn last one is cut off the file. Empty where there is no file.

    Raises:
        ValueError: a line before the last is no JSON object.
    """
    if not path.exists():
        return []
    whole, records = 0, []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("the line has no end")
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            if number == len(lines):
                with path.open("r+b") as file:
                    file.truncate(whole)
                break
            raise ValueError(f"{path}, line {number}: damaged ({error}): remove that line to make it again") from error
        records.append(record)
        whole += len(line)
    return records
