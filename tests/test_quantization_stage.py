"""`nas-llm train` with `quantization=`: from the network to packed exports, resumed, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from test_block_walk import calibration
from test_families import batch, build, logits_of
from test_train_stage import arguments, base  # noqa: F401  (base: a fixture)

from nas_llm import cli
from nas_llm.atomic_files import read_json
from nas_llm.lightning.preparation import quantize
from nas_llm.models.loading import from_pretrained
from nas_llm.models.quantized_linear import quantized_modules
from nas_llm.quantization.gptq import GPTQ
from nas_llm.quantization.rtn import RoundToNearest

SETTINGS = ("quantization.group_size=16", "search_space=depth_only", "trainer.max_steps=0", "scheduler=none")


def command(base: Path, run_dir: Path, *more: str) -> list[str]:  # noqa: F811
    given = arguments(base, run_dir, *SETTINGS, "trainer.val_check_interval=null", *more)
    return [argument for argument in given if argument != "search_space.steps=4"]


def test_a_sparse_network_is_quantised_searched_and_exported_packed(base, tmp_path, capsys):  # noqa: F811
    run_dir = tmp_path / "run"
    sparse = ["sparsity=wanda", "sparsity.sparsity=0.5", "quantization=gptq"]
    assert cli.run(command(base, run_dir, *sparse)) == 0
    assert "quantization: 23,040 weights of 21 linear modules in 4 bits" in capsys.readouterr().out
    report = read_json(run_dir / "quantization.json")
    assert report["method"].startswith("GPTQ(bits=4, group_size=16")
    layers = report["layers"].values()
    assert len(layers) == 21
    assert all(2 * layer["zeros"] >= layer["weights"] and layer["output_error"] > 0 for layer in layers)
    assert report["bytes_after"] < report["bytes_before"] / 4
    assert read_json(run_dir / "fingerprints.json")["quantization"]["bits"] == 4
    exported = sorted((run_dir / "subnets").iterdir())
    assert exported
    for folder in [run_dir / "supernet", *exported]:
        assert read_json(folder / "config.json")["quantization_config"]["quant_method"] == "compressed-tensors"
        with safe_open(run_dir / "sparsity.safetensors", "pt") as held:
            for name, layer in quantized_modules(from_pretrained(run_dir / "supernet")).items():
                assert torch.equal(layer.weight == 0, (held.get_tensor(name) == 0) | (layer.weight == 0))


class Never(RoundToNearest):
    """What a resumed run must not call."""

    def __call__(self, supernet, batches=()):
        raise AssertionError("quantised again")


def test_a_resumed_run_takes_the_layers_of_the_run_and_quantises_nothing_again(tmp_path, capsys):
    def batches():
        return calibration()

    first, again = build("gpt_neox"), build("gpt_neox")
    quantize(first, GPTQ(3, 8), batches, tmp_path, resumes=False)
    assert "in 3 bits" in capsys.readouterr().out
    quantize(again, Never(3, 8), batches, tmp_path, resumes=True)
    assert capsys.readouterr().out == ""
    layers, restored = quantized_modules(first.model), quantized_modules(again.model)
    assert layers.keys() == restored.keys()
    for name, layer in layers.items():
        assert torch.equal(layer.quantized.codes, restored[name].quantized.codes)
        assert (layer.bits, layer.group_size) == (restored[name].bits, restored[name].group_size)
    assert torch.equal(logits_of(first.model, batch()), logits_of(again.model, batch()))
    assert again.num_parameters(again.largest()) == first.num_parameters(first.largest())
    quantize(build("gpt_neox"), None, batches, tmp_path, resumes=True)
    for other, says in ((build("llama"), "is of another network"), (build("gpt_neox"), "is damaged")):
        if says == "is damaged":
            (tmp_path / "quantization.safetensors").write_bytes(b"torn")
        with pytest.raises(ValueError, match=f"quantization.safetensors {says}.*start a new run with another run_dir="):
            quantize(other, Never(3, 8), batches, tmp_path, resumes=True)
        assert not quantized_modules(other.model)


def test_what_the_network_cannot_have_is_one_line_and_leaves_nothing(base, tmp_path, capsys):  # noqa: F811
    cases = {
        "search_space=joint": "model.layers.0.self_attn.q_proj is quantised, so that no sub-network may cut it",
        "quantization.group_size=20": "quantization.group_size=20 does not divide the width of model.layers.0",
        "quantization.targets=[qkv]": "quantization.targets=[qkv]: qkv is no linear layer; allowed are q_proj,",
    }
    for override, says in cases.items():
        given = [
            a for a in command(base, tmp_path / "run", "quantization=rtn") if a.split("=")[0] != override.split("=")[0]
        ]
        assert cli.run([*given, override]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith(f"nas-llm: error: {says}"), error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "run").exists()


def test_a_quantised_network_is_searched_and_not_trained_or_quantised_again(base, tmp_path, capsys):  # noqa: F811
    run_dir = tmp_path / "run"
    first = [a for a in command(base, run_dir, "quantization=rtn", "search=none") if not a.startswith("search.")]
    assert cli.run(first) == 0
    model = f"model.path={run_dir / 'supernet'}"
    capsys.readouterr()
    again = [a for a in arguments(base, tmp_path / "two", model, "search_space=depth_only") if "steps=4" not in a]
    assert cli.run(again) == 2
    assert "is quantised, so that its weights cannot be trained: add trainer.max_steps=0" in capsys.readouterr().err
    as_it_is = [
        a for a in command(base, tmp_path / "as-it-is", model, "importance=none") if not a.startswith("quantization.")
    ]
    assert cli.run(as_it_is) == 0
    capsys.readouterr()
    assert cli.run(command(base, tmp_path / "two", model, "quantization=rtn")) == 2
    assert "is quantised already, to 4 bits" in capsys.readouterr().err
    sparse = command(base, tmp_path / "two", model, "sparsity=magnitude")
    assert cli.run([a for a in sparse if not a.startswith("quantization.")]) == 2
    assert "is quantised, so that its weights are no longer changed" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()
