"""Tables of papers made again: published rows, numbers in files, placeholders, resuming, and the finished table."""

from __future__ import annotations

import csv
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Timer
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf
from scipy.stats import rankdata

from nas_llm.atomic_files import write_json
from nas_llm.cli import INTERRUPTED, as_overrides
from nas_llm.config import build, config_dir
from nas_llm.config_errors import options
from nas_llm.metrics import add_metrics
from nas_llm.reproduction.estimate import needs_of
from nas_llm.reproduction.filling import planned, slug
from nas_llm.reproduction.published import DAMAGED, published_dir, read_published
from nas_llm.reproduction.records import at, matching, reduced
from nas_llm.reproduction.spec import SCALES, Quotient, Reproduction
from nas_llm.reproduction.worker_process import worker
from nas_llm.stages.reproduce import chosen_rows, refuse_unpublished, reproduced
from nas_llm.worker import _run, configurations

TABLES = options(config_dir(), "reproduce")
CSVS = sorted(path for path in published_dir().glob("paper*/*.csv") if not path.stem.endswith(SCALES))  # not our own


@cache
def loaded(table: str) -> Reproduction:
    """A specification by itself, without the rest of the configuration."""
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return build(hydra.compose(f"reproduce/{table}").reproduce)


# --- published rows


def test_every_named_table_has_its_published_rows():
    named = {f"{path.parent.name}/{path.stem}" for path in CSVS}
    assert named >= {"paper1/table1", *(f"paper2/table{n}" for n in (1, 2, 3))}
    assert named >= {f"paper3/table{n}" for n in (1, 2, 3, 4, 5, 9, 10)}
    assert set(TABLES) >= named - {"paper2/further"}


@pytest.mark.parametrize("path", CSVS, ids=[f"{path.parent.name}/{path.stem}" for path in CSVS])
def test_published_rows_parse(path):
    table = read_published(path)
    assert table
    for published in table.values():
        assert published.unit
        assert published.source
        assert (published.value is None) == published.note.startswith(DAMAGED)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["a,b,1,%,s,", "a,b,2,%,s,"], "is there twice"),
        (["a,b,,%,s,"], "begin its note with unreadable or doubtful"),
        (["a,b,much,%,s,"], "value=much is not a number"),
        (["a,b,nan,%,s,"], "is not finite"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, lines, says):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["row,column,value,unit,source,note", *lines]) + "\n")
    with pytest.raises(ValueError, match=says):
        read_published(path)


# --- specifications


@pytest.mark.parametrize("table", TABLES)
def test_a_specification_fits_its_published_rows(table):
    spec = loaded(table)
    published = {} if spec.published is None else read_published(published_dir() / f"{spec.published}.csv")
    refuse_unpublished(spec, published)
    assert spec.rows_at("mini")
    assert spec.rows_at("paper") or table.startswith("own/")  # of no paper
    for scale in SCALES:
        assert len({slug(row.name) for row in spec.rows_at(scale)}) == len(spec.rows_at(scale))
        for column in spec.columns_at(scale):
            beside = column.published
            names = {beside.of.partition("@")[0]} if isinstance(beside, Quotient) else set(beside)
            if spec.published is not None and names:  # a row beside a published one has a number to stand beside
                shown = [row.published for row in spec.rows_at(scale) if row.published is not None]
                assert any((row, name) in published for row in shown for name in names), column.name


def test_a_scale_without_rows_is_refused():
    with pytest.raises(ValueError, match="scale=paper: this table has no rows at it; set scale=mini"):
        chosen_rows(loaded("own/stories260k"), "paper", None)


