"""Training of adapters alone: what trains, resuming from adapters alone, checkpointed gradients, the stages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train_stage import arguments, base  # noqa: F401  (fixtures)
from training_fixtures import eval_loader, tiny_module, tiny_supernet, train_loader, trainer, weights
from transformers import LlamaConfig, LlamaForCausalLM

import nas_llm
from nas_llm import cli
from nas_llm.distillation.mix import hard_loss
from nas_llm.lightning.checkpoint import read_checkpoint
from nas_llm.lightning.output import Targets, output_loss
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.peft.files import read_adapter
from nas_llm.peft.given import GivenAdapter
from nas_llm.peft.lora import Lora
from nas_llm.peft.merging import TOLERANCES
from nas_llm.peft.saving import save_supernet
from nas_llm.peft.sparse_lora import SparseLora
from nas_llm.reporting import numbers
from nas_llm.samplers import SandwichSampler
from nas_llm.search_space import SearchSpace
from nas_llm.stages.finished_run import FinishedRun

LORA = Lora(r=4, lora_alpha=8, lora_dropout=0.1)
METHODS = {"lora": LORA, "dora": replace(LORA, use_dora=True), "sparse": SparseLora(r=4, lora_alpha=8)}


def adapted(lora: Lora = LORA, **changes):
    supernet = tiny_supernet(**changes)
    lora(supernet)
    return supernet


def run(folder: Path, steps: int, ckpt_path: Path | None = None, lora: Lora = LORA, **changes):
    module = tiny_module(adapted(lora), seed=3, **changes)
    trainer(folder, max_steps=steps, max_epochs=-1).fit(module, train_loader(4), eval_loader(), ckpt_path=ckpt_path)
    return weights(module)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_only_the_adapters_train_and_a_resumed_run_equals_an_uninterrupted_one(method, tmp_path):
    before = weights(tiny_module(adapted(method)))
    after = run(tmp_path / "whole", 4, lora=method)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-2.ckpt"
    assert all("lora_" in name for name in read_checkpoint(checkpoint)["state_dict"])
    resumed = run(tmp_path / "rest", 4, checkpoint, lora=method)
    assert all(torch.equal(resumed[name], value) for name, value in after.items())


def test_a_checkpoint_of_other_adapters_is_refused(tmp_path):
    run(tmp_path / "one", 1)
    checkpoint = tmp_path / "one" / "checkpoints" / "step-1.ckpt"
    with pytest.raises(ValueError, match="ckpt_path"):
        run(tmp_path / "other", 2, checkpoint, lora=replace(LORA, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="ckpt_path"):
        run(tmp_path / "rank", 2, checkpoint, lora=replace(LORA, r=2))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_gradient_checkpointing_changes_no_gradient_of_an_elastic_rank(method, tmp_path):
    """The trap: a rank that is drawn again in the recomputation goes back through another sub-network."""

    def after(checkpointing: bool):
        supernet = adapted(method)
        sampler = SandwichSampler(SearchSpace.per_layer(supernet, ranks=[1, 2, 3, 4]), k=2)
        module = tiny_module(supernet, sampler=sampler, gradient_checkpointing=checkpointing, seed=5)
        trainer(None, max_steps=2, max_epochs=-1).fit(module, train_loader(4), eval_loader())
        return weights(module)

    plain, checkpointed = after(False), after(True)
    for name, value in plain.items():
        assert torch.allclose(checkpointed[name], value, atol=1e-6), name


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_loss_in_chunks_is_that_of_the_logits_of_an_adapted_output_layer(method, bias, monkeypatch):
    """Value and gradients, against the model's own logits; with a rank and a width that are cut."""
    supernet = adapted(replace(method, lora_dropout=0.0), attention_bias=bias)
    for name, parameter in supernet.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    architecture = SearchSpace.joint(supernet, hidden=[16, 32], ranks=[2, 4]).smallest()
    batch = next(iter(train_loader(4)))
    targets = Targets.of(batch)
    monkeypatch.setattr("nas_llm.lightning.output.chunk_tokens", lambda vocabulary, device: 3)

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        supernet.model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in supernet.model.named_parameters() if p.grad is not None}

    with supernet.activate(architecture) as model:
        chunked = output_loss(model, batch, targets, lambda z, a, b: hard_loss(z, targets.labels[a:b]))
        ours = gradients(chunked)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.flatten(0, 1)
        plain = torch.nn.functional.cross_entropy(logits[targets.positions], targets.labels, reduction="sum")
        theirs = gradients(plain)
    assert torch.allclose(chunked, plain, rtol=1e-5)
    assert ours.keys() == theirs.keys()
    assert any("lm_head.lora_A" in name for name in ours)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4) for name in ours)


