"""`nas-llm prune` from end to end on a tiny model: every baseline, what it leaves, recovery, refusals."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from test_families import build, random_architectures
from test_train_stage import base  # noqa: F401  # a fixture
from transformers import AutoModelForCausalLM

import nas_llm
from nas_llm import cli
from nas_llm.atomic_files import read_json
from nas_llm.composition import checked
from nas_llm.config import config_dir
from nas_llm.config_errors import options
from nas_llm.metrics import read_metrics
from nas_llm.models.model_directory import precision_of
from nas_llm.models.quantized_linear import quantized_modules
from nas_llm.models.supernet import Supernet
from nas_llm.sparsity.counting import has_pattern, zeros_of_model
from nas_llm.stages.search import untrained

SETTINGS: dict[str, list[str]] = {  # what an option needs on so small a network
    "gptq": ["baseline.group_size=16"],
    "rtn": ["baseline.group_size=16"],
    "shortened_llama": ["baseline.keep_first=1", "baseline.keep_last=1", "baseline.layers_removed=1"],
    "wanda": ["baseline.pattern=2:4"],
}
STOCK = ("magnitude", "wanda", "sparsegpt", "shortgpt", "shortened_llama")


def data(base: Path) -> list[str]:  # noqa: F811
    given = ["data=text", f"data.path={base / 'text.jsonl'}", "data.sequence_length=16", "data.calibration_size=4"]
    given += [f"data.cache_dir={base / 'cache'}", "data.batch_size=4", "data.validation_size=4", "data.test_size=2"]
    return [*given, "trainer.accelerator=cpu"]


def arguments(base: Path, run_dir: Path, *more: str) -> list[str]:  # noqa: F811
    return ["prune", f"run_dir={run_dir}", f"model.path={base / 'model'}", *data(base), *more]


def error_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("nas-llm: error: ")


def values(run_dir: Path, variant: str) -> dict[str, float]:
    return {metric["name"]: metric["value"] for metric in read_metrics(run_dir) if metric["variant"] == variant}


@pytest.fixture(scope="module")
def pruned(base, tmp_path_factory) -> Path:  # noqa: F811
    """A run of every option of the group, by its name."""
    folder = tmp_path_factory.mktemp("pruned")
    for option in options(config_dir(), "baseline"):
        assert cli.run(arguments(base, folder / option, f"baseline={option}", *SETTINGS.get(option, []))) == 0
    return folder


@pytest.mark.parametrize("option", options(config_dir(), "baseline"))
def test_a_baseline_leaves_a_model_that_loads_and_says_what_was_done(base, pruned, option):  # noqa: F811
    run_dir = pruned / option
    model = nas_llm.from_pretrained(run_dir / "model")
    before, after = values(run_dir, "original"), values(run_dir, "pruned")
    zeros = zeros_of_model(model).overall
    assert after["params"] == zeros.size
    assert after["nonzero_share"] == pytest.approx(zeros.nonzero / zeros.size)
    assert after["params"] <= before["params"]
    assert after["weight_bytes"] <= before["weight_bytes"]
    assert (after["params"], after["nonzero_share"], after["weight_bytes"]) != tuple(
        before[name] for name in ("params", "nonzero_share", "weight_bytes")
    )
    assert after["loss"] > 0
    recorded = read_json(run_dir / "baseline.json", "method", "model", "summary", "seconds", "records")
    written = OmegaConf.load(config_dir() / "baseline" / f"{option}.yaml")
    assert recorded["method"].keys() == {str(key) for key in written} - {"defaults"}
    assert recorded["model"]["path"] == str(base / "model")
    card = (run_dir / "model" / "README.md").read_text()
    assert recorded["summary"] in card
    assert "super-network" not in card
    assert "neural-architecture-search" not in card
    assert "| loss (pruned) |" in card
    assert f"baseline={option}" in card


@pytest.mark.parametrize("option", STOCK)
def test_stock_shapes_are_loaded_by_the_stock_class(pruned, option):
    folder = pruned / option / "model"
    ids = torch.arange(1, 13).view(1, 12)
    with torch.no_grad():
        stock = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        assert torch.equal(stock, nas_llm.from_pretrained(folder)(ids).logits)


def test_a_pattern_is_in_the_file_and_integers_are_packed(pruned):
    wanda = nas_llm.from_pretrained(pruned / "wanda" / "model")
    linear = [m for name, m in wanda.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    assert len(linear) == 21
    assert all(has_pattern(module.weight, 2, 4) for module in linear)
    assert len(quantized_modules(nas_llm.from_pretrained(pruned / "gptq" / "model"))) == 21
    card = (pruned / "gptq" / "model" / "README.md").read_text()
    assert "transformers and compressed-tensors are needed" in card


def test_the_loss_is_that_of_the_file_and_the_original_s_is_the_same_for_all(pruned):
    losses = {values(run_dir, "original")["loss"] for run_dir in pruned.iterdir()}
    assert len(losses) == 1
    other = {values(run_dir, "pruned")["loss"] for run_dir in pruned.iterdir()}
    assert len(other) > 5


def recovering(base: Path, model: Path, run_dir: Path, *more: str) -> list[str]:  # noqa: F811
    given = ["train", f"model.path={model}", f"run_dir={run_dir}", f"training.teacher_path={base / 'model'}"]
    given += ["training.teacher=frozen", "search=none", "sampler=standard", "trainer.max_steps=2", "optimizer.lr=0.01"]
    return [*given, *data(base), *more]


@pytest.mark.parametrize("option", ["shortgpt", "unast_depth", "truncation"])
def test_a_smaller_network_recovers_alone(base, pruned, option, tmp_path, capsys):  # noqa: F811
    run_dir, model = tmp_path / "run", pruned / option / "model"
    assert cli.run(recovering(base, model, run_dir, "search_space=whole", "importance=none")) == 0
    assert f"try next: nas-llm export run_dir={run_dir} architecture=largest" in capsys.readouterr().out
    assert cli.run(["export", f"run_dir={run_dir}", "architecture=largest"]) == 0
    (folder,) = (run_dir / "subnets").iterdir()
    before, after = nas_llm.from_pretrained(model), nas_llm.from_pretrained(folder)
    shapes = [{name: weight.shape for name, weight in m.state_dict().items()} for m in (before, after)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(*(m.get_input_embeddings().weight for m in (before, after)))
    card = (folder / "README.md").read_text()
    assert "It was trained as a whole, and no sub-network of it, with the forward KL distillation from" in card
    assert "super-network" not in card
    assert f"The whole network of {model}, as its run left it." in card


def test_an_extracted_sub_network_is_trained_alone_and_a_trained_network_is_truncated(base, pruned, tmp_path):  # noqa: F811
    alone = ["search=none", "sampler=standard", "distillation=none", "search_space=whole", "trainer.max_steps=2"]
    model = pruned / "truncation" / "model"
    one = ["train", f"model.path={model}", f"run_dir={tmp_path / 'one'}", *alone, *data(base)]
    assert cli.run(one) == 0
    trained = Supernet.load(tmp_path / "one" / "supernet")
    assert trained.largest() == Supernet(nas_llm.from_pretrained(model)).largest()
    assert read_json(tmp_path / "one" / "search_space.json")["depth"] == [trained.largest().num_layers]
    whole = ["train", f"model.path={base / 'model'}", f"run_dir={tmp_path / 'whole'}", *alone, *data(base)]
    assert cli.run([*whole, "importance=none"]) == 0
    cut = ["prune", f"model.path={tmp_path / 'whole' / 'supernet'}", f"run_dir={tmp_path / 'cut'}", *data(base)]
    assert cli.run([*cut, "baseline=truncation", f"baseline.like={model}"]) == 0
    small = Supernet(nas_llm.from_pretrained(tmp_path / "cut" / "model"))
    assert small.largest() == trained.largest()


def test_a_sparse_network_keeps_its_zeros_only_where_it_is_told_to(base, pruned, tmp_path, capsys):  # noqa: F811
    model = pruned / "wanda" / "model"
    given = ["search_space=whole", "importance=none"]
    assert cli.run(recovering(base, model, tmp_path / "run", *given)) == 2
    assert "is sparse, 50.0% of the weights of 21 linear modules are zero" in error_line(capsys)
    assert cli.run(recovering(base, model, tmp_path / "run", "training.zeros=keep")) == 2
    assert "has the pattern 2:4 in its weights, which sorting" in error_line(capsys)
    assert not (tmp_path / "run").exists()
    assert cli.run(recovering(base, model, tmp_path / "run", *given, "training.zeros=keep")) == 0
    before, after = (
        dict(nas_llm.from_pretrained(m).named_parameters()) for m in (model, tmp_path / "run" / "supernet")
    )
    for name, weight in before.items():
        if "_proj" in name:
            assert torch.equal(weight == 0, after[name] == 0), name
        assert not torch.equal(weight, after[name]), name
    capsys.readouterr()
    assert cli.run(recovering(base, model, tmp_path / "filled", *given, "training.zeros=fill")) == 0
    filled = nas_llm.from_pretrained(tmp_path / "filled" / "supernet")
    assert zeros_of_model(filled).overall.sparsity < 0.01
    capsys.readouterr()
    assert cli.run(recovering(base, base / "model", tmp_path / "dense", *given, "training.zeros=keep")) == 2
    assert "training.zeros=keep cannot take effect: " in error_line(capsys)
    assert cli.run(recovering(base, model, tmp_path / "lora", *given, "training.zeros=keep", "peft=lora")) == 2
    assert "training.zeros=keep cannot take effect where no weights are trained" in error_line(capsys)


def test_a_quantised_network_recovers_by_adapters(base, pruned, tmp_path, capsys):  # noqa: F811
    model, given = pruned / "gptq" / "model", ["search_space=whole", "importance=none"]
    assert cli.run(recovering(base, model, tmp_path / "run", *given)) == 2
    assert "peft=lora to train adapters beside them" in error_line(capsys)
    assert cli.run(recovering(base, model, tmp_path / "run", *given, "peft=lora", "peft.r=2")) == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "baseline is missing, which nas-llm prune reads: choose baseline=, of gptq, "),
        (["baseline=wandaa"], "baseline=wandaa is not known: did you mean baseline=wanda?"),
        (
            ["baseline=wanda", "baseline.pattern=2:5"],
            "baseline.pattern=2:5 does not divide the width of model.layers.0",
        ),
        (["baseline=gptq"], "baseline.group_size=128 does not divide the width"),
        (["baseline=shortened_llama"], "baseline.keep_first=4 and baseline.keep_last=2 keep all 3 layers"),
        (["baseline=shortgpt", "baseline.max_params=-1"], "baseline.max_params=-1"),
        (["baseline=truncation", "baseline.like=/none"], "baseline.like=/none: neither a local directory"),
        (
            ["baseline=wanda", "data.calibration_size=0"],
            "the calibration split is empty; set data.calibration_size above 0",
        ),
        (
            ["baseline=wanda", "sampler=random"],
            "sampler=random cannot take effect: nas-llm prune does not read sampler",
        ),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(base, tmp_path, capsys, given, says):  # noqa: F811
    assert cli.run(arguments(base, tmp_path / "run", *given)) == 2
    assert error_line(capsys).startswith(says)
    assert not (tmp_path / "run").exists()


def test_a_directory_that_holds_another_run_is_left_as_it_is(base, pruned, capsys):  # noqa: F811
    before = (pruned / "wanda" / "baseline.json").read_text()
    assert cli.run(arguments(base, pruned / "wanda", "baseline=magnitude")) == 2
    line = error_line(capsys)
    assert line.endswith("already holds a run (model, baseline.json, results.json): choose another run_dir=")
    assert (pruned / "wanda" / "baseline.json").read_text() == before
    assert cli.run(["train", f"run_dir={pruned / 'wanda'}", f"model.path={base / 'model'}", *data(base)]) == 2
    assert "already holds a run" in error_line(capsys)


def test_later_stages_say_that_there_is_no_super_network_and_the_report_what_was_done(pruned, capsys):
    run_dir = pruned / "shortgpt"
    for stage in ("search", "evaluate", "export"):
        given = [] if stage != "export" else ["architecture=largest"]
        assert cli.run([stage, f"run_dir={run_dir}", *given]) == 2
        line = error_line(capsys)
        assert "holds a network that a baseline has made, and no super-network" in line
        assert f"nas-llm train model.path={run_dir / 'model'}" in line
    assert cli.run(["report", f"run_dir={run_dir}"]) == 0
    page = (run_dir / "report.html").read_text()
    assert read_json(run_dir / "baseline.json")["summary"] in page
    assert "trained as a super-network" not in page
    assert "<h1>shortgpt</h1>" in page
    assert "loss (pruned)" in page


def test_an_interrupted_write_leaves_no_model(base, tmp_path, capsys, file_size_limit):  # noqa: F811
    with file_size_limit(20_000):
        assert cli.run(arguments(base, tmp_path / "run", "baseline=magnitude", "data.num_workers=0")) == 2
    assert "could not be written" in error_line(capsys)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("model*"))
    assert not (tmp_path / "run" / "results.json").exists()


def test_the_help_lists_the_baselines(capsys):
    assert cli.run(["prune", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in options(config_dir(), "baseline"))


def test_half_precision_stays_what_it_was(base, tmp_path, capsys):  # noqa: F811
    model = AutoModelForCausalLM.from_pretrained(base / "model", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    for file in (base / "model").glob("tokenizer*"):
        (tmp_path / "half" / file.name).write_bytes(file.read_bytes())
    given = ["prune", f"run_dir={tmp_path / 'run'}", f"model.path={tmp_path / 'half'}", *data(base)]
    assert cli.run([*given, "baseline=wanda", "baseline.sparsity=0.5"]) == 0
    saved = nas_llm.from_pretrained(tmp_path / "run" / "model")
    assert {parameter.dtype for parameter in saved.parameters()} == {torch.bfloat16}
    kept = dict(saved.named_parameters())
    for name, before in model.named_parameters():
        assert torch.equal(kept[name], before * (kept[name] != 0)), name
    sizes = [values(tmp_path / "run", variant)["weight_bytes"] for variant in ("original", "pruned")]
    assert sizes == [2 * sum(parameter.numel() for parameter in saved.parameters())] * 2
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("let it recover: "))
    command = shlex.split(line.removeprefix("let it recover: "))
    assert command[:3] == ["nas-llm", "train", f"model.path={tmp_path / 'run' / 'model'}"]
    assert {*data(base), f"run_dir={tmp_path / 'run' / 'recovered'}"} <= set(command)
    assert cli.run([*command[1:], "trainer.max_steps=1", "trainer.enable_progress_bar=false"]) == 0


@pytest.mark.parametrize("whole", [True, False])
def test_a_network_in_half_precision_is_worked_on_as_if_it_had_been_in_float32(tmp_path, whole):
    supernet = build("gemma2")
    supernet.model.to(torch.bfloat16)
    architecture = supernet.largest() if whole else random_architectures(supernet, 1)[0]
    nas_llm.save_pretrained(supernet.extract(architecture), tmp_path / "half")
    assert precision_of(tmp_path / "half") == torch.bfloat16
    found = untrained(checked(["stage=prune", f"model.path={tmp_path / 'half'}", "baseline=wanda"])).model
    expected = nas_llm.from_pretrained(tmp_path / "half", dtype="float32")
    ours, theirs = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (found, expected))
    for name, value in theirs.items():  # the scale of the embeddings, too, which bfloat16 would have rounded
        assert torch.equal(ours[name], value), name
