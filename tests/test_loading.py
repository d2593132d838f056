"""Loading: what is damaged or unknown is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import build

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.loading import from_pretrained
from nas_llm.models.saving import save_pretrained
from nas_llm.models.tokenizer import load_tokenizer


def test_an_empty_tokenizer_file_is_refused(tmp_path: Path) -> None:
    load_tokenizer("microworld_llama").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"its tokenizer does not load .*model\.tokenizer_path="):
        load_tokenizer(tmp_path, setting="model.tokenizer_path")


def edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cut(folder: Path) -> Path:
    """A directory of model type nas_llm."""
    architecture = Architecture(40, (LayerChoice(0, 2, 2, 8, 40), LayerChoice(2, 3, 1, 8, 56)))
    save_pretrained(build("llama").extract(architecture), folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "nas_llm"
    return folder


def stock(folder: Path, name: str = "llama") -> Path:
    build(name).save(folder)
    return folder


def test_what_the_stock_loader_cannot_load_says_how_it_is_loaded(tmp_path: Path) -> None:
    cut(tmp_path / "small")
    loads = next(line for line in (tmp_path / "small" / "README.md").read_text().splitlines() if "= nas_llm." in line)
    found = {"from_pretrained": lambda name: from_pretrained(tmp_path / name)}
    names = {"nas_llm": SimpleNamespace(**found)}
    exec(loads, names)
    assert f"with {names['model'].num_parameters():,} parameters" in (tmp_path / "small" / "README.md").read_text()
    assert not (stock(tmp_path / "stock") / "README.md").exists()

    def extra(folder: Path) -> None:
        (folder / "README.md").write_text("its own")

    save_pretrained(names["model"], tmp_path / "small", extra=extra)
    assert (tmp_path / "small" / "README.md").read_text() == "its own"


def refusal(path: Path | str, **settings: str) -> str:
    with pytest.raises(ValueError) as caught:
        from_pretrained(path, **settings)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 700
    return line


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "gpt_neox", "opt", "phi3", "gemma3_text"])
def test_a_configuration_of_more_layers_than_the_weights_is_refused(name: str, tmp_path: Path) -> None:
    from_pretrained(stock(tmp_path, name))  # tied weights and buffers that are computed anew are not missing
    keys = {"n_layer": 6} if name == "gpt2" else {"num_hidden_layers": 6}
    if name == "gemma3_text":
        keys["layer_types"] = ["full_attention"] * 6
    edit(tmp_path, **keys)
    line = refusal(tmp_path)
    assert line.startswith(f"model.path={tmp_path}: ")
    assert "weights are missing, first" in line
    assert ".4." in line


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weights_of_another_shape_than_the_configuration_are_refused(name: str, tmp_path: Path) -> None:
    stock(tmp_path, name)
    edit(tmp_path, **({"n_inner": 100} if name == "gpt2" else {"intermediate_size": 88}))
    assert "weights have another shape than config.json says, first" in refusal(tmp_path)


@pytest.mark.parametrize("kind", [stock, cut])
def test_damaged_directories_are_named(kind, tmp_path: Path) -> None:
    folder = kind(tmp_path / "model")
    weights, config = folder / "model.safetensors", folder / "config.json"
    content, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(content[: len(content) // 2])
    assert f"model.path={folder}: a weights file is damaged" in refusal(folder)
    weights.unlink()
    assert f"model.path={folder}: " in refusal(folder)
    weights.write_bytes(content)
    config.write_text(text[: len(text) // 2])
    assert f"model.path={folder}: config.json is not JSON, line " in refusal(folder)
    config.write_text("[]")
    assert "holds no model_type" in refusal(folder)
    config.write_text(text)
    from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_torn_weights_file_of_torch_is_refused(kept: float, tmp_path: Path) -> None:
    weights = load_file(stock(tmp_path) / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    content = (tmp_path / "pytorch_model.bin").read_bytes()
    from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(content[: int(kept * len(content))])
    assert refusal(tmp_path).startswith(f"model.path={tmp_path}: ")


def test_a_cut_that_lacks_a_weight_or_its_description_is_refused(tmp_path: Path) -> None:
    cut(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "model.norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    assert "1 weights have another shape than config.json says, first model.norm.weight" in refusal(tmp_path)
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    assert "1 weights are missing, first model.norm.weight" in refusal(tmp_path)
    edit(tmp_path, nas_llm={"architecture": {}})
    assert "does not describe a sub-network" in refusal(tmp_path)


@pytest.mark.parametrize("model_type", ["t5", "frobnicate"])
def test_an_unknown_family_is_refused_before_its_weights_are_read(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    line = refusal(tmp_path)
    assert line.startswith(f"model.path={tmp_path}: model family {model_type!r} is not known; known are gemma, ")
    with pytest.raises(ValueError, match=f"family '{model_type}' is not known"):
        load_tokenizer(tmp_path)


def test_the_key_at_fault_is_named(tmp_path: Path) -> None:
    stock(tmp_path)
    line = refusal(tmp_path, dtype="foo")
    assert line == "model.dtype=foo: allowed are null, auto, float32, bfloat16, float16, float64"
    assert "model.path=''" in refusal("")
    with pytest.raises(ValueError, match=r"^model\.path=''"):
        load_tokenizer("")
    with pytest.raises(ValueError, match=r"^model\.tokenizer_path=/no/tok: neither"):
        load_tokenizer("/no/tok", setting="model.tokenizer_path")
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r"config\.json is not JSON, line 1"):
        load_tokenizer(tmp_path)