@pytest.mark.parametrize("table", TABLES)
def test_commands_of_one_row_compose_and_check(table):
    """A sample, of either scale in turn; `nas-llm reproduce TABLE scale=paper` checks all that it would run."""
    spec, scale = loaded(table), "mini" if table.startswith("own/") else SCALES[TABLES.index(table) % 2]
    rows = spec.rows_at(scale)
    plan = planned(spec, scale, [rows[len(rows) // 2]])
    lines = [line for commands in plan.values() for line in commands][:3]
    assert len(configurations([shlex.split(line) for line in lines])) == len(lines)


def tiny(**changes: Any) -> dict[str, Any]:
    """A table of two rows on one shared run, with a speed-up and a row that is not published."""
    cell = {"file": "{run}/results.json", "where": {"name": "accuracy"}}
    node: dict[str, Any] = {
        "title": "A tiny table",
        "published": "paper1/table1",
        "notes": ["said twice in the source"],
        "setup": {"mini": "nothing is trained"},
        "columns": {
            "accuracy": {"unit": "%", "mini": cell},
            "latency": {"unit": "ms", "published": None, "mini": {**cell, "where": {"name": "latency"}}},
            "speed-up": {"unit": "x", "mini": {"of": "latency@base", "over": "latency"}},
        },
        "words": {"mini": {"on": "model.path={model}"}},
        "common": {"shared": {"mini": ["train {on} seed={seed} run_dir={run}"]}},
        "rows": {
            "base": {
                "mini": {"commands": ["evaluate run_dir={run} factor=1 of={shared} {on}"]},
                "each": [{"model": "m"}],
            },
            "small": {
                "published": None,
                "mini": {
                    "commands": ["export run_dir={run}", "evaluate run_dir={run} network={id} factor=2 of={shared}"],
                    "names": {"id": {"file": "{run}/found.jsonl", "where": {"best": True}, "value": "id"}},
                },
            },
        },
    }
    node["words"]["mini"]["model"] = "m"
    return node | changes


def test_unknown_things_in_a_specification_are_named():
    wrong = [
        (tiny(rows={"r": {"mini": {"commands": ["a run_dir={rnu}"]}}}), "{rnu} is filled by nothing: did you mean run"),
        (tiny(rows={"r": {"mini": {"comands": []}}}), "mini.comands is not known: did you mean commands"),
        (tiny(columns={"a": {"mini": {"file": "x", "reduce": "sum"}}}), "reduce=sum: allowed are only, last, mean"),
        (tiny(columns={"a": {"mini": {"value": "x"}}}), "mini.file is required"),
        (tiny(columns={"a": {"mini": {"file": 3}}}), "mini.file=3 is not allowed: it must be text"),
        (tiny(columns={"a": {"mini": {"of": "b", "over": "a"}}}), "there is no b"),
        (tiny(picture={"x": "size"}), "there is no column size"),
        (tiny(seeds={"small": [0]}), "reproduce.seeds.small is not known"),
        (tiny(tflops=0), "reproduce.tflops=0: allowed is a number above 0"),
    ]
    for node, says in wrong:
        with pytest.raises(ValueError) as caught:
            Reproduction(**node)
        assert says in str(caught.value)
    with pytest.raises(ValueError, match="there is no such row at scale=mini; choose"):
        chosen_rows(Reproduction(**tiny()), "mini", ["smal"])


def test_each_makes_a_row_of_every_place():
    spec = loaded("paper1/table1")
    assert len(spec.rows_at("paper")) == 20
    assert [row.name for row in spec.rows_at("mini")][:2] == ["phi-2, magnitude 2:4", "Llama-3.1-8B, magnitude 2:4"]
    assert as_overrides("reproduce", ["paper1/table1", "scale=mini"]) == ["reproduce=paper1/table1", "scale=mini"]
    assert as_overrides("reproduce", ["scale=mini"]) == ["scale=mini"]


# --- numbers in files


def test_numbers_are_found_and_reduced():
    rows = [{"layer": n, "kind": "ab"[n % 2], "costs": {"x": n * 0.25}, "losses": [5.0 - n, n * n]} for n in range(5)]
    texts = [{"layer": str(n), "kind": "ab"[n % 2], "share": f"{0.25 * n}"} for n in range(5)]
    assert [r["layer"] for r in matching(rows, {"kind": "a", "costs.x": "<=0.5"})] == [0, 2]
    assert [r["layer"] for r in matching(texts, {"share": ">=0.25 <=0.5"})] == ["1", "2"]
    assert [r["layer"] for r in matching(texts, {"layer": [1, 4]})] == ["1", "4"]
    assert at(rows[1], "losses.-1") == 1
    assert at(rows[1], "losses.2") is None
    assert reduced(rows, "losses.-1", "mean", whence="") == sum(n * n for n in range(5)) / 5
    assert reduced(rows, "losses.-1", "lowest losses.0", whence="") == 16
    assert reduced(rows, "losses.-1", "highest losses.0", whence="") == 0
    assert reduced(rows, "layer", "count", whence="") == 5
    for reduce, says in (("only", "5 records agree"), ("max", "is None, which is no finite number")):
        with pytest.raises(ValueError, match=says):
            reduced(rows, "layer" if reduce == "only" else "nothing", reduce, whence="f")
    with pytest.raises(ValueError, match="nothing agrees"):
        reduced([], "layer", "max", whence="f")


def test_rank_correlation_is_that_of_the_ranks():
    values, others = [3.0, 1.0, 4.0, 1.5, 9.0], [2.0, 7.0, 1.0, 8.0, 2.5]
    rows = [{"a": a, "b": b} for a, b in zip(values, others, strict=True)]
    squares = sum((x - y) ** 2 for x, y in zip(rankdata(values), rankdata(others), strict=True))
    assert reduced(rows, "a", "rank_correlation b", whence="") == pytest.approx(1 - 6 * squares / (5 * 24))


# --- running


class Stages:
    """Stands for `nas-llm`: writes what the stages of the tiny table would."""

    def __init__(self, fails: str = "") -> None:
        self.ran: list[list[str]] = []
        self.fails = fails

    def __call__(self, words: Sequence[str], log: Path) -> int:
        self.ran.append(list(words))
        given = dict(word.split("=", 1) for word in words[1:])
        if self.fails and self.fails in " ".join(words):
            log.write_text("a line\nnas-llm: error: it cannot be\n")
            return 2
        run_dir = Path(given["run_dir"])
        run_dir.mkdir(parents=True, exist_ok=True)
        if words[0] == "export":
            (run_dir / "found.jsonl").write_text('{"best": false, "id": "no"}\n{"best": true, "id": "e1"}\n')
        if words[0] == "evaluate":
            seed = int(given["of"][-1])
            factor = float(given["factor"])
            metrics = [("accuracy", 60 + seed - factor), ("latency", 8 / factor)]
            add_metrics(run_dir, [{"name": name, "value": value, "unit": ""} for name, value in metrics])
        return 0


PUBLISHED = {("base", "accuracy"): (58.0, ""), ("base", "speed-up"): (None, "unreadable")}


def made(run_dir: Path, stages: Stages, seeds: Sequence[int] = (0, 1), **changes: Any) -> list[str]:
    from nas_llm.reproduction.published import Published

    spec = Reproduction(**tiny(**changes))
    published = {key: Published(value, "%", "s", note) for key, (value, note) in PUBLISHED.items()}
    return reproduced(run_dir, spec, "mini", spec.rows_at("mini"), seeds, published, stages)


def cells(run_dir: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (run_dir / "table.csv").open(newline="") as file:
        return {(line["row"], line["column"]): line for line in csv.DictReader(file)}


def test_a_table_is_made_of_its_commands(tmp_path, capsys):
    stages = Stages()
    assert made(tmp_path / "run", stages) == []
    words = [" ".join(command) for command in stages.ran]
    assert [line.split()[0] for line in words] == ["train", "evaluate", "export", "evaluate"] * 2
    assert words[0] == f"train model.path=m seed=0 run_dir={tmp_path}/run/common/shared/seed-0"
    assert f"run_dir={tmp_path}/run/rows/small/seed-1 network=e1 factor=2" in words[7]
    found = cells(tmp_path / "run")
    accuracy = found["base", "accuracy"]
    assert (accuracy["published"], accuracy["ours"], accuracy["seeds"], accuracy["difference"]) == (
        "58",
        "59.5",
        "2",
        "1.5",
    )
    assert float(accuracy["spread"]) == pytest.approx(0.5**0.5)
    assert float(found["small", "speed-up"]["ours"]) == 2
    assert found["base", "speed-up"]["damage"] == "unreadable"
    text = (tmp_path / "run" / "table.md").read_text()
    assert "| base | 58.00 | 59.50 ± 0.707 | +1.500 |" in text
    assert "Damaged in the source:" in text
    assert "said twice in the source" in text
    assert (tmp_path / "run" / "table.png").stat().st_size > 1000
    assert "[4/4] small, seed 1: done in" in capsys.readouterr().out


def test_what_is_finished_is_not_run_again(tmp_path, capsys):
    made(tmp_path / "run", Stages())
    before = (tmp_path / "run" / "table.csv").read_text()
    again = Stages()
    assert made(tmp_path / "run", again) == []
    assert again.ran == []
    assert (tmp_path / "run" / "table.csv").read_text() == before
    assert "base, seed 0: done before" in capsys.readouterr().out
    more = Stages()
    made(tmp_path / "run", more, seeds=(0, 1, 2))
    assert len(more.ran) == 4


def test_other_rows_and_seeds_of_earlier_calls_stay_in_the_table(tmp_path, capsys):
    made(tmp_path / "run", Stages(), seeds=(0, 1))
    before = cells(tmp_path / "run")
    spec = Reproduction(**tiny())
    (small,) = (row for row in spec.rows_at("mini") if row.name == "small")
    assert reproduced(tmp_path / "run", spec, "mini", [small], [2], {}, Stages()) == []
    after = cells(tmp_path / "run")
    assert after["base", "accuracy"]["ours"] == before["base", "accuracy"]["ours"]
    assert (after["base", "accuracy"]["seeds"], after["small", "accuracy"]["seeds"]) == ("2", "3")
    assert "scale=mini, seeds 0, 1, 2 (base 0, 1), " in (tmp_path / "run" / "table.md").read_text()


def test_a_folder_of_another_table_is_refused(tmp_path):
    made(tmp_path / "run", Stages(), seeds=(0,))
    before = (tmp_path / "run" / "table.csv").read_text()
    stages = Stages()
    with pytest.raises(ValueError, match="holds another table, .*, scale=mini: name another folder"):
        made(tmp_path / "run", stages, seeds=(0,), title="Another")
    assert (tmp_path / "run" / "table.csv").read_text() == before
    assert stages.ran == []


def test_a_table_without_numbers_has_no_picture(tmp_path, capsys):
    made(tmp_path / "run", Stages(fails="train"), seeds=(0,))
    assert not (tmp_path / "run" / "table.png").exists()
    assert capsys.readouterr().out.rstrip().endswith("written: " + f"{tmp_path}/run/table.md, table.csv")


def test_changed_commands_begin_anew(tmp_path):
    made(tmp_path / "run", Stages(), seeds=(0,))
    left = tmp_path / "run" / "rows" / "base" / "seed-0" / "left"
    left.touch()
    rows = tiny()["rows"]
    rows["base"]["mini"]["commands"] = ["evaluate run_dir={run} factor=4 of={shared}"]
    stages = Stages()
    assert made(tmp_path / "run", stages, seeds=(0,), rows=rows) == []
    assert [command[0] for command in stages.ran] == ["evaluate"]
    assert not left.exists()
    assert float(cells(tmp_path / "run")["base", "latency"]["ours"]) == 2
    shared = {"shared": {"mini": ["train other=1 seed={seed} run_dir={run}"]}}  # all that follows from it, too
    stages = Stages()
    made(tmp_path / "run", stages, seeds=(0,), common=shared)
    assert [command[0] for command in stages.ran] == ["train", "evaluate", "export", "evaluate"]


def test_a_failing_row_does_not_stop_the_others(tmp_path):
    failed = made(tmp_path / "run", Stages(fails="network=e1"))
    assert failed == ["small"]
    found = cells(tmp_path / "run")
    assert found["base", "accuracy"]["ours"] == "59.5"
    assert found["small", "accuracy"]["error"].startswith("seed 1: nas-llm evaluate run_dir=")
    assert "status 2, it cannot be" in found["small", "accuracy"]["error"]
    assert "| small | - | failed | - |" in (tmp_path / "run" / "table.md").read_text()
    mended = Stages()
    assert made(tmp_path / "run", mended) == []
    assert [command[0] for command in mended.ran] == ["evaluate", "evaluate"]  # the exports were done


def test_what_rows_share_and_what_fails_is_tried_once(tmp_path):
    stages = Stages(fails="train")
    assert len(made(tmp_path / "run", stages, seeds=(0,))) == 2
    assert len(stages.ran) == 1


def test_a_training_that_was_cut_off_goes_on(tmp_path):
    made(tmp_path / "run", Stages(fails="train"), seeds=(0,))
    folder = tmp_path / "run" / "common" / "shared" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "half").touch()
    stages = Stages(fails="train")
    made(tmp_path / "run", stages, seeds=(0,))
    assert not folder.exists()  # nothing to go on with
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    stages = Stages()
    made(tmp_path / "run", stages, seeds=(0,))
    assert stages.ran[0][-1] == "ckpt_path=last"


def test_pictures_of_the_commands_are_copied(tmp_path):
    class Drawing(Stages):
        def __call__(self, words: Sequence[str], log: Path) -> int:
            status = super().__call__(words, log)
            run_dir = next(word for word in words if word.startswith("run_dir=")).partition("=")[2]
            (Path(run_dir) / "front.png").write_text(words[0])
            return status

    files = {"mini": ["{run}/front.png", "{shared}/front.png"]}
    made(tmp_path / "run", Drawing(), seeds=(3,), picture={"files": files, "x": "latency", "y": "accuracy"})
    assert (tmp_path / "run" / "small-front.png").read_text() == "evaluate"
    assert (tmp_path / "run" / "front.png").read_text() == "train"


# --- full size


def test_the_estimate_is_its_formula():
    data = {"batch_size": 8, "sequence_length": 512, "calibration_size": 0, "validation_size": 10}
    cfg = {
        "stage": "train",
        "model": {"path": "org/model", "dtype": None},
        "data": data,
        "trainer": {"max_steps": 1000, "limit_val_batches": 1},
        "training": {"accumulate_grad_batches": 2, "teacher": "in_place"},
        "sampler": {"k": 2, "largest": True, "smallest": True},
        "search": {"evaluations": 5},
        "objectives": {},
        "peft": {},
    }
    needs = needs_of([cfg], {"org/model": 1e9})
    tokens = 1000 * 2 * 8 * 512
    assert needs.operations == pytest.approx(6e9 * tokens * 4 + 2e9 * 8 * 512 * 5)
    assert needs.memory_bytes == 16e9
    assert needs.hours(100) == pytest.approx(needs.operations / 3.6e17)
    adapters = needs_of([{**cfg, "peft": {"r": 8}}], {"org/model": 1e9})
    assert adapters.memory_bytes == 4e9
    with pytest.raises(ValueError, match="says nothing of org/model"):
        needs_of([cfg], {})


def test_a_worker_checks_and_runs_command_lines(tmp_path):
    evaluated = ["evaluate", f"run_dir={tmp_path}/a", "architecture=middle"]
    with worker() as process:
        trained = ["train", "model.path=microworld_neox", f"run_dir={tmp_path}/a"]
        found = process.check([trained, evaluated])
        assert [cfg["model"]["path"] for cfg in found] == ["microworld_neox"] * 2  # the run's own
        with pytest.raises(
            ValueError, match="nas-llm train sampler.kk=3: sampler.kk=3 is not known: did you mean sampler.k"
        ):
            process.check([["train", "sampler.kk=3"]])
        assert process.run(["--version"], tmp_path / "log") == 0
        assert (tmp_path / "log").read_text().startswith("nas-llm ")
        assert process.run(["report", f"run_dir={tmp_path}/none"], tmp_path / "log") == 2
        assert "nas-llm: error:" in (tmp_path / "log").read_text()


def test_records_of_a_table_are_json(tmp_path):
    made(tmp_path / "run", Stages(), seeds=(0,))
    record = json.loads((tmp_path / "run" / "rows" / "small" / "seed-0.json").read_text())
    assert [command["asked"].split()[0] for command in record["commands"]] == ["export", "evaluate"]
    assert record["values"]["read"] == {"accuracy": 58.0, "latency": 4.0}
    write_json(tmp_path / "copy.json", OmegaConf.to_container(OmegaConf.create(record)))


def test_a_command_is_stopped_when_who_asked_for_it_has_ended(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reader))
    monkeypatch.setattr(
        "nas_llm.worker.run", lambda words: (os.close(writer), time.sleep(100))
    )  # of the copy's own end
    Timer(1.0, os.close, [writer]).start()
    assert _run(["train"], str(tmp_path / "log.txt")) == INTERRUPTED
