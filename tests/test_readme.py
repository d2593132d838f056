"""What the README says is what runs: its Python example, its commands, its map of the folders."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nas_llm import cli
from nas_llm.composition import checked

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)


def commands_of(text: str) -> list[list[str]]:
    """The words of every command in the text's blocks."""
    return [
        shlex.split(line.partition("  #")[0])
        for block in re.findall(r"```bash\n(.*?)```", text, re.S)
        for line in block.splitlines()
        if line.startswith(("nas-llm", "make"))
    ]


SECTIONS = {part.partition("\n")[0]: commands_of(part) for part in README.split("\n## ")}
COMMANDS = [command for commands in SECTIONS.values() for command in commands]
CHECKED = [*SECTIONS["Low-rank adapters, sparse and quantised bases"], *SECTIONS["Measuring"]]


@pytest.mark.parametrize("command", CHECKED, ids=" ".join)
def test_a_command_fits_the_configuration(command):
    given = [f"{command[1]}={command[2]}", *command[3:]] if command[1] in ("bench", "reproduce") else command[2:]
    assert checked([f"stage={command[1]}", *given], given).stage == command[1]


def test_the_python_example_runs(tmp_path):
    (example,) = [block for language, block in BLOCKS if language == "python"]
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    counted, loaded = done.stdout.split()
    assert counted == loaded


def test_the_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {command[1] for command in COMMANDS if command[0] == "make"}
    assert named == {"quickstart", "test"}
    assert named <= targets


def test_make_quickstart_runs_the_quickstart():
    assert "nas-llm train experiment=quickstart" in (ROOT / "Makefile").read_text()


def test_folders_and_files_of_the_map_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    rows = re.findall(r"^\| (`.+?) \|", README, re.M)
    folders = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    named = [*links, *folders]
    assert len(named) > 12
    missing = [name for name in named if not any((place / name).exists() for place in (ROOT, ROOT / "nas_llm"))]
    # rows name siblings after the first by their last part: `nas_llm/importance`, `samplers`
    assert not missing


@pytest.mark.real
def test_the_commands_run_on_a_real_model(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = {
        "model.path": shared_data / "models" / "stories260K",
        "data.path": shared_data / "instruct" / "alpaca_en_demo.json",
        "trainer.max_steps": 3,
        "search.evaluations": 12,
    }
    small = ["data.sequence_length=128", "data.max_records=60", "data.batch_size=4", "data.cache_dir=cache"]
    small += ["data.calibration_size=4", "search_space.steps=3", "search.population=6", "trainer.accelerator=cpu"]
    ran = []
    for command in SECTIONS["On your own model"]:
        given = command[3:] if command[1] == "analyse" else command[2:]
        overrides = [f"{key}={real[key]}" if (key := item.partition("=")[0]) in real else item for item in given]
        if command[1] in ("train", "analyse"):
            overrides += small if command[1] == "train" else [item for item in small if "search.pop" not in item]
        if command[1] == "analyse":
            overrides += ["analysis.subnetworks=4", "analysis.compare=[none,activation]"]
        named = command[1:3] if command[1] == "analyse" else command[1:2]
        assert cli.run([*named, *overrides]) == 0, command
        ran.append(command[1])
    assert ran == ["train", "search", "evaluate", "export", "report", "analyse"]
    assert (tmp_path / "half" / "config.json").is_file()
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


@pytest.mark.real
def test_the_commands_of_operators_run_on_a_real_model(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, text = (
        shared_data / "models" / "stories260K",
        shared_data / "text" / "tinystories" / "tinystories_niklas6_200k.txt",
    )
    small = ["data.sequence_length=64", "data.batch_size=4", "data.cache_dir=cache", "data.max_records=100"]
    small += ["data.calibration_size=8", "data.validation_size=8", "data.test_size=8", "trainer.accelerator=cpu"]
    few = {
        "distill": [*small, "pool.attention=[identity,linear]", "pool.mlp=[identity,ffn-0.5]", "distill.steps=2"],
        "search": ["search.number=2", "select.steps=1", "latency.rounds=2", "latency.sequence_length=64"],
        "train": [*small, "trainer.max_steps=2"],
    }
    ran = []
    for command in SECTIONS["Networks of distilled operators"]:
        given = [item.replace("path-or-hub-name", str(model)).replace("corpus.txt", str(text)) for item in command[2:]]
        if command[1] == "train":
            (network,) = (tmp_path / "runs" / "operators" / "networks").iterdir()
            given = [item.replace("/ID", f"/{network.name}") for item in given]
        assert cli.run([command[1], *given, *few[command[1]]]) == 0, command
        ran.append(command[1])
    assert ran == ["distill", "search", "train"]
