"""`nas-llm search` and `nas-llm report` on a run directory with a tiny super-network, as the train stage leaves it."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nas_llm import cli
from nas_llm.atomic_files import read_json, write_json, write_text
from nas_llm.composition import checked
from nas_llm.config import config_dir
from nas_llm.config_errors import options
from nas_llm.models.supernet import Supernet
from nas_llm.objectives import Loss
from nas_llm.search import TRUNCATION, Archive
from nas_llm.search_space import SearchSpace

TEXT = "The red fox ran to the old mill. It was cold and the river was wide. A bear sat near the door and slept. "
OVERRIDES = ["search_space.steps=3", "search.evaluations=10", "search.population=6", "trainer.accelerator=cpu"]


def tiny_tokenizer():
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<eos>"], show_progress=False)
    words.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The pre-trained model, and the text."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_text(folder / "text.jsonl", "".join(json.dumps({"text": TEXT[i:] + TEXT}) + "\n" for i in range(40)))
    return folder


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """What training would have left: other weights than the base's, in another order."""
    tmp_path = tmp_path_factory.mktemp("trained")
    supernet = Supernet.from_pretrained(base / "model")
    with torch.no_grad():
        for parameter in supernet.model.parameters():
            parameter.mul_(0.9)
    supernet.sort({"layers": torch.tensor([2.0, 1.0, 3.0])})
    run = tmp_path / "run"
    supernet.save(run / "supernet", tokenizer=tiny_tokenizer())
    write_json(run / "search_space.json", SearchSpace.joint(supernet, steps=3).to_dict())
    recorded = [
        f"model.path={base / 'model'}",
        "data=text",
        f"data.path={base / 'text.jsonl'}",
        "data.sequence_length=16",
    ]
    recorded += ["data.calibration_size=1", f"data.cache_dir={tmp_path / 'cache'}", *OVERRIDES]
    write_text(run / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(recorded)))
    write_text(run / ".hydra" / "hydra.yaml", f"hydra: {{runtime: {{cwd: {tmp_path}}}}}\n")
    return run


@pytest.fixture(scope="module")
def searched(trained, tmp_path_factory):
    """A copy of it on which `nas-llm search` was run."""
    run = tmp_path_factory.mktemp("searched") / "run"
    shutil.copytree(trained, run)
    assert cli.run(["search", f"run_dir={run}"]) == 0
    return run


@pytest.fixture
def run_dir(searched, tmp_path):
    return Path(shutil.copytree(searched, tmp_path / "run"))


def test_search_alone_on_a_finished_run(run_dir):
    for name in ("archive.jsonl", "search.json", "results.json", "pareto.csv", "pareto.png", "report.html"):
        assert (run_dir / name).stat().st_size > 0
    archive = Archive(run_dir / "archive.jsonl")
    searched = archive.at(0)
    assert [e.source for e in searched] == ["reference"] * 3 + ["nsga2"] * 7  # NSGA-II asks for those three as well
    supernet = Supernet.load(run_dir / "supernet")
    assert all(e.objectives["params"] == supernet.num_parameters(e.architecture) for e in searched)
    assert any([layer.index for layer in e.architecture.layers] == [2] for e in searched)  # the most important layer
    baseline = archive.at(0, source=TRUNCATION)
    assert len(baseline) == len(json.loads((run_dir / "search.json").read_text())["front"])
    assert all(
        [layer.index for layer in e.architecture.layers] == list(range(e.architecture.num_layers)) for e in baseline
    )
    full = supernet.largest()
    assert archive.find(full, step=0) != archive.find(full, step=0, source=TRUNCATION)


def test_searching_again_goes_on_from_the_archive(run_dir, capsys, monkeypatch):
    before = (run_dir / "archive.jsonl").read_bytes()
    front = (run_dir / "pareto.csv").read_bytes()
    monkeypatch.setattr(Loss, "__call__", lambda *_: pytest.fail("measured again"))
    assert cli.run(["search", f"run_dir={run_dir}"]) == 0
    assert (run_dir / "archive.jsonl").read_bytes() == before
    assert (run_dir / "pareto.csv").read_bytes() == front
    output = capsys.readouterr().out
    assert "Pareto front:" in output
    assert "full network" in output
    monkeypatch.undo()
    assert cli.run(["search", f"run_dir={run_dir}", "search.evaluations=14"]) == 0
    assert (run_dir / "archive.jsonl").read_bytes().startswith(before)
    assert json.loads((run_dir / "search.json").read_text())["evaluations"] == 14


