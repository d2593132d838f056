"""`nas-llm search search=ilp` on what `nas-llm distill` left: budgets, exports that load, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_distill_stage import TINY

from nas_llm import cli
from nas_llm.atomic_files import read_json, write_json
from nas_llm.models.loading import from_pretrained
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Identity, Linear, OperatorNetwork
from nas_llm.operators.library import Library
from nas_llm.operators.programme import Solution
from nas_llm.operators.selection import Ranked
from nas_llm.reporting.operator_files import NetworkRow, read_networks
from nas_llm.stages import operator_latencies
from nas_llm.stages.operator_results import Found, record_of
from nas_llm.stages.operator_training import keys_of

SEARCH = ["search=ilp", "search.number=3", "select.steps=2", "select.rounds=1", "latency.rounds=2"]


def nas(*arguments: str) -> int:
    return cli.run(list(arguments))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("operators") / "run"
    assert nas("distill", *TINY, f"run_dir={folder}", *SEARCH, "budget.params=[0.6,0.9]") == 0
    return folder


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_every_budget_has_a_network_that_keeps_it_and_was_trained(run):
    rows = read_networks(run)
    winners = [row for row in rows if row.winner]
    assert [row.budget for row in winners] == [{"params": 0.6}, {"params": 0.9}]
    teacher = Supernet.from_pretrained(run / "supernet")
    whole = teacher.num_parameters(teacher.largest())
    outside = whole - sum(p.numel() for block in teacher.blocks for p in block.parameters())
    for row in winners:
        small = from_pretrained(run / row.path)
        body = sum(p.numel() for p in small.parameters()) - outside
        dense = not any("int4" in block.mlp.name for block in row.network.blocks)
        if dense:
            assert body <= row.budget["params"] * (whole - outside)
        assert len(row.losses) == 2
    assert all(row.costs["params"] <= row.budget["params"] + 1e-9 for row in rows if row.budget)
    teachers = [row for row in rows if not row.budget]
    assert len(teachers) == 1
    assert all(row.losses[0] >= teachers[0].losses[0] - 0.05 for row in rows)
    with (run / "operators.csv").open() as file:
        assert {row["operator"] for row in csv.DictReader(file)} >= {"teacher", "identity", "linear"}
    assert {p.name for p in run.glob("*.png")} >= {"operators.png", "scores.png", "budgets.png", "structures.png"}


def test_the_export_holds_the_trained_weights_and_generates_in_a_fresh_process(run):
    row = next(row for row in read_networks(run) if row.winner)
    program = (
        "import sys, torch, nas_llm\n"
        "model = nas_llm.from_pretrained(sys.argv[1]); ids = torch.arange(3, 11)[None]\n"
        "a = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)\n"
        "b = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=False)\n"
        "assert torch.equal(a, b); print(a.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(run / row.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    small = from_pretrained(run / row.path)
    tokens = small.generate(torch.arange(3, 11)[None], max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert json.loads(done.stdout.splitlines()[-1]) == tokens.tolist()


def test_another_budget_is_solved_from_what_is_known(copied, capsys):
    scores = (copied / "operators" / "scores.jsonl").read_text()
    assert nas("search", f"run_dir={copied}", "budget.params=0.75", "select.steps=0") == 0
    assert (copied / "operators" / "scores.jsonl").read_text() == scores
    budgets = [row.budget["params"] for row in read_networks(copied) if row.winner]
    assert budgets == [0.6, 0.9, 0.75]
    assert "params 0.75" in capsys.readouterr().out


def test_another_pool_has_rows_of_its_own_and_what_is_listed_no_longer_is_named(copied, capsys):
    before = [row for row in read_networks(copied) if row.budget]
    given = [f"run_dir={copied}", "budget.params=0.9", "select.steps=0", "pool=skip_only"]
    assert nas("search", *given) == 0
    rows = [row for row in read_networks(copied) if row.budget]
    assert rows[: len(before)] == before
    of_pool = rows[len(before) :]
    assert of_pool
    assert {row.asked for row in of_pool} == {"params 0.9, pool skip_only"}
    assert {o.name for row in of_pool for b in row.network.blocks for o in (b.attention, b.mlp)} <= {
        "teacher",
        "identity",
    }
    assert "pool skip_only" in capsys.readouterr().out
    shutil.copytree(copied / next(row.path for row in rows if row.winner), copied / "networks" / "old")
    assert nas("search", *given) == 0
    assert "also holds old" in capsys.readouterr().out


@pytest.mark.parametrize(("gap", "written"), [(0.25, 0.25), (22060824.65, None), (float("inf"), None)])
def test_a_gap_that_proves_nothing_is_null(tmp_path, gap, written):
    network = OperatorNetwork.teacher(1)
    solution = Solution((0, 0), 1.0, 1e-8, gap, "feasible, milp", 1.0)
    record = record_of(Found({"params": 0.5}, network, solution, Ranked(network, (3.0,))), {}, tmp_path, 0)
    assert record["gap"] == written
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.parametrize("drift", [None, 1.2])
def test_what_latencies_were_multiplied_by_for_a_budget_in_ms_is_recorded(tmp_path, drift):
    network = OperatorNetwork.teacher(1)
    solution = Solution((0, 0), 1.0, 1.0, 0.0, "optimal, milp", 1.0)
    found = Found({"latency": 25.0}, network, solution, Ranked(network, (3.0,)), latency_drift=drift)
    assert NetworkRow.of_record(record_of(found, {}, tmp_path, 0)).latency_drift == drift


def test_latencies_are_measured_once_and_held_to_their_conditions(copied, capsys):
    given = [f"run_dir={copied}", "budget.params=null", "budget.latency=0.95", "select.steps=0", "search.number=1"]
    assert nas("search", *given) == 0
    (file,) = (copied / "operators").glob("latency-*.json")
    before = file.read_text()
    assert nas("search", *given) == 0
    assert file.read_text() == before
    table = read_json(file)
    table["conditions"]["device"] = "another"
    write_json(file, table)
    capsys.readouterr()
    assert nas("search", *given) == 2
    refused = capsys.readouterr().err
    assert "another" in refused
    assert f"delete {file}" in refused
    assert nas("search", given[0], "budget.params=0.75", "budget.latency=null", *given[3:]) == 0
    assert "no latencies are shown" in capsys.readouterr().out
    assert nas("search", *given, "latency_table.force=true") == 0


def test_a_budget_in_ms_is_one_of_the_machine_as_it_is_now(copied, monkeypatch, capsys):
    """A table of 10 ms for each of the teacher's sublayers, on a machine that has become slower by a fifth since."""
    given = [f"run_dir={copied}", "budget.params=null", "budget.latency=0.95", "select.steps=0", "search.number=1"]
    assert nas("search", *given) == 0
    (file,) = (copied / "operators").glob("latency-*.json")
    table = read_json(file)
    teacher = {key for layer in table["teacher"] for key in layer.values()}
    for key, of in table["operators"].items():
        of["wall"] = 10.0 if key in teacher else 0.0 if "identity" in key else 4.0
    table["fixed"]["wall"] = 5.0
    write_json(file, table)
    layers = len(table["teacher"])
    now = {"wall": 1.2 * (5.0 + 20.0 * layers), "process": 1.0}
    monkeypatch.setattr(operator_latencies, "teacher_ms", lambda *given: now)
    asked = [0.83, 0.83 * 1.2 * 20.0 * layers]  # between two sums of operators, so that rounding decides nothing
    assert nas("search", *given, f"budget.latency={asked}".replace(" ", "")) == 0
    assert "1.200 of what" in capsys.readouterr().out
    winners = {row.budget.get("latency"): row for row in read_networks(copied) if row.winner}
    relative, absolute = (winners[budget] for budget in asked)
    assert (relative.latency_drift, absolute.latency_drift) == (None, pytest.approx(1.2))
    assert absolute.network == relative.network
    assert absolute.costs["latency"] <= 0.83


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["budget.params=0.01", "budget.of=whole"], "the smallest has"),
        (["budget.params=null"], "there is no budget"),
        (["budget.params=[0.5,0.6]", "budget.macs=[0.5,0.6,0.7]"], "as many values"),
        (["budget.of=half"], "budget.of=half"),
        (["budget.params=abc"], "budget.params=abc is not allowed: it must be a number"),
        (["budget.energy=1"], "Known are kv_cache, latency, macs, memory, params"),
        (["+budget.energy=1"], "budget.energy=1 is not known: allowed are params"),
        (["search.overlap=1"], "search.overlap=1"),
        (["budget.params=-1"], "budget.params=-1"),
        (["search.score=accuracy"], "search.score"),
        (["pool=skip_only", "pool.attention=[teacher]", "pool.mlp=[ffn-0.25]"], "no operator of this pool"),
    ],
)
def test_what_cannot_be_searched_is_one_line(copied, capsys, given, says):
    before = (copied / "networks.jsonl").read_text()
    assert nas("search", f"run_dir={copied}", *given) == 2
    line = capsys.readouterr().err.strip()
    assert says in line
    assert len(line.splitlines()) == 1
    assert (copied / "networks.jsonl").read_text() == before