@pytest.fixture(scope="module")
def finished_lora(base, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("lora") / "run"
    adapters = ["peft=lora", "peft.r=4", "peft.lora_alpha=8", "search_space.ranks=[2,4]"]
    assert cli.run(arguments(base, folder, *adapters)) == 0
    return folder


def test_a_run_with_adapters_is_searched_saved_and_exported(finished_lora, tmp_path):
    run = FinishedRun(finished_lora)
    assert {rank for e in run.evaluations for layer in e.architecture.layers for _, rank in layer.ranks} == {2, 4}
    assert "attention_in 4" in (finished_lora / "pareto.csv").read_text()
    config = json.loads((finished_lora / "supernet" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert config["peft_type"] == "LORA"
    ids = torch.arange(1, 13).view(1, 12)
    architecture = run.space.middle()
    with torch.no_grad(), run.supernet.activate(architecture) as model:
        expected = model.eval()(ids).logits
    for adapters in ("auto", "merged", "separate"):
        out = tmp_path / adapters
        given = ["export", f"run_dir={finished_lora}", "architecture=middle", f"export.path={out}"]
        assert cli.run([*given, f"export.adapters={adapters}"]) == 0
        small = nas_llm.from_pretrained(out)
        card = (out / "README.md").read_text()
        if adapters == "separate":
            from peft import PeftModel

            assert "adapter/, in peft's format" in card
            assert "nothing but transformers is needed, and peft for its adapters" in card
            assert 'PeftModel.from_pretrained(model, "separate/adapter")' in card
            small = PeftModel.from_pretrained(small, str(out / "adapter"))
        else:
            assert "are merged into the weights: the logits differ" in card
            assert "Low-rank adapters (LoRA) of rank 4 and alpha 8" in card
            assert "outside of the layers: lm_head 4." in card
            assert not (out / "adapter").exists()
        with torch.no_grad():
            assert torch.allclose(small.eval()(ids).logits, expected, atol=1e-5)


def test_a_run_with_adapters_is_searched_again_and_evaluated(finished_lora, capsys):
    other = ["search=random", "search.evaluations=6", "seed=3", "data.seed=0"]  # that of the adapters says nothing now
    assert cli.run(["search", f"run_dir={finished_lora}", *other]) == 0
    assert cli.run(["evaluate", f"run_dir={finished_lora}", "architecture=smallest"]) == 0


def test_what_a_finished_run_was_not_trained_with_is_refused_by_its_name(base, finished_lora, capsys):  # noqa: F811
    resumed = arguments(base, finished_lora, "peft=lora", "search_space.ranks=[2,4]", "ckpt_path=last")
    for command, said in {
        ("search", f"run_dir={finished_lora}", "peft.r=2"): "peft.r=2 cannot take effect",
        ("search", f"run_dir={finished_lora}", "peft=none"): "peft=none cannot take effect",
        (*resumed, "peft.r=3", "peft.lora_alpha=8"): "peft.r=3 differs from peft.r=4",
    }.items():
        assert cli.run(list(command)) == 2
        assert f"error: {said}" in capsys.readouterr().err


def test_adapters_given_with_the_model_are_merged_or_trained_on(base, finished_lora, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    given = ["export", f"run_dir={finished_lora}", "architecture=largest", "export.adapters=separate"]
    assert cli.run([*given, f"export.path={out}"]) == 0
    ids = torch.arange(1, 13).view(1, 12)
    run_ = FinishedRun(finished_lora)
    with torch.no_grad():
        expected = run_.supernet.model.eval()(ids).logits
    passed_over = [*arguments(base, tmp_path / "no"), f"model.path={out}"]
    assert cli.run(passed_over) == 2
    assert f"would be left out: add model.adapter_path={out / 'adapter'}" in capsys.readouterr().err
    named = [f"model.path={out}", f"model.adapter_path={out / 'adapter'}", "optimizer.lr=0", "search.evaluations=6"]
    ranks = ["peft=lora", "peft.r=5", "peft.lora_alpha=5", "peft.lora_dropout=0", "search_space.ranks=[2,5]"]
    for name, peft in {"merged": [], "beside": ranks}.items():
        assert cli.run(arguments(base, tmp_path / name, *named, *peft)) == 0
        with torch.no_grad():
            logits = FinishedRun(tmp_path / name).supernet.model.eval()(ids).logits
        assert torch.allclose(logits, expected, atol=1e-4)
        assert (tmp_path / name / "supernet" / "adapter").is_dir() == bool(peft)
    other = [*arguments(base, tmp_path / "beside", *named, *ranks), "ckpt_path=last"]
    assert cli.run([*other, f"model.adapter_path={tmp_path / 'beside' / 'supernet' / 'adapter'}"]) == 2
    assert "error: model.adapter_path content=" in capsys.readouterr().err
    assert cli.run([*other, f"model.adapter_path={out}"]) == 2
    said = capsys.readouterr().err
    assert "it holds no adapter of peft" in said
    assert f"; {out / 'adapter'} does" in said


def test_adapters_that_cannot_take_effect_are_refused(base, finished_lora, tmp_path, capsys):  # noqa: F811
    for wrong, said in {
        "peft.r=4": "peft.r",
        "search_space.ranks=[2]": "peft=lora",
    }.items():
        assert cli.run(arguments(base, tmp_path / "no", wrong)) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert cli.run(arguments(base, tmp_path / "no", "peft=lora", "peft.r=4000")) == 2
    assert "peft.r=4000 is above the size of" in capsys.readouterr().err
    assert cli.run(["export", f"run_dir={finished_lora}", "architecture=middle", "export.adapters=both"]) == 2
    assert "allowed are auto, merged and separate" in capsys.readouterr().err


PIPELINES = {  # of SQFT (paper 2): Shears' sparse base, masked adapters, quantised ones
    "shears": ["sparsity=wanda", "peft=lora"],
    "sparse_peft": ["sparsity=wanda", "peft=sparse_peft"],
    "quantised base": ["quantization=gptq", "quantization.group_size=8", "peft=lora"],
    "qa_sparse_peft": ["sparsity=wanda", "quantization=gptq", "quantization.group_size=8", "peft=qa_sparse_peft"],
}


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_a_pipeline_keeps_what_it_promised_to_the_export(base, pipeline, tmp_path):  # noqa: F811
    ranks = [
        "search_space=per_layer",
        "search_space.elastic=[rank]",
        "search_space.ranks=[2,4]",
        "search.evaluations=6",
    ]
    given = [*ranks, *pipeline, "peft.r=4", "peft.lora_alpha=8", "peft.target_modules=[q_proj,k_proj,v_proj,up_proj]"]
    assert cli.run(arguments(base, tmp_path / "run", *given)) == 0
    run = FinishedRun(tmp_path / "run")
    assert len({rank for e in run.evaluations for layer in e.architecture.layers for _, rank in layer.ranks}) == 2
    assert (
        cli.run(["export", f"run_dir={tmp_path / 'run'}", "architecture=middle", f"export.path={tmp_path / 'out'}"])
        == 0
    )
    small = nas_llm.from_pretrained(tmp_path / "out")
    merged = "lora" not in str(pipeline)
    assert (tmp_path / "out" / "adapter").exists() != merged
    weights_ = [module.weight for _, module in small.named_modules() if isinstance(module, torch.nn.Linear)][:-1]
    zeros = sum(int((weight == 0).sum()) for weight in weights_) / sum(weight.numel() for weight in weights_)
    assert zeros >= 0.5 if "sparsity=wanda" in pipeline else zeros < 0.5
    quantised = [m for m in small.modules() if isinstance(m, QuantizedLinear)]
    assert bool(quantised) == ("quantization=gptq" in pipeline)
    ids = torch.arange(1, 13).view(1, 12)
    with torch.no_grad(), run.supernet.activate(run.space.middle()) as model:
        expected = model.eval()(ids).logits
        if merged:
            assert torch.allclose(small(ids).logits, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["sparse_peft", "qa_sparse_peft"])
def test_a_stopped_pipeline_resumes_on_the_base_that_it_made(base, name, tmp_path, capsys):  # noqa: F811
    given, parts = [*PIPELINES[name], "peft.r=4", "search_space=depth_only"], tmp_path / "parts"
    assert cli.run(arguments(base, tmp_path / "whole", *given)) == 0
    shutil.copytree(tmp_path / "whole", parts)
    for left in ("supernet", "subnets"):
        shutil.rmtree(parts / left)
    (parts / "archive.jsonl").unlink()
    capsys.readouterr()
    assert cli.run(arguments(base, parts, *given, f"ckpt_path={parts / 'checkpoints' / 'step-4.ckpt'}")) == 0
    assert "zeros" not in capsys.readouterr().out  # neither sparsified nor quantised again
    file = Path("supernet") / "adapter" / "adapter_model.safetensors"
    one, other = (load_file(tmp_path / folder / file) for folder in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name_], other[name_]) for name_ in one)


@pytest.mark.slow
def test_two_processes_train_the_adapters_of_one(base, tmp_path):  # noqa: F811
    given = ["sparsity=wanda", "peft=sparse_peft", "peft.r=4", "peft.lora_dropout=0", "search_space.ranks=[2,4]"]
    given += ["search.evaluations=6", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    assert cli.run(arguments(base, tmp_path / "one", *given)) == 0
    command = arguments(base, tmp_path / "two", *given, "trainer=ddp", "trainer.devices=2")
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "nas_llm", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file = Path("supernet") / "adapter" / "adapter_model.safetensors"
    one, two = (load_file(tmp_path / folder / file) for folder in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)


def test_budgets_and_cards_count_what_is_exported(tied_lora, tmp_path):
    """Merging unties the adapted output head, which makes the network larger than base and adapters together."""
    run = FinishedRun(tied_lora)
    before = run.supernet.num_base_parameters
    untied = run.supernet.config.vocab_size * run.supernet.largest().hidden
    largest = [e for e in run.evaluations if e.architecture == run.space.largest()]
    assert {e.objectives["params"] for e in largest} == {before + untied}
    smallest = min(run.front.evaluations, key=lambda e: e.objectives["params"])
    budget, out = smallest.objectives["params"] + 1, tmp_path / "out"
    assert cli.run(["export", f"run_dir={tied_lora}", f"max_params={budget}", f"export.path={out}"]) == 0
    parameters = sum(p.numel() for p in nas_llm.from_pretrained(out).parameters())
    assert parameters == smallest.objectives["params"]
    said = (
        f"of {numbers.count(parameters)} parameters, {numbers.percent(parameters / before)} of the pre-trained model's"
    )
    assert said in (out / "README.md").read_text()


@pytest.fixture(scope="module")
def tied_lora(base, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("tied")
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(base / "model", tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / "model" / name, folder / "model")
    given = [f"model.path={folder / 'model'}", "peft=lora", "peft.r=4", "peft.lora_alpha=8", "trainer.max_steps=1"]
    given += ["search_space=per_layer", "search_space.elastic=[rank,ffn]", "search_space.ranks=[2,4]"]
    command = [a for a in arguments(base, folder / "run") if not a.startswith(("trainer.val", "search_space.steps"))]
    assert cli.run([*command, *given]) == 0
    return folder / "run"


def test_what_a_merge_would_change_is_exported_apart_by_auto_alone(tied_lora, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TOLERANCES, torch.float32, -1.0)
    given = ["export", f"run_dir={tied_lora}", "architecture=largest"]
    assert cli.run([*given, f"export.path={tmp_path / 'merged'}", "export.adapters=merged"]) == 2
    assert "export.adapters=separate" in capsys.readouterr().err
    out = tmp_path / "out"
    assert cli.run([*given, f"export.path={out}"]) == 0
    assert "They are not merged, for the merged model's logits differ" in (out / "README.md").read_text()
    run, ids = FinishedRun(tied_lora), torch.arange(1, 13).view(1, 12)
    from peft import PeftModel

    small = PeftModel.from_pretrained(nas_llm.from_pretrained(out), str(out / "adapter")).eval()
    with torch.no_grad():
        assert torch.allclose(small(ids).logits, run.supernet.model.eval()(ids).logits, atol=1e-5)


def test_an_adapter_beside_other_weights_is_refused(base, tied_lora, tmp_path, capsys):  # noqa: F811
    """Its units are in the order of the sorted network; and of what is merged already, nothing is merged again."""
    sorted_ = tied_lora / "supernet"
    for adapters in ("merged", "separate"):
        given = ["export", f"run_dir={tied_lora}", "architecture=largest", f"export.path={tmp_path / adapters}"]
        assert cli.run([*given, f"export.adapters={adapters}"]) == 0
    apart = tmp_path / "separate" / "adapter"
    for model, adapter in ((tied_lora.parent / "model", sorted_ / "adapter"), (tmp_path / "merged", apart)):
        given = [f"model.path={model}", f"model.adapter_path={adapter}"]
        assert cli.run(arguments(base, tmp_path / "no", *given)) == 2
        said = capsys.readouterr().err
        assert f"model.adapter_path={adapter}: the network of model.path has other weights" in said
        assert not (tmp_path / "no").exists()
    for adapter in (sorted_ / "adapter", apart):
        read = GivenAdapter.read(adapter)
        assert read.base_fingerprint is not None
        read.refuse_other_weights(nas_llm.from_pretrained(adapter.parent))
        read.refuse_other_weights(nas_llm.from_pretrained(adapter.parent, dtype="bfloat16"))


def test_adapters_that_do_not_go_with_the_base_are_refused_before_anything_is_computed(base, tmp_path, capsys):  # noqa: F811
    quantised = ["quantization=rtn", "quantization.group_size=8"]
    for given, said in {
        ("peft=sparse_peft", "sparsity=magnitude", *quantised): "is quantised, and adapters of that kind",
        ("peft=qa_sparse_peft", "peft.target_modules=[q_proj]", "quantization.targets=[v_proj]", *quantised): "none of",
        ("peft=sparse_peft",): "peft=sparse_peft cannot take effect: none of the matrices",
        ("peft=lora", "model.dtype=float16"): "model.dtype=float16: in float16 an optimizer's steps are not finite",
    }.items():
        assert cli.run(arguments(base, tmp_path / "no", "peft.r=4", *given)) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "no").exists()  # nothing was sorted, sparsified or quantised for it


def test_stock_peft_refuses_adapters_whose_function_it_does_not_have(tmp_path):
    from peft import PeftModel

    for name, method in METHODS.items():
        supernet = adapted(method)
        save_supernet(supernet, tmp_path / name, peft=method)
        model, folder = nas_llm.from_pretrained(tmp_path / name), tmp_path / name / "adapter"
        assert GivenAdapter.read(folder).method == method
        if name != "sparse":
            PeftModel.from_pretrained(model, str(folder))
            continue
        with pytest.raises(KeyError, match="SparseLora"):
            PeftModel.from_pretrained(model, str(folder))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_the_damaged_file_of_an_adapter_is_named(tmp_path, name):
    supernet = adapted()
    save_supernet(supernet, tmp_path / "one", peft=LORA)
    folder = tmp_path / "one" / "adapter"
    (folder / name).write_bytes((folder / name).read_bytes()[:50])
    for read in (GivenAdapter.read, lambda folder: read_adapter(supernet, folder)):
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            read(folder)
