"""What each stage declares to read is what it reads, and overrides of anything else are refused by name."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_analysis
import test_distill_stage
from omegaconf import DictConfig, OmegaConf
from test_train_stage import arguments, base  # noqa: F401  # a fixture

from nas_llm.atomic_files import write_text
from nas_llm.benchmarks.figures import Figure
from nas_llm.benchmarks.sandwich import SandwichBenchmark
from nas_llm.composition import checked
from nas_llm.config import config_dir
from nas_llm.launch import launch
from nas_llm.overrides import RECORD
from nas_llm.stage_reads import OF_EVERY_STAGE, Reads, declared, refuse_unread, unread

STAGES = declared()
OF_OPERATORS = ["search=ilp", "budget.latency=0.95", "latency.rounds=1", "search.number=2", "select.steps=1"]
TINY_RECIPE = ["experiment=microworld_llama", "pretrain.vocab_size=400", "pretrain.items_per_set=1", "logger=none"]
TINY_RECIPE += ["pretrain.model.hidden_size=48", "pretrain.model.intermediate_size=32", "pretrain.model.head_dim=4"]
TINY_RECIPE += ["pretrain.model.num_hidden_layers=2", "pretrain.batch_tokens=176", "trainer.max_time=00:00:00:01"]


def observed(cfg: DictConfig) -> tuple[DictConfig, set[str]]:
    """The configuration with every setting put behind an interpolation that notes when it is read."""
    read: set[str] = set()
    values: dict[str, Any] = {}

    def look(key: str) -> Any:
        read.add(key)
        return values[key]

    def hidden(value: Any, key: str) -> Any:
        if isinstance(value, dict) and value:
            return {name: hidden(child, f"{key}.{name}" if key else str(name)) for name, child in value.items()}
        if isinstance(value, list) and value:
            return [hidden(child, f"{key}.{place}") for place, child in enumerate(value)]
        values[key] = OmegaConf.create(value) if isinstance(value, dict | list) else value
        return f"${{look:'{key}'}}"

    OmegaConf.register_new_resolver("look", look, replace=True)
    whole = hidden(OmegaConf.to_container(cfg, resolve=True), "")
    return OmegaConf.create(whole), read


def reads_of(overrides: list[str], stage: str) -> set[str]:
    cfg, read = observed(checked([*overrides, f"stage={stage}"]))
    Path(str(cfg.run_dir)).mkdir(parents=True, exist_ok=True)
    importlib.import_module(f"nas_llm.stages.{stage}").main(cfg)
    return read


@pytest.fixture(scope="module")
def reads(base, tmp_path_factory) -> dict[str, set[str]]:  # noqa: F811
    """What each stage read of a tiny run's configuration."""
    folder = tmp_path_factory.mktemp("reads")
    _, _, *given = arguments(base, folder / "run", "trainer.limit_val_batches=1", "search.evaluations=6")
    run = [f"run_dir={folder / 'run'}", *given]
    _, named, _, *analysed = test_analysis.arguments(base, folder / "analysed", "analysis.compare=[none,activation]")
    found = {"train": reads_of(run, "train")}
    write_text(folder / "run" / RECORD, OmegaConf.to_yaml(given))  # as launch does, for the report
    for stage in ("search", "evaluate", "export", "report"):
        chosen = ["architecture=smallest"] if stage in ("evaluate", "export") else []
        found[stage] = reads_of([*run, *chosen], stage)
    found["analyse"] = reads_of([f"analysis={named}", f"run_dir={folder / 'analysed'}", *analysed], "analyse")
    data = [override for override in given if override.startswith("data")]
    pruned = ["baseline=magnitude", f"model.path={base / 'model'}", *data, f"run_dir={folder / 'pruned'}"]
    found["prune"] = reads_of([*pruned, "trainer.accelerator=cpu"], "prune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SandwichBenchmark, "__call__", lambda self: [Figure("ratio", 1.0, 2.0, "")])
        found["bench"] = reads_of(["bench=sandwich", f"run_dir={folder / 'bench'}"], "bench")
        patch.setattr("nas_llm.stages.reproduce.worker", lambda: nullcontext(SimpleNamespace(run=None)))
        patch.setattr("nas_llm.stages.reproduce.reproduced", lambda *given: [])
        found["reproduce"] = reads_of(["reproduce=paper1/figure2", f"run_dir={folder / 'table'}"], "reproduce")
    distilled = [*test_distill_stage.TINY, f"run_dir={folder / 'distilled'}", *OF_OPERATORS]
    found["distill"] = reads_of(distilled, "distill")
    found["search"] |= reads_of(distilled, "search")
    found["pretrain"] = reads_of([*TINY_RECIPE, f"run_dir={folder / 'made'}"], "pretrain")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_what_it_declares_and_nothing_else(reads, stage):
    declares, read = Reads((*OF_EVERY_STAGE, *STAGES[stage].keys)), reads[stage]
    assert {key for key in read if key not in declares} == set()
    never = [key for key in STAGES[stage].keys if not any(name in Reads((key,)) for name in read)]
    assert never == []


def test_what_is_ignored_lies_below_what_is_read():
    for reads in STAGES.values():
        assert all(key in Reads(reads.keys) for key in reads.ignores)
        assert all(key not in reads for key in reads.ignores)


@pytest.mark.parametrize("stage", STAGES)
def test_declared_keys_exist(stage):
    optional = {"bench": ["bench=sandwich"], "analyse": ["analysis=sampling"], "prune": ["baseline=wanda"]}
    optional["reproduce"] = ["reproduce=paper1/figure2"]
    experiment = ["experiment=microworld_llama"] if stage == "pretrain" else []
    cfg = checked([*experiment, *optional.get(stage, []), f"stage={stage}", "run_dir=x"])
    for key in STAGES[stage].keys:
        node = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
        assert key.rpartition(".")[2] in node, key


def refusal(stage: str, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        checked([*overrides, "run_dir=x", f"stage={stage}"], overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("stage", "override", "says"),
    [
        ("train", "export.path=x", "does not read export.path, only export;"),
        ("train", "architecture=largest", "only evaluate, export;"),
        ("train", "max_latency_ms=5", "only evaluate, export;"),
        ("train", "trainer.enable_checkpointing=true", "no stage does;"),
        ("train", "bench=sandwich", "does not read bench, only bench;"),
        ("train", "+mine=3", "does not read mine, no stage does;"),
        ("search", "sampler.k=3", "does not read sampler.k, only train;"),
        ("search", "importance=none", "does not read importance, only distill, train;"),
        ("search", "trainer.max_steps=3", "does not read trainer.max_steps, only train;"),
        ("search", "ckpt_path=last", "only pretrain, train;"),
        ("evaluate", "model.path=x", "does not read model.path, only analyse, distill, prune, search, train;"),
        ("export", "seed=3", "does not read seed"),
        ("report", "objectives=[loss]", "does not read objectives"),
        ("pretrain", "trainer.max_steps=3", "does not read trainer.max_steps, only train;"),
        ("bench", "data.batch_size=3", "does not read data.batch_size"),
        ("analyse", "sampler=random", "does not read sampler, only train;"),
    ],
)
def test_settings_that_a_stage_never_reads_are_refused(stage, override, says):
    line = refusal(stage, override)
    assert line.startswith(f"{override} cannot take effect: nas-llm {stage} ")
    assert says in line
    assert line.endswith("leave it out")


def test_sweeps_of_settings_that_a_stage_never_reads_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="max_params=0.5,0.7 cannot take effect: nas-llm train does not read"):
        launch("train", ["-m", "max_params=0.5,0.7"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("search", "seed=3"),  # search.seed and data.seed interpolate it
        ("search", "search/initial=depth_only"),
        ("search", "trainer=cpu"),  # for its accelerator
        ("search", "experiment=quickstart"),  # may hold more than is read
        ("train", "debug=fast"),
        ("train", "name=mine"),
        ("train", "importance=activation_block"),
    ],
)
def test_settings_that_are_read_by_way_of_others_are_let_through(stage, override):
    assert checked([override, "run_dir=x", f"stage={stage}"], [override])


def test_what_an_own_option_interpolates_is_read_where_that_is():
    own = ["+mine.width=64", "search_space.hidden=[${mine.width}]"]
    cfg = checked([*own, "stage=search", "run_dir=x"])
    assert unread("search", own, cfg) == []
    assert unread("export", own, cfg) == own


def test_importance_is_read_by_the_analysis_that_sorts_alone():
    given = ["importance=none"]
    assert checked(["analysis=sampling", *given, "run_dir=x", "stage=analyse"], given)
    assert "does not read importance, only distill, train;" in refusal(
        "analyse", *given
    )  # none is chosen: it has no effect
    with pytest.raises(ValueError, match="does not read importance, only distill, train;"):
        checked(["analysis=importance", *given, "run_dir=x", "stage=analyse"], given)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"trainr": {"max_steps": 3}}, "trainr.max_steps cannot take effect, no stage reads it: did you mean trainer?"),
        ({"export": {"pth": "x"}}, "export.pth cannot take effect, no stage reads it"),
    ],
)
def test_settings_of_files_that_no_stage_reads_are_refused(settings, says):
    cfg = OmegaConf.merge(checked(["stage=train", "run_dir=x"]), {})
    OmegaConf.set_struct(cfg, False)
    with pytest.raises(ValueError) as caught:
        refuse_unread("train", [], OmegaConf.merge(cfg, settings), config_dir())  # type: ignore[arg-type]
    assert says in str(caught.value)


@pytest.mark.parametrize("override", ["objectives=[]", "~sampler", "search=[]"])
def test_a_group_that_is_left_out_is_named_with_its_options(override):
    line = refusal("train", override)
    group = override.strip("~[]=")
    assert line.startswith(f"{override} leaves out {group}, which nas-llm train reads: choose {group}=, of ")
