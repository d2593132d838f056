"""Where results come from: every stage with its end, git state."""

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from nas_llm import provenance


def test_a_full_disk_does_not_hide_what_ended_a_stage(tmp_path: Path, file_size_limit) -> None:
    def fail() -> None:
        with ExitStack() as stack, provenance.recorded(tmp_path, stage="train", argv=[], seed=3):
            stack.enter_context(file_size_limit(10))
            raise ValueError("what ended the stage")

    with pytest.raises(ValueError, match="what ended the stage"):
        fail()
    (entry,) = json.loads((tmp_path / "provenance.json").read_text())["stages"]
    assert entry["status"] == "running"


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