def test_a_library_of_another_teacher_is_refused(copied, capsys):
    manifest = copied / "operators" / "manifest.json"
    write_json(manifest, read_json(manifest) | {"teacher": "0123456789abcdef"})
    assert nas("search", f"run_dir={copied}", "budget.params=0.7") == 2
    assert "another teacher" in capsys.readouterr().err


def test_a_run_without_operators_and_training_refuse_the_programme(copied, tmp_path, capsys):
    shutil.rmtree(copied / "operators")
    assert nas("search", f"run_dir={copied}") == 2
    assert "nas-llm distill" in capsys.readouterr().err
    assert nas("train", f"run_dir={tmp_path / 'other'}", "search=ilp") == 2
    assert "search=ilp" in capsys.readouterr().err


def test_a_network_is_exported_again_and_its_card_and_report_say_what_it_is(copied, tmp_path, capsys):
    row = next(row for row in read_networks(copied) if row.winner)
    given = [f"run_dir={copied}", f"architecture={row.id}", f"export.path={tmp_path / 'out'}"]
    assert nas("export", *given) == 0
    ours, again = from_pretrained(copied / row.path), from_pretrained(tmp_path / "out")
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, again(tokens).logits)
    card = (tmp_path / "out" / "README.md").read_text()
    first = (copied / row.path / "README.md").read_text()
    for text in (card, first):
        assert f": network {row.id}" in text
        assert "An integer programme chose" in text
        assert "this network is the best for params 0.6" in text
        assert "trained as a whole for 1 round of 2 steps with the forward KL distillation" in text
        assert f"| loss | {row.losses[-1]:.3g}"[:12] in text
        assert "| loss, put together and untrained |" in text
        assert "N of every M" in text
    assert all(f"| {i} | {block.attention.name} |" in card for i, block in enumerate(row.network.blocks))
    assert nas("export", f"run_dir={copied}", "architecture=nobody") == 2
    assert row.id in capsys.readouterr().err
    (copied / "budgets.png").unlink()
    assert nas("report", f"run_dir={copied}") == 0
    assert "params 0.6" in capsys.readouterr().out
    page = (copied / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(copied.glob("*.png"))) - len(
        [copied / "importance_scores.png"]
    )


