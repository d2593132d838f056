"""The report of a folder of runs: arms by what differs but the seed, best values by size, bands, hypervolumes."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import pytest
import reporting_fixtures
from reporting_fixtures import FULL, make_run

from nas_llm import cli
from nas_llm.atomic_files import read_json, write_text
from nas_llm.reporting import arm_look
from nas_llm.reporting.run_files import RunFiles
from nas_llm.reporting.sweep import Sweep, is_run, runs_below
from nas_llm.reporting.sweep_progress import hypervolumes
from nas_llm.reporting.sweep_report import write_sweep_report
from nas_llm.search.archive import TRUNCATION, read_archive

ARMS = {"random": 0.1, "sandwich": 0.0}  # name -> what is added to every loss


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two arms of two seeds, as `nas-llm train -m sampler=random,sandwich seed=0,1` leaves them."""
    path, job = tmp_path_factory.mktemp("sweep"), 0
    measure = reporting_fixtures.measure
    for arm, worse in ARMS.items():
        for seed in (0, 1):
            shift = worse + 0.01 * seed

            def shifted(architecture, known=None, shift=shift):
                values = measure(architecture)
                return {**values, "loss": values["loss"] + shift}

            reporting_fixtures.measure = shifted
            try:
                run = make_run(path / f"{job}-sampler-{arm}_seed-{seed}", evaluations=30, exports=False)
            finally:
                reporting_fixtures.measure = measure
            lines = ["trainer.max_steps=9", f"sampler={arm}", f"seed={seed}"]
            write_text(run / ".hydra" / "overrides.yaml", "".join(f"- {line}\n" for line in lines))
            job += 1
    return path


def best_loss(run: Path, fraction: float) -> float:
    """From the archive's lines alone."""
    measured = [e for e in read_archive(run / "archive.jsonl") if e.source != TRUNCATION]
    full = next(e for e in measured if e.architecture == FULL.largest()).objectives["params"]
    return min(e.objectives["loss"] for e in measured if e.objectives["params"] <= fraction * full)


def test_arms_are_what_differs_but_the_seed(folder):
    sweep = Sweep.of(folder)
    assert [arm.name for arm in sweep.arms] == list(ARMS)
    assert [len(arm.searches) for arm in sweep.arms] == [2, 2]
    assert not is_run(folder)
    assert [is_run(run) for run in runs_below(folder)] == [True] * 4


def test_means_and_deviations_are_those_of_the_archives(folder):
    sweep = Sweep.of(folder)
    for place, arm in enumerate(sweep.arms):
        for fraction in (0.75, 0.5, 0.25):
            values = [best_loss(run, fraction) for run in runs_below(folder)[2 * place : 2 * place + 2]]
            spread = arm.best("loss", fraction)
            assert spread.mean == pytest.approx(statistics.fmean(values))
            assert spread.deviation == pytest.approx(statistics.stdev(values))
    assert sweep.arms[0].best("loss", 0.0001) is None


def test_the_better_arm_has_the_larger_hypervolume(folder):
    sweep = Sweep.of(folder)
    random, sandwich = (sweep.hypervolume(arm, "loss") for arm in sweep.arms)
    assert random.mean + random.deviation < sandwich.mean


def test_the_stage_prints_the_table_and_writes_the_files(folder, capsys):
    assert cli.run(["report", f"run_dir={folder}"]) == 0
    shown = capsys.readouterr().out
    assert "sandwich" in shown
    assert "±" in shown
    assert (folder / "sweep.png").stat().st_size > 10_000
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    (half,) = [row for row in rows if row["arm"] == "random" and row["quality"] == "loss" and row["fraction"] == "0.5"]
    assert float(half["mean"]) == Sweep.of(folder).arms[0].best("loss", 0.5).mean
    volumes = [row for row in rows if row["quality"] == "hypervolume of loss"]
    fronts = [e for run in runs_below(folder) for e in RunFiles(run).search.front]
    worst = max(e.objectives["loss"] for e in fronts)
    assert [row["unit"] for row in volumes] == ["nats/token"] * 2
    assert {row["reference"] for row in volumes} == {f"{worst}, worst of any run"}
    assert "hypervolume of loss [nats/token]" in shown
    assert f"worst of any run (loss {worst:.3f}" in shown
    assert cli.run(["report", f"run_dir={folder}"]) == 0, "what a report leaves makes the folder no run"


@pytest.fixture(scope="module")
def searches(tmp_path_factory) -> Path:
    """Two searches each of two super-networks, in copies of their runs; the second measures a tenth of a nat more."""
    path = tmp_path_factory.mktemp("searches")
    measure = reporting_fixtures.measure
    for budget in (30, 12):
        for seed in (0, 1):
            shift = 0.1 * seed

            def shifted(architecture, known=None, shift=shift):
                values = measure(architecture)
                return {**values, "loss": values["loss"] * (1 + shift)}

            reporting_fixtures.measure = shifted
            try:
                run = make_run(path / str(budget) / f"{seed}-seed-{seed}", evaluations=budget, exports=False)
            finally:
                reporting_fixtures.measure = measure
            write_text(run / ".hydra" / "overrides.yaml", f"- seed={seed}\n")
            overrides = f"- seed={seed}\n- search.evaluations={budget}\n- search.seed={budget}\n"
            write_text(run / ".hydra" / "search" / "overrides.yaml", overrides)
    return path


def value_after(run: Path, evaluations: int) -> float:
    """Of the curve in search.json, by its definition."""
    (curve,) = read_json(run / "search.json")["hypervolume"]["curves"].values()
    return max(value for count, value in curve if count <= evaluations)


def test_searches_of_the_same_networks_are_arms_by_their_own_settings(searches, folder):
    sweep = Sweep.of(searches)
    assert {arm.name: len(arm.searches) for arm in sweep.arms} == {"12": 2, "30": 2}
    assert sweep.shares_networks
    assert not Sweep.of(folder).shares_networks, "arms of other weights"


def test_hypervolumes_over_the_evaluations_are_means_of_the_searches(searches):
    arms = {arm.name: hypervolumes(arm) for arm in Sweep.of(searches).arms}
    assert {name: len(curve) for name, curve in arms.items()} == {"12": 12, "30": 30}
    for name, curve in arms.items():
        for evaluations, spread in enumerate(curve, 1):
            values = [value_after(run, evaluations) for run in sorted((searches / name).iterdir())]
            assert spread.mean == pytest.approx(statistics.fmean(values))
            assert spread.deviation == pytest.approx(statistics.stdev(values))
    assert arms["30"][-1].mean > arms["30"][3].mean


def test_the_progress_of_searches_is_drawn_and_printed(searches, capsys):
    assert cli.run(["report", f"run_dir={searches}"]) == 0
    shown = capsys.readouterr().out
    assert "hypervolume after  3 evaluations  8 evaluations  15 evaluations  30 evaluations" in shown
    assert (searches / "sweep_progress.png").stat().st_size > 10_000
    with (searches / "sweep_progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30 + 12
    (row,) = [row for row in rows if (row["arm"], row["evaluations"]) == ("30", "8")]
    assert float(row["mean"]) == hypervolumes(next(a for a in Sweep.of(searches).arms if a.name == "30"))[7].mean


def test_more_arms_than_colours_are_told_apart():
    looks = [(str(arm_look.line(place)), arm_look.marker(place)) for place in range(24)]
    assert len(set(looks)) == 24


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="holds no run"):
        write_sweep_report(tmp_path)
    assert cli.run(["report", f"run_dir={tmp_path}"]) == 2
    assert "holds no run" in capsys.readouterr().err
