"""The run directory: locks, whole-file writes on a full disk, merged metrics, mismatches; provenance."""

import errno
import json
import math
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from nas_llm import provenance
from nas_llm import run_directory as rd

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
        with pytest.raises(ValueError, match=f"pid {holder.pid} .*run_dir="), rd.locked(tmp_path / "run"):
            pass
        holder.communicate("\n")
    with rd.locked(tmp_path / "run") as path:
        assert path == tmp_path / "run"


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    with rd.locked(tmp_path):
        pass


def test_other_ranks_share_the_main_ones_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with rd.locked(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert not rd.is_main_process()
        with rd.locked(tmp_path) as path:
            assert path == tmp_path
        with provenance.recorded(tmp_path, stage="train", argv=[], seed=0):
            assert not (tmp_path / "provenance.json").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"run_dir=.*cannot be made"):
        rd.create(tmp_path / place)


def fail_to_write(path: Path, error: Exception) -> None:
    with rd.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    rd.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError):
        fail_to_write(tmp_path / "a.txt", RuntimeError())
    assert (tmp_path / "a.txt").read_text() == "old"
    assert not leftovers(tmp_path)


def test_a_full_disk_gives_one_clear_error(tmp_path: Path) -> None:
    rd.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ValueError, match=r"a.txt could not be written \(No space left on device\)"):
        fail_to_write(tmp_path / "a.txt", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert (tmp_path / "a.txt").read_text() == "old"
    assert not leftovers(tmp_path)


def test_a_file_that_may_not_grow_gives_one_clear_error(tmp_path: Path, file_size_limit) -> None:
    rd.write_text(tmp_path / "a.txt", "old")
    with (
        file_size_limit(100),
        pytest.raises(ValueError, match=r"a.txt could not be written \(File too large\).*run_dir="),
    ):
        rd.write_text(tmp_path / "a.txt", "new" * 100)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert not leftovers(tmp_path)


def test_a_full_disk_leaves_no_lock_and_names_the_directory(tmp_path: Path, file_size_limit) -> None:
    run_dir = tmp_path / "runs" / "a"
    refused = pytest.raises(ValueError, match=rf"run_dir={run_dir} cannot be written \(File too large\)")
    with file_size_limit(0), refused, rd.started(run_dir), rd.locked(run_dir):
        pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_does_not_hide_what_ended_a_stage(tmp_path: Path, file_size_limit) -> None:
    def fail() -> None:
        with ExitStack() as stack, provenance.recorded(tmp_path, stage="train", argv=[], seed=3):
            stack.enter_context(file_size_limit(10))
            raise ValueError("what ended the stage")

    with pytest.raises(ValueError, match="what ended the stage"):
        fail()
    (entry,) = json.loads((tmp_path / "provenance.json").read_text())["stages"]
    assert entry["status"] == "running"


def test_what_killed_processes_left_is_cleared_by_the_next_one(tmp_path: Path) -> None:
    half, old = tmp_path / ".supernet.71.nas_llm.tmp", tmp_path / ".supernet.71.nas_llm.old.tmp"
    for folder in (half, old, tmp_path / "checkpoints", tmp_path / "logs"):
        folder.mkdir()
    for file in (half / "half", old / "whole", tmp_path / "checkpoints" / ".last.ckpt.71.nas_llm.tmp"):
        file.touch()
    for file in (tmp_path / ".results.json.8.nas_llm.tmp", tmp_path / "logs" / ".others.8.tmp"):
        file.touch()
    rd.refuse_outputs(tmp_path)  # half a checkpoint is no result
    with rd.locked(tmp_path):
        found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {".lock", "checkpoints", "logs", "logs/.others.8.tmp", "supernet", "supernet/whole"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_full_is_recognised() -> None:
    with pytest.raises(OSError) as caught, Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    assert rd.disk_error(caught.value) == "No space left on device"


def test_other_errors_of_the_system_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), rd.atomic_path(tmp_path / "a.txt"):
        (tmp_path / "missing").read_text()


def test_a_directory_replaces_a_directory_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with rd.atomic_path(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_json_is_strict_and_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        rd.write_json(tmp_path / "a.json", {"loss": math.nan})
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.json").write_text('{\n"a": 1,\n"b"\n}')
    with pytest.raises(ValueError, match=r"a\.json is not JSON, line 4"):
        rd.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert rd.read_json(tmp_path / "a.json", "a") == {"a": 1}
    with pytest.raises(ValueError, match=r"a\.json has no 'metrics'; restore it"):
        rd.read_json(tmp_path / "a.json", "a", "metrics")
    with pytest.raises(ValueError, match=r"b\.json does not exist"):
        rd.read_json(tmp_path / "b.json")


def test_metrics_merge_by_what_they_are_about(tmp_path: Path) -> None:
    loss = {"name": "loss", "value": 2.0, "unit": "nats/token", "architecture": "a", "split": "test", "samples": 3}
    rd.add_metrics(tmp_path, [loss, {**loss, "split": "validation"}])
    rd.add_metrics(tmp_path, [{**loss, "value": 1.0}, {**loss, "architecture": "b", "value": math.inf}])
    found = {(metric["architecture"], metric["split"]): metric["value"] for metric in rd.read_metrics(tmp_path)}
    assert found == {("a", "test"): 1.0, ("a", "validation"): 2.0, ("b", "test"): None}


def test_resuming_with_another_space_is_refused_with_both_values(tmp_path: Path) -> None:
    rd.refuse_mismatch(tmp_path, {"model": "abc", "search_space": {"hidden": (1, 2)}})
    rd.refuse_mismatch(tmp_path, {"search_space": {"hidden": [1, 2]}, "data": "d"})
    with pytest.raises(ValueError, match=r"search_space.hidden=\[1, 3\] differs from search_space.hidden=\[1, 2\]"):
        rd.refuse_mismatch(tmp_path, {"search_space": {"hidden": [1, 3]}})
    assert rd.read_json(tmp_path / rd.FINGERPRINTS_FILE)["data"] == "d"


def test_where_the_data_differ_the_setting_behind_it_is_named(tmp_path: Path) -> None:
    settings = {"seed": 0, "data.path": "a.txt", "data.test_size": 0.05}
    rd.refuse_mismatch(tmp_path, {"data": "one"}, settings={"data": settings})
    rd.refuse_mismatch(tmp_path, {"data": "one"}, settings={"data": settings | {"data.path": "moved/a.txt"}})
    with pytest.raises(ValueError, match=r"^seed=3 differs from seed=0 that .*: resume with the same seed, or"):
        rd.refuse_mismatch(tmp_path, {"data": "other"}, settings={"data": settings | {"seed": 3}})
    with pytest.raises(ValueError, match=r'^data="other" differs from data="one"'):  # the file's content has changed
        rd.refuse_mismatch(tmp_path, {"data": "other"}, settings={"data": settings})


def test_a_new_run_does_not_mix_with_an_older_ones_results(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    rd.refuse_mismatch(tmp_path, {"model": "of a start that failed"})
    rd.refuse_outputs(tmp_path)
    rd.forget_start(tmp_path)
    rd.refuse_mismatch(tmp_path, {"model": "of the next one"})
    (tmp_path / "archive.jsonl").touch()
    with pytest.raises(ValueError, match=r"already holds a run \(archive.jsonl\).*ckpt_path=last"):
        rd.refuse_outputs(tmp_path)


def test_every_stage_is_recorded_with_its_end(tmp_path: Path) -> None:
    with provenance.recorded(tmp_path, stage="train", argv=["nas-llm", "train"], seed=3):
        running = json.loads((tmp_path / "provenance.json").read_text())["stages"]
        assert [entry["status"] for entry in running] == ["running"]
    with pytest.raises(ValueError), provenance.recorded(tmp_path, stage="search", argv=[], seed=3):
        raise ValueError("no")
    with pytest.raises(KeyboardInterrupt), provenance.recorded(tmp_path, stage="export", argv=[], seed=3):
        raise KeyboardInterrupt
    first, *others = json.loads((tmp_path / "provenance.json").read_text())["stages"]
    assert [entry["status"] for entry in (first, *others)] == ["finished", "failed", "interrupted"]
    assert others[0]["error"] == "ValueError: no"
    assert first["argv"] == ["nas-llm", "train"]
    assert first["seed"] == 3
    assert first["versions"]["torch"]
    assert first["hardware"]["cores"] >= 1
    assert first["hardware"]["memory_gib"] > 0
    assert first["started"] <= first["finished"]


def test_git_state_names_the_commit_and_whether_files_differ(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@e.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").touch()
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    state = provenance.git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert not state["dirty"]
    (tmp_path / "a").write_text("changed")
    assert provenance.git_state(tmp_path) == {**state, "dirty": True}
    assert provenance.source_state(tmp_path / "a") == provenance.git_state(tmp_path)
    (tmp_path / "installed.py").touch()  # as in a virtual environment inside of someone's repository
    assert provenance.source_state(tmp_path / "installed.py") is None


def test_a_place_where_something_will_be_written_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    rd.refuse_unmakable(tmp_path / "a" / "b", "logger.save_dir")
    rd.refuse_unmakable(tmp_path, "logger.save_dir")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="^logger.save_dir=.*file/a cannot be made .*: choose another logger"):
        rd.refuse_unmakable(tmp_path / "file" / "a", "logger.save_dir")
