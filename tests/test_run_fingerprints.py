"""Resuming with something else than the run was started with is refused."""

from pathlib import Path

import pytest

from nas_llm.atomic_files import read_json
from nas_llm.run_directory import FINGERPRINTS_FILE
from nas_llm.run_fingerprints import refuse_mismatch


def test_resuming_with_another_space_is_refused_with_both_values(tmp_path: Path) -> None:
    refuse_mismatch(tmp_path, {"model": "abc", "search_space": {"hidden": (1, 2)}})
    refuse_mismatch(tmp_path, {"search_space": {"hidden": [1, 2]}, "data": "d"})
    with pytest.raises(ValueError, match=r"search_space.hidden=\[1, 3\] differs from search_space.hidden=\[1, 2\]"):
        refuse_mismatch(tmp_path, {"search_space": {"hidden": [1, 3]}})
    assert read_json(tmp_path / FINGERPRINTS_FILE)["data"] == "d"


def test_where_the_data_differ_the_setting_behind_it_is_named(tmp_path: Path) -> None:
    settings = {"seed": 0, "data.path": "a.txt", "data.test_size": 0.05}
    refuse_mismatch(tmp_path, {"data": "one"}, settings={"data": settings})
    refuse_mismatch(tmp_path, {"data": "one"}, settings={"data": settings | {"data.path": "moved/a.txt"}})
    with pytest.raises(ValueError, match=r"^seed=3 differs from seed=0 that .*: resume with the same seed, or"):
        refuse_mismatch(tmp_path, {"data": "other"}, settings={"data": settings | {"seed": 3}})
    with pytest.raises(ValueError, match=r'^data="other" differs from data="one"'):  # the file's content has changed
        refuse_mismatch(tmp_path, {"data": "other"}, settings={"data": settings})
