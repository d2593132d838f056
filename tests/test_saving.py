"""Saving: a directory is replaced whole, or kept where it holds anything else; nothing of the user's is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_families import build, random_architectures

from nas_llm.architecture import Architecture
from nas_llm.models.loading import from_pretrained
from nas_llm.models.saving import save_pretrained
from nas_llm.models.tokenizer import load_tokenizer


@pytest.mark.parametrize("foreign", ["notes.txt", "data/train.json", "optimizer.safetensors", ".gitignore"])
def test_a_directory_with_other_files_is_not_replaced(tmp_path: Path, foreign: str) -> None:
    supernet = build("llama")
    target = tmp_path / "out"
    supernet.save(target)
    (target / foreign).parent.mkdir(exist_ok=True)
    (target / foreign).write_text("mine")
    before = sorted(target.rglob("*"))
    with pytest.raises(ValueError, match=rf"{foreign.split('/')[0]}.*run_dir="):
        supernet.save(target)
    assert sorted(target.rglob("*")) == before
    assert (target / foreign).read_text() == "mine"


def test_what_save_wrote_is_replaced_whole(tmp_path: Path) -> None:
    supernet = build("llama")
    tokenizer = load_tokenizer("microworld_llama")
    supernet.sort({"hidden": torch.rand(48)})
    supernet.save(tmp_path / "out", tokenizer=tokenizer)
    (tmp_path / "out" / "README.md").write_text("card")
    save_pretrained(supernet.extract(random_architectures(supernet, 1)[0]), tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out" / "axes_order.safetensors").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("size", [10, 3000, 20_000])  # what is too large: config.json, the weights, the tokenizer
@pytest.mark.parametrize("kind", ["stock", "cut", "supernet"])
def test_a_full_disk_leaves_the_model_before_it(kind: str, size: int, tmp_path: Path, file_size_limit) -> None:
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 8}
    supernet, tokenizer = build("llama", **small), load_tokenizer("microworld_llama")
    full = supernet.largest()
    kept = Architecture(7, full.layers[1:2]) if kind == "cut" else full

    def save() -> None:
        if kind == "supernet":
            supernet.save(tmp_path / "out", tokenizer=tokenizer)
        else:
            save_pretrained(supernet.extract(kept), tmp_path / "out", tokenizer=tokenizer)

    setting = "run_dir" if kind == "supernet" else "export.path"
    refusal = rf"^{tmp_path}/out could not be written \(File too large\): .*{setting}=$"
    for before in ([], ["out"]):
        with file_size_limit(size), pytest.raises(ValueError, match=refusal):
            save()
        assert [file.name for file in tmp_path.iterdir()] == before
        save()
    assert from_pretrained(tmp_path / "out").num_parameters() == supernet.num_parameters(kept)


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "out", tmp_path / "file" / "below" / "out"):
        with pytest.raises(ValueError, match=r"out could not be written .*export\.path="):
            save_pretrained(build("llama").extract(build("llama").largest()), target)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc, where nothing can be made")
def test_a_place_where_nothing_can_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match=r"/proc/none/out could not be written \(.*\): .*export\.path=$"):
        save_pretrained(build("llama").extract(build("llama").largest()), "/proc/none/out")
