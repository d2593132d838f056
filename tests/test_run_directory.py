"""The run directory: locks, what killed processes and failed starts leave, what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from nas_llm import provenance
from nas_llm.ranks import is_main_process
from nas_llm.run_directory import create, locked, refuse_outputs, refuse_unmakable, started
from nas_llm.run_fingerprints import forget_start, refuse_mismatch

HOLD = """
import sys
from nas_llm.run_directory import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused_and_the_first_one_named(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"pid {holder.pid} .*run_dir="), locked(tmp_path / "run"):
            pass
        holder.communicate("\n")
    with locked(tmp_path / "run") as path:
        assert path == tmp_path / "run"


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    with locked(tmp_path):
        pass


def test_other_ranks_share_the_main_ones_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert not is_main_process()
        with locked(tmp_path) as path:
            assert path == tmp_path
        with provenance.recorded(tmp_path, stage="train", argv=[], seed=0):
            assert not (tmp_path / "provenance.json").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"run_dir=.*cannot be made"):
        create(tmp_path / place)


def test_a_full_disk_leaves_no_lock_and_names_the_directory(tmp_path: Path, file_size_limit) -> None:
    run_dir = tmp_path / "runs" / "a"
    refused = pytest.raises(ValueError, match=rf"run_dir={run_dir} cannot be written \(File too large\)")
    with file_size_limit(0), refused, started(run_dir), locked(run_dir):
        pass
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_left_is_cleared_by_the_next_one(tmp_path: Path) -> None:
    half, old = tmp_path / ".supernet.71.nas_llm.tmp", tmp_path / ".supernet.71.nas_llm.old.tmp"
    for folder in (half, old, tmp_path / "checkpoints", tmp_path / "logs"):
        folder.mkdir()
    for file in (half / "half", old / "whole", tmp_path / "checkpoints" / ".last.ckpt.71.nas_llm.tmp"):
        file.touch()
    for file in (tmp_path / ".results.json.8.nas_llm.tmp", tmp_path / "logs" / ".others.8.tmp"):
        file.touch()
    refuse_outputs(tmp_path)  # half a checkpoint is no result
    with locked(tmp_path):
        found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {".lock", "checkpoints", "logs", "logs/.others.8.tmp", "supernet", "supernet/whole"}


def test_a_new_run_does_not_mix_with_an_older_ones_results(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    refuse_mismatch(tmp_path, {"model": "of a start that failed"})
    refuse_outputs(tmp_path)
    forget_start(tmp_path)
    refuse_mismatch(tmp_path, {"model": "of the next one"})
    (tmp_path / "archive.jsonl").touch()
    with pytest.raises(ValueError, match=r"already holds a run \(archive.jsonl\).*ckpt_path=last"):
        refuse_outputs(tmp_path)


def test_a_place_where_something_will_be_written_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    refuse_unmakable(tmp_path / "a" / "b", "logger.save_dir")
    refuse_unmakable(tmp_path, "logger.save_dir")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="^logger.save_dir=.*file/a cannot be made .*: choose another logger"):
        refuse_unmakable(tmp_path / "file" / "a", "logger.save_dir")
