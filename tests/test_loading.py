"""Loading and saving: what is damaged, unknown or in the way is refused in one line, and nothing of the user's is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import assert_close, batch, build, logits_of, random_architectures
from transformers import AutoModelForCausalLM

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.loading import from_pretrained, load_tokenizer, save_pretrained
from nas_llm.models.supernet import Supernet


@pytest.mark.parametrize("foreign", ["notes.txt", "data/train.json", "optimizer.safetensors", ".gitignore"])
def test_a_directory_with_other_files_is_not_replaced(tmp_path: Path, foreign: str) -> None:
    supernet = build("llama")
    target = tmp_path / "out"
    supernet.save(target)
    (target / foreign).parent.mkdir(exist_ok=True)
    (target / foreign).write_text("mine")
    before = sorted(target.rglob("*"))
    with pytest.raises(ValueError, match=rf"{foreign.split('/')[0]}.*export\.path="):
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
