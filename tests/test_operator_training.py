"""Networks of operators in the stages: fine-tuned (whole or with adapters), taught by the network they came from,
searched by depth, measured, exported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from nas_llm import cli
from nas_llm.atomic_files import read_json, write_text
from nas_llm.models.loading import from_pretrained
from nas_llm.models.operator_assembly import assemble
from nas_llm.models.saving import save_pretrained
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Ffn, Heads, Identity, Linear, OperatorNetwork, Sparse

TEXT = "The red fox ran to the old mill. It was cold and the river was wide. A bear sat near the door and slept. "
NETWORK = OperatorNetwork.of(
    {
        (0, "mlp"): Ffn(24),
        (1, "attention"): Identity(),
        (1, "mlp"): Linear(),
        (2, "attention"): Heads(2, 1, 4),
        (3, "attention"): Linear(),
        (3, "mlp"): Identity(),
    },
    4,
)


def teacher_of(vocabulary: int = 400) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, vocab_size=vocabulary, num_key_value_heads=2, max_position_embeddings=64)
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def base(tiny_tokenizer, tmp_path_factory) -> Path:
    """A teacher, a network of operators cut from it, and a text."""
    folder = tmp_path_factory.mktemp("base")
    supernet = Supernet(teacher_of())
    save_pretrained(supernet.extract(supernet.largest()), folder / "teacher", tokenizer=tiny_tokenizer)
    network = assemble(supernet, NETWORK)
    for linear in (network.model.layers[1].mlp.linear, network.model.layers[3].self_attn.linear):
        torch.nn.init.normal_(linear.weight, std=0.02)  # zeros would count as sparse
    save_pretrained(network, folder / "network", tokenizer=tiny_tokenizer)
    write_text(folder / "text.jsonl", "".join(json.dumps({"text": TEXT[i:] + TEXT}) + "\n" for i in range(40)))
    return folder


def train(base: Path, run_dir: Path, *more: str) -> list[str]:
    data = ["data=text", f"data.path={base / 'text.jsonl'}", "data.sequence_length=16", "data.calibration_size=4"]
    data += [f"data.cache_dir={base / 'cache'}", "data.batch_size=4", "data.validation_size=4", "data.test_size=2"]
    trainer = ["trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.enable_progress_bar=false"]
    tuned = ["sampler=standard", "search=none"]
    return ["train", f"run_dir={run_dir}", f"model.path={base / 'network'}", *data, *trainer, *tuned, *more]


def taught(base: Path) -> list[str]:
    return ["training.teacher=frozen", f"training.teacher_path={base / 'teacher'}"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert cli.run(train(base, run_dir, *taught(base), "checkpoint.every_n_steps=1", "checkpoint.keep=true")) == 0
    return run_dir


def test_a_network_of_operators_is_fine_tuned_as_it_is_saved(base, finished):
    before, after = weights(base / "network"), weights(finished / "supernet")
    assert before.keys() == after.keys()
    moved = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    assert set(before) - set(moved) == {"model.layers.2.self_attn.rotary_pairs"}
    again = Supernet(from_pretrained(finished / "supernet"))
    assert again.operators == NETWORK
    assert not (finished / "importance.safetensors").exists()  # nothing of it was sorted


def test_a_resumed_fine_tune_equals_the_uninterrupted_one(base, finished, tmp_path):
    checkpoint = f"ckpt_path={finished / 'checkpoints' / 'step-1.ckpt'}"
    assert cli.run(train(base, tmp_path / "run", *taught(base), checkpoint)) == 0
    resumed, whole = weights(tmp_path / "run" / "supernet"), weights(finished / "supernet")
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize("group_by", ["role", "module"])
def test_its_adapters_alone_are_trained_and_merged_on_export(base, tmp_path, group_by):
    run_dir = tmp_path / "run"
    adapters = ["peft=lora", "peft.r=4", f"peft.group_by={group_by}"]
    assert cli.run(train(base, run_dir, *adapters, *taught(base))) == 0
    before = weights(base / "network")
    after = weights(run_dir / "supernet")
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    adapted = load_file(run_dir / "supernet" / "adapter" / "adapter_model.safetensors")
    assert any(".mlp.linear.lora_A" in name for name in adapted)
    assert all(weight.any() for name, weight in adapted.items() if "lora_B" in name)
    assert cli.run(["export", f"run_dir={run_dir}", "architecture=largest", f"export.path={tmp_path / 'out'}"]) == 0
    merged = Supernet(from_pretrained(tmp_path / "out"))
    assert merged.operators == NETWORK
    assert not torch.equal(merged.model.model.layers[1].mlp.linear.weight, before["model.layers.1.mlp.linear.weight"])


def test_its_depth_is_searched_measured_and_exported(base, finished, tmp_path, capsys):
    run_dir = f"run_dir={finished}"
    assert cli.run(["search", run_dir, "search=nsga2", "search.evaluations=6", "search.population=3"]) == 0
    assert cli.run(["evaluate", run_dir]) == 0
    assert cli.run(["export", run_dir, "architecture=smallest", f"export.path={tmp_path / 'small'}"]) == 0
    small = Supernet(from_pretrained(tmp_path / "small"))
    kept = read_json(finished / "search_space.json")["depth"][0]
    assert small.largest().num_layers == kept < 4
    assert small.operators.blocks == NETWORK.blocks[:kept]
    assert {"params", "loss"} <= {metric["name"] for metric in read_json(finished / "results.json")["metrics"]}


def test_sparse_operators_keep_their_zeros_in_training_unless_they_are_to_be_filled(base, tmp_path, tiny_tokenizer):
    network = OperatorNetwork.of({(0, "mlp"): Sparse("2:4", "both"), (1, "mlp"): Ffn(24)}, 4)
    model = assemble(Supernet(teacher_of()), network)
    projections = [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")]
    for name in projections:
        model.get_submodule(name).weight.data.view(-1, 4)[:, 1:3] = 0
    save_pretrained(model, tmp_path / "sparse", tokenizer=tiny_tokenizer)
    given = [f"model.path={tmp_path / 'sparse'}", *taught(base)]
    before = weights(tmp_path / "sparse")
    for run, setting in (("default", []), ("kept", ["training.zeros=keep"]), ("filled", ["training.zeros=fill"])):
        assert cli.run(train(base, tmp_path / run, *given, *setting)) == 0
        after = weights(tmp_path / run / "supernet")
        for name in projections:
            zero = before[f"{name}.weight"] == 0
            assert torch.equal(after[f"{name}.weight"] == 0, zero) == (run != "filled")
            assert not torch.equal(after[f"{name}.weight"], before[f"{name}.weight"])


LOAD = """
import sys, nas_llm
from transformers import AutoTokenizer
model, words = nas_llm.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
print(model.generate(**words("The red fox", return_tensors="pt"), max_new_tokens=3, do_sample=False).shape[1])
"""


def test_the_card_of_an_export_says_what_every_layer_is_and_how_to_load_it(finished, tmp_path):
    place = tmp_path / "whole"
    assert cli.run(["export", f"run_dir={finished}", "architecture=largest", f"export.path={place}"]) == 0
    card = (place / "README.md").read_text()
    for row in (
        "| 0 | teacher | ffn-24 | 4 | 2 | 8 | 24 |",
        "| 1 | identity | linear | 0 | 0 | 0 | 0 |",
        "| 2 | heads-2x1x4 | teacher | 2 | 2 | 4 | 48 |",
        "| 3 | linear | identity | 0 | 0 | 0 | 0 |",
    ):
        assert row in card, card
    assert "nas_llm.from_pretrained" in card
    assert "AutoModelForCausalLM` cannot load" in card
    done = subprocess.run([sys.executable, "-c", LOAD, str(place)], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 3


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["search_space.hidden=[16,32]"], "cannot slice hidden"),
        (["search_space=per_layer_large"], "cannot slice kv_groups; allowed are depth"),
        (["training.teacher=frozen", "training.teacher_path=nowhere"], "training.teacher_path=nowhere: neither"),
    ],
)
def test_mistakes_leave_nothing_behind(base, tmp_path, capsys, overrides, says):
    assert (
        cli.run(train(base, tmp_path / "run", "distillation=none" if len(overrides) == 1 else "seed=0", *overrides))
        == 2
    )
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_vocabulary_is_refused(base, tmp_path, tiny_tokenizer, capsys):
    teacher_of(401).save_pretrained(tmp_path / "larger")
    given = ["training.teacher=frozen", f"training.teacher_path={tmp_path / 'larger'}"]
    assert cli.run(train(base, tmp_path / "run", *given)) == 2
    assert "has 401 tokens, the model has 400" in capsys.readouterr().err
    teacher_of().save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    words = tmp_path / "other" / "tokenizer.json"
    known = json.loads(words.read_text())
    (first, a), (second, b) = list(known["model"]["vocab"].items())[-2:]
    known["model"]["vocab"] |= {first: b, second: a}
    words.write_text(json.dumps(known))
    given = ["training.teacher=frozen", f"training.teacher_path={tmp_path / 'other'}"]
    assert cli.run(train(base, tmp_path / "run", *given)) == 2
    assert "numbers tokens otherwise" in capsys.readouterr().err
