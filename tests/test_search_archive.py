import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from search_fixtures import joint_space, measure

from nas_llm.search import TRUNCATION, Archive, Evaluation, read_archive
from nas_llm.search import archive as archive_module


@pytest.fixture
def evaluations():
    space, rng = joint_space(), np.random.default_rng(0)
    architectures = list({space.sample(rng): None for _ in range(6)})
    return [Evaluation(a, measure(a), "nsga2", 7) for a in architectures]


def write(path, evaluations):
    archive = Archive(path)
    for evaluation in evaluations:
        archive.append(evaluation)
    return archive


def test_round_trip_is_exact_and_one_line_each(tmp_path, evaluations):
    path = tmp_path / "archive.jsonl"
    write(path, evaluations)
    assert list(Archive(path).evaluations) == evaluations == read_archive(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == [e.architecture.id for e in evaluations]
    assert set(lines[0]) == {"id", "architecture", "objectives", "source", "step", "seconds"}


def test_values_that_are_not_finite_stay_strict_json(tmp_path, evaluations):
    path = tmp_path / "archive.jsonl"
    write(path, [Evaluation(evaluations[0].architecture, {"loss": math.inf}, "nsga2", 0)])
    assert json.loads(path.read_text())["objectives"]["loss"] is None
    (read,) = read_archive(path)
    assert math.isnan(read.objectives["loss"])
    assert not read.is_finite(["loss"])


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_last_line_is_dropped_said_and_overwritten(tmp_path, evaluations, caplog, cut):
    path = tmp_path / "archive.jsonl"
    write(path, evaluations)
    os.truncate(path, path.stat().st_size - cut)
    assert read_archive(path) == evaluations[:-1]
    with caplog.at_level(logging.WARNING):
        archive = Archive(path)
    assert "torn last line" in caplog.text
    assert list(archive.evaluations) == evaluations[:-1]
    archive.append(evaluations[-1])
    assert read_archive(path) == evaluations


def test_a_torn_line_in_the_middle_is_refused_with_its_number(tmp_path, evaluations):
    path = tmp_path / "archive.jsonl"
    write(path, evaluations)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[2][:40] + "\n", *lines[3:]]))
    with pytest.raises(ValueError, match=r"line 3"):
        Archive(path)


def test_an_id_that_is_not_its_architectures_is_refused(tmp_path, evaluations):
    path = tmp_path / "archive.jsonl"
    write(path, evaluations[:2])
    path.write_text(path.read_text().replace(evaluations[0].id, "0" * 12))
    with pytest.raises(ValueError, match=r"line 1.*not that of its architecture"):
        Archive(path)


def test_lookup_is_by_architecture_step_and_network(evaluations):
    archive, first = Archive(), evaluations[0]
    archive.append(first)
    archive.append(Evaluation(first.architecture, {"loss": 9.0}, TRUNCATION, 7))
    assert archive.find(first.architecture, step=7) == first
    assert archive.find(first.architecture, step=8) is None
    assert archive.find(first.architecture, step=7, source=TRUNCATION).objectives == {"loss": 9.0}
    assert archive.at(7) == [first]
    assert [e.source for e in archive.at(7, source=TRUNCATION)] == [TRUNCATION]


def test_lines_of_one_architecture_at_one_step_are_one_evaluation(tmp_path, evaluations):
    path, (first, second, *_) = tmp_path / "archive.jsonl", evaluations
    later = replace(first, objectives={"loss": 1.0, "latency": 2.0}, source="random", seconds=0.25)
    write(path, [first, second, later])
    write(path, [replace(first, step=8), replace(second, objectives={"loss": 9.0}, source=TRUNCATION)])
    for read in (list(Archive(path).evaluations), read_archive(path)):
        assert [(e.id, e.step) for e in read] == [(first.id, 7), (second.id, 7), (first.id, 8), (second.id, 7)]
        assert read[0].objectives == {**first.objectives, "loss": 1.0, "latency": 2.0}
        assert (read[0].source, read[0].seconds) == ("random", 0.25)
        assert read[1:3] == [second, replace(first, step=8)]


def test_lines_from_before_seconds_were_recorded_are_read(tmp_path, evaluations):
    path = tmp_path / "archive.jsonl"
    lines = [{k: v for k, v in e.to_dict().items() if k != "seconds"} for e in evaluations]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_archive(path) == evaluations
    assert [e.seconds for e in read_archive(path)] == [0.0] * 6


def test_a_full_disk_is_one_error_and_leaves_whole_lines(tmp_path, evaluations, monkeypatch):
    path = tmp_path / "archive.jsonl"
    archive = write(path, evaluations[:2])
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archive_module.os, "fsync", full)
    with pytest.raises(ValueError, match=r"could not be written \(No space left on device\)"):
        archive.append(evaluations[2])
    assert path.read_bytes() == before
    assert len(archive.evaluations) == 2


def test_a_line_that_does_not_fit_is_taken_back_whole(tmp_path, evaluations, file_size_limit):
    path = tmp_path / "archive.jsonl"
    archive = write(path, evaluations[:2])
    before = path.read_bytes()
    with (
        file_size_limit(len(before) + 20),
        pytest.raises(ValueError, match=r"archive.jsonl could not .*File too large"),
    ):
        archive.append(evaluations[2])
    assert path.read_bytes() == before


WRITER = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import numpy as np
from search_fixtures import joint_space, measure
from nas_llm.search.archive import Archive, Evaluation
space, rng = joint_space(), np.random.default_rng(0)
archive = Archive({path!r})
print("ready", flush=True)
while True:
    architecture = space.sample(rng)
    archive.append(Evaluation(architecture, measure(architecture), "nsga2", 0))
"""


def test_kill_9_while_writing_leaves_a_readable_archive(tmp_path):
    path, tests = tmp_path / "archive.jsonl", Path(__file__).parent
    code = WRITER.format(tests=str(tests), root=str(tests.parent), path=str(path))
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"ready\n"
    while not path.exists() or path.stat().st_size < 20_000:
        assert writer.poll() is None
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    lines = [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert [e.id for e in Archive(path).evaluations] == list(dict.fromkeys(line["id"] for line in lines))
    assert len(lines) > 10


def test_a_torn_line_inside_is_named_by_one_number(tmp_path, evaluations):
    path = tmp_path / "archive.jsonl"
    write(path, evaluations)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[2][:30] + "\n", *lines[3:]]))
    with pytest.raises(ValueError, match="line 3: not JSON") as refused:
        Archive(path)
    assert str(refused.value).count("line ") == 2  # line 3, and "remove that line"
