"""Raw records from local .json, .jsonl, .txt and .parquet files, folders of these, or a hub dataset by name.

Every error names the file and the line or record, so that a user can mend the data without opening a debugger.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = str | Mapping[str, Any]  # a whole text file, or one record with named fields
TEXT_SUFFIXES = (".txt", ".text", ".raw")
SUFFIXES = (".json", ".jsonl", ".parquet", *TEXT_SUFFIXES)


@dataclass(frozen=True)
class Source:
    """Where records come from: local files, or a loaded `datasets.Dataset`; `key` names the setting for errors."""

    key: str
    path: str
    files: tuple[Path, ...] = ()
    hub: Any = None

    def digest(self) -> str:
        """A hash of the content: of the files' bytes in order, or the hub dataset's fingerprint."""
        if self.hub is not None:
            return str(self.hub._fingerprint)  # `datasets` offers no public name for it
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.suffix.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def rows(self) -> Iterator[tuple[str, Row]]:
        """(where it stands, row) in order. Raises ValueError for what cannot be read, and if there is no row at all."""
        empty = True
        for row in self._hub_rows() if self.hub is not None else self._file_rows():
            empty = False
            yield row
        if empty:
            raise ValueError(
                f"{self.key}={self.path} is empty: no records in it; set {self.key} to a file with records"
            )

    def _hub_rows(self) -> Iterator[tuple[str, Row]]:
        for number, row in enumerate(self.hub, start=1):
            yield f"{self.key}={self.path}, record {number}", row

    def _file_rows(self) -> Iterator[tuple[str, Row]]:
        for file in self.files:
            for place, row in _reader(file)(file, self.key):
                yield f"{self.key}: {file}, {place}", row


def open_source(path: str, key: str, subset: str | None = None, hub_file: str | None = None) -> Source:
    """A local file, a folder, or a hub dataset: `owner/name` or `owner/name:split` (split `train` where none is given).

    Of a hub dataset `hub_file` is read alone, where it is named: nothing else is fetched.

    Raises ValueError if it is none of these, or if a folder or file has no supported suffix.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        files = tuple(
            file
            for file in sorted(local.rglob("*"))
            if file.suffix.lower() in SUFFIXES and not any(part[0] == "." for part in file.relative_to(local).parts)
        )
        if not files:
            raise ValueError(
                f"{key}={path} is a folder without a {', '.join(SUFFIXES)} file; set {key} to one that has some"
            )
        return Source(key, path, files)
    if local.is_file():
        _reader(local)
        return Source(key, path, (local,))
    return Source(key, path, hub=_load_from_hub(path, key, subset, hub_file))


def text_field(row: Row, field: str, where: str, *, mend: str, optional: bool = False) -> str:
    """The string in `field` of a record; an optional one may be absent or null and is then "". Raises ValueError."""
    if isinstance(row, str):
        raise ValueError(f"{where}: plain text has no field {field!r}; {mend}")
    if field not in row:
        if optional:
            return ""
        raise ValueError(f"{where}: no field {field!r} (it has {', '.join(map(repr, row)) or 'none'}); {mend}")
    value = row[field]
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise ValueError(f"{where}: field {field!r} must be a string, found {kind}; {mend}")
    return value


def _load_from_hub(path: str, key: str, subset: str | None, hub_file: str | None) -> Any:
    looked = f"{key}={path}: no such file or folder (looked for {Path(path).expanduser().absolute()})"
    name, _, split = path.partition(":")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix.lower() in SUFFIXES:
        raise ValueError(f"{looked}; set {key} to an existing one or to the name of a hub dataset")
    from datasets import load_dataset

    split = split or "train"
    files = {} if hub_file is None else {"data_files": {split: hub_file}}
    try:
        return load_dataset(name, subset, split=split, **files)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{looked}, and the hub gave no dataset {name!r} ({reason}); set {key} to an existing path, or to a hub "
            f"dataset that is reachable or cached (its configuration: {key.rpartition('.')[0]}.subset, its split: "
            f"{key}={name}:SPLIT)"
        ) from error


def _reader(file: Path) -> Callable[[Path, str], Iterator[tuple[str, Row]]]:
    suffix = file.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        return _text_rows
    if suffix == ".parquet":
        return _parquet_rows
    if suffix == ".jsonl":
        return _jsonl_rows
    if suffix == ".json":
        return _json_rows
    raise ValueError(f"{file}: unknown suffix {suffix!r}; data files end in {', '.join(SUFFIXES)}")


def _text_rows(file: Path, key: str) -> Iterator[tuple[str, Row]]:
    text = _read_text(file, key)
    if text.strip():
        yield "whole file", text


def _json_rows(file: Path, key: str) -> Iterator[tuple[str, Row]]:
    text = _read_text(file, key)
    if not text.lstrip().startswith("["):  # many a .json file is in truth one record per line
        _refuse_one_object(text, file, key)
        yield from _json_lines(text, file, key)
        return
    for number, row in enumerate(_parse(text, file, key, first_line=1), start=1):
        yield f"record {number}", _as_record(row, f"{key}: {file}, record {number}")


def _refuse_one_object(text: str, file: Path, key: str) -> None:
    """An object over several lines is valid JSON, so that none of its lines is to blame."""
    if text.strip().count("\n") == 0:
        return  # one record on one line
    try:
        whole = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return  # one record per line, or malformed: the line is named then
    if isinstance(whole, dict):
        raise ValueError(
            f"{key}: {file} is an object, not an array of records (its fields: {', '.join(map(repr, whole))}); "
            "put its records into [...], or write one record per line"
        )


def _jsonl_rows(file: Path, key: str) -> Iterator[tuple[str, Row]]:
    yield from _json_lines(_read_text(file, key), file, key)


def _json_lines(text: str, file: Path, key: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = _parse(line, file, key, first_line=number)
            yield f"line {number}", _as_record(row, f"{key}: {file}, line {number}")


def _parquet_rows(file: Path, key: str) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{key}: {file} is no readable parquet file ({error}); write it anew") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"record {number}", row


def _read_text(file: Path, key: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}: {file} is not UTF-8 text (byte {error.start}); convert it to UTF-8") from error


def _parse(text: str, file: Path, key: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(
            f"{key}: {file}, line {line}, column {error.colno}: malformed JSON ({error.msg}); "
            f"a .json file is an array of records, a .jsonl file has one record per line"
        ) from error
    except RecursionError as error:
        raise ValueError(
            f"{key}: {file}, from line {first_line}: nested too deeply to be read; give plain records"
        ) from error


def _as_record(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a record must be a JSON object with named fields, found {type(row).__name__}")
    return row