def test_another_operator_forgets_the_losses_of_the_networks_that_have_it_alone(copied):
    library, place, operator = Library(copied / "operators"), (0, "mlp"), Identity()
    with_it = OperatorNetwork.of({place: operator}, 6)
    without = OperatorNetwork.of({(1, "mlp"): Identity()}, 6)
    before = [keys_of(library)(network) for network in (with_it, without)]
    file = library.file((2, "attention"), Linear())
    file.unlink()
    assert [keys_of(library)(network) for network in (with_it, without)] == before
    module = torch.nn.Module()
    module.made = torch.nn.Parameter(torch.ones(2))
    library.save(place, operator, module, {"local": 1.0})
    after = [keys_of(library)(network) for network in (with_it, without)]
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_other_training_is_never_mistaken_for_what_was_measured_before(copied):
    before = next(row for row in read_networks(copied) if row.budget == {"params": 0.6} and row.winner)
    longer = [f"run_dir={copied}", "budget.params=0.6", "select.steps=6", "select.lr=0.003"]
    assert nas("search", *longer) == 0
    after = {row.id: row for row in read_networks(copied) if row.budget == {"params": 0.6}}[before.id]
    assert after.losses[0] == before.losses[0]
    assert after.losses[1] != before.losses[1]
    old, new = sorted((copied / "selection").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    assert [len(list(folder.glob("*.jsonl"))) for folder in (old, new)] == [1, 1]
    assert len([folder for folder in (old, new) if list(folder.glob("*.safetensors"))]) == 1
