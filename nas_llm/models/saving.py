"""Saving: Hugging Face directories, and those of models that no stock configuration can describe.

A sub-network that the stock class can express is saved as any Hugging Face model is. Another one (layers of
different shapes, head counts that do not divide the width ...) gets a ``config.json`` of model type ``nas_llm``,
which holds the configuration it was cut from and the cut; the stock loader refuses that by name,
:func:`nas_llm.from_pretrained` rebuilds it without remote code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nas_llm.atomic_files import atomic_path
from nas_llm.models.model_directory import ADAPTER, MODEL_TYPE, WEIGHTS
from nas_llm.models.order import FILE_NAME as AXES_ORDER
from nas_llm.models.packed_checkpoint import quantization_keys
from nas_llm.models.stock import is_stock

CARD = """---
library_name: nas_llm
pipeline_tag: text-generation
---
# {name}

A network that was cut from a larger one, with {parameters:,} parameters, in the shape of {class_name}.

```python
import nas_llm

model = nas_llm.from_pretrained("{name}")  # from the folder that holds this directory
```

`AutoModelForCausalLM` cannot load it: its configuration has no words for this shape, and the error it raises says only
that the model type is unknown, which no newer version of transformers changes. `pip install nas-llm` brings the loader;
it rebuilds a plain transformers model and runs no code from this directory.
"""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "nas_llm_adapter.json", "README.md")
OWN_FILES = (  # patterns of what save_pretrained writes: the model, its card, a super-network's order, its tokenizer
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "README.md",
    AXES_ORDER,
    "configuration_decilm.py",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def save_pretrained(
    model: PreTrainedModel,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    extra: Callable[[Path], None] | None = None,
    setting: str = "export.path",
) -> None:
    """Writes ``model`` (and its tokenizer) as safetensors; the directory appears complete or not at all.

    Quantised layers are written packed, as compressed-tensors' ``pack-quantized`` (``models/packed_checkpoint.py``).

    Where the stock loader cannot load it, a README.md says what does. ``extra`` writes further files into the directory
    before it appears, also another README.md; errors name ``setting`` as the key that chose
    the place.

    Raises:
        ValueError: ``path`` holds anything else than what this function writes, for it is replaced whole; the disk is
            full or refuses the write.
    """
    target = Path(path)
    if "peft_config" in vars(model):
        raise ValueError(
            f"{target}: the model has adapters beside its weights; merge them first (nas_llm.peft.merging.merge), or "
            "save the two apart (nas_llm.peft.saving)"
        )
    write_directory(
        target, lambda folder: _write(model, folder, target.name), tokenizer=tokenizer, extra=extra, setting=setting
    )


def write_directory(
    path: str | Path,
    write: Callable[[Path], None],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    extra: Callable[[Path], None] | None = None,
    setting: str = "export.path",
) -> None:
    """A model's directory, which appears complete or not at all: what ``write`` puts into it, then the rest as
    :func:`save_pretrained` says. Raises as that."""
    target = Path(path)
    _refuse_to_replace(target, setting)
    with atomic_path(target, setting=setting) as folder:
        folder.mkdir()
        write(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if extra is not None:
            extra(folder)


def weights_once(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every weight and persistent buffer under one name: tied weights under that of the embedding."""
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    return {name: weight.contiguous() for name, weight in model.state_dict().items() if name not in tied}


def _refuse_to_replace(target: Path, setting: str) -> None:
    """A directory is replaced whole: only one of which every file is of this writer's making may be."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; choose another directory: {setting}=")
    found = sorted(target.iterdir()) if target.is_dir() else []
    if found and not (target / "config.json").is_file():
        raise ValueError(f"{target} is not empty and holds no model; choose another directory: {setting}=")
    adapter = target / ADAPTER
    inside = sorted(adapter.iterdir()) if adapter.is_dir() else []
    if inside and all(file.name in ADAPTER_FILES for file in inside):
        found.remove(adapter)
    for file in found:
        if file.is_dir() or not any(fnmatch(file.name, pattern) for pattern in OWN_FILES):
            raise ValueError(
                f"{target} holds {file.name}, which is no file of an exported model and would be deleted: "
                f"move it away, or choose another directory: {setting}="
            )


def _write(model: PreTrainedModel, folder: Path, name: str) -> None:
    origin = getattr(model.config, "nas_llm", None)
    if origin is None or is_stock(model):
        model.save_pretrained(folder)
        file = folder / "config.json"
        config = json.loads(file.read_text())
        config.pop("nas_llm", None)
    else:
        # Not by the stock way: it validates the configuration, and renames weights as the stock loader expects them.
        save_file(weights_once(model), folder / WEIGHTS, metadata={"format": "pt"})
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        file = folder / "config.json"
        config = {
            "model_type": MODEL_TYPE,
            "architectures": [type(model).__name__],
            "dtype": str(model.dtype).removeprefix("torch."),
            "nas_llm": origin,
            "transformers_version": transformers.__version__,
        }
        card = CARD.format(name=name, parameters=model.num_parameters(), class_name=type(model).__name__)
        (folder / "README.md").write_text(card)
    file.write_text(json.dumps(config | quantization_keys(model), indent=2) + "\n")
