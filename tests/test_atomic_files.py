"""Whole-file writes, also on a full disk; strict JSON."""

import errno
import math
import os
from pathlib import Path

import pytest

from nas_llm.atomic_files import atomic_path, disk_error, read_json, write_json, write_text


def fail_to_write(path: Path, error: Exception) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError):
        fail_to_write(tmp_path / "a.txt", RuntimeError())
    assert (tmp_path / "a.txt").read_text() == "old"
    assert not leftovers(tmp_path)


def test_a_full_disk_gives_one_clear_error(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ValueError, match=r"a.txt could not be written \(No space left on device\)"):
        fail_to_write(tmp_path / "a.txt", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert (tmp_path / "a.txt").read_text() == "old"
    assert not leftovers(tmp_path)


def test_a_file_that_may_not_grow_gives_one_clear_error(tmp_path: Path, file_size_limit) -> None:
    write_text(tmp_path / "a.txt", "old")
    with (
        file_size_limit(100),
        pytest.raises(ValueError, match=r"a.txt could not be written \(File too large\).*run_dir="),
    ):
        write_text(tmp_path / "a.txt", "new" * 100)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert not leftovers(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_full_is_recognised() -> None:
    with pytest.raises(OSError) as caught, Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    assert disk_error(caught.value) == "No space left on device"


def test_other_errors_of_the_system_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        (tmp_path / "missing").read_text()


def test_a_directory_replaces_a_directory_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_path(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_json_is_strict_and_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": math.nan})
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.json").write_text('{\n"a": 1,\n"b"\n}')
    with pytest.raises(ValueError, match=r"a\.json is not JSON, line 4"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json", "a") == {"a": 1}
    with pytest.raises(ValueError, match=r"a\.json has no 'metrics'; restore it"):
        read_json(tmp_path / "a.json", "a", "metrics")
    with pytest.raises(ValueError, match=r"b\.json does not exist"):
        read_json(tmp_path / "b.json")