def test_a_search_that_goes_on_keeps_its_population(run_dir):
    more = ["search.population=null", "search.evaluations=14"]  # by itself that budget has a population of 4
    assert cli.run(["search", f"run_dir={run_dir}", *more]) == 0
    found = json.loads((run_dir / "search.json").read_text())
    assert (found["population"], found["evaluations"], found["from_archive"]) == (6, 14, 10)


def test_other_objectives_and_a_report_from_files(run_dir, capsys, monkeypatch):
    more = ["objectives=[macs,perplexity,loss]", "objectives.macs.sequence_length=16"]
    losses, known, loss = [], Archive(run_dir / "archive.jsonl").evaluations, Loss.__call__
    monkeypatch.setattr(Loss, "__call__", lambda *args: losses.append(args[2]) or loss(*args))
    assert cli.run(["search", f"run_dir={run_dir}", *more]) == 0
    measured = Archive(run_dir / "archive.jsonl").evaluations
    assert measured[: len(known)] != known  # they have the others now
    assert [e.id for e in measured[: len(known)]] == [e.id for e in known]
    assert losses == [e.architecture for e in measured[len(known) :]]  # perplexity is the exponential of what is known
    page = (run_dir / "report.html").read_text()
    (run_dir / "report.html").unlink()
    (run_dir / "pareto.png").unlink()
    capsys.readouterr()
    assert cli.run(["report", f"run_dir={run_dir}"]) == 0
    assert "Pareto front:" in capsys.readouterr().out
    again = (run_dir / "report.html").read_text()
    assert "perplexity" in again
    assert len(again) >= len(page)  # the report stage is one row more in the page's list of commands
    assert (run_dir / "pareto.png").exists()


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (["objectives=[macs,loss]", "objectives.macs.batch_size=2"], "objectives.macs"),
        (["data.sequence_length=20"], "data.sequence_length"),
        (["seed=3"], "seed"),
        (["trainer.limit_val_batches=1"], "search samples"),
    ],
)
def test_values_that_cannot_be_compared_with_the_archive_are_refused(run_dir, capsys, other, key):
    write_json(run_dir / "fingerprints.json", read_json(run_dir / "fingerprints.json") | {"objectives.macs": {}})
    assert cli.run(["search", f"run_dir={run_dir}", *other]) == 2
    assert f"error: {key}=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search=none"], "search=none leaves the search stage nothing to do"),
        (["search.population=1"], "search.population=1"),
        (["objectives=[loss,colour]"], "colour"),
        (["search_space.steps=2"], "search_space.hidden=[8, 32] differs from [8, 16, 32]"),
    ],
)
def test_what_cannot_be_searched_is_one_line(run_dir, capsys, overrides, message):
    (run_dir / "archive.jsonl").unlink()
    assert cli.run(["search", f"run_dir={run_dir}", *overrides]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert not (run_dir / "archive.jsonl").exists()


def test_a_run_without_a_supernet_is_named(run_dir, capsys):
    (run_dir / "supernet").rename(run_dir / "elsewhere")
    assert cli.run(["search", f"run_dir={run_dir}"]) == 2
    assert "holds no super-network yet" in capsys.readouterr().err


def test_searchers_are_compared_on_copies_of_a_run(trained, tmp_path, capsys):
    arms = ("grid", "nsga2-calibrated-grid")
    recorded = [line for line in OmegaConf.load(trained / ".hydra" / "overrides.yaml") if "search." not in line]
    for arm, seed in itertools.product(arms, (0, 1)):
        copy = Path(shutil.copytree(trained, tmp_path / "searchers" / arm / f"{seed}-seed-{seed}"))
        write_text(copy / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create([*recorded, f"seed={seed}"])))
        arguments = [f"experiment=ablation_searchers/{arm}", "search.evaluations=8", "search_space.steps=3"]
        assert cli.run(["search", f"run_dir={copy}", *arguments]) == 0
    sources = {e.source for e in Archive(copy / "archive.jsonl").evaluations}
    assert sources == {"reference", "nsga2", TRUNCATION}
    capsys.readouterr()
    assert cli.run(["report", f"run_dir={tmp_path / 'searchers'}"]) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in shown if line.strip().startswith(arms)]
    assert [row[0] for row in rows] == [*arms, *arms], "best losses, and the progress of the same networks"
    assert (tmp_path / "searchers" / "sweep_progress.png").is_file()


def test_the_searchers_of_the_ablation_have_one_budget():
    arms = [name for name in options(config_dir(), "experiment") if name.startswith("ablation_searchers/")]
    assert len(arms) == 7
    found = [checked(["stage=search", f"experiment={arm}", "run_dir=any"]) for arm in arms]
    assert len({(cfg.search.evaluations, cfg.search.seed, cfg.trainer.limit_val_batches) for cfg in found}) == 1
