"""Adapters on disk, in peft's own format: adapter_config.json and adapter_model.safetensors.

A sub-network's adapters have another rank in every group. The file says so by ``rank_pattern``, and by
``alpha_pattern`` keeps the scaling that they were trained with: alpha_i = alpha r_i / r (with rank-stabilised scaling
alpha sqrt(r_i / r)). Stock peft loads it on the sub-network's base.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nas_llm.models.supernet import Supernet
from nas_llm.peft.adapters import NAME, factors, lora_layers

if TYPE_CHECKING:
    from peft import LoraConfig

CONFIG, WEIGHTS, SETTINGS = "adapter_config.json", "adapter_model.safetensors", "nas_llm_adapter.json"
PREFIX = "base_model.model."
BASE = "nas_llm_base"  # in the metadata of the weights' file: the fingerprint of the network that they stand beside


@dataclass(frozen=True)
class AdapterFile:
    """The active adapters of a model: ``weights`` under the names that peft gives them in files, and the fingerprint of
    the network that they stand beside (``base``)."""

    config: LoraConfig
    weights: dict[str, torch.Tensor]
    base: str | None = None

    @classmethod
    def of(cls, model: nn.Module, base: str | None = None) -> AdapterFile:
        """``base`` is where the network lies that they belong to."""
        return cls(_config(model, base), _weights(model))

    def write(self, folder: Path, *, kind: str | None = None) -> None:
        """Into a new folder; ``kind`` stands as the type of adapters whose function is not that of peft's own layers,
        so that peft, which does not know it, refuses them."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        metadata = {"format": "pt"} | ({} if self.base is None else {BASE: self.base})
        save_file(self.weights, folder / WEIGHTS, metadata=metadata)
        self.config.save_pretrained(str(folder))
        if kind is not None:
            config = json.loads((folder / CONFIG).read_text())
            (folder / CONFIG).write_text(json.dumps(config | {"peft_type": kind}, indent=2) + "\n")


def read_adapter(supernet: Supernet, folder: Path, *, setting: str = "adapter") -> None:
    """Loads the values of the adapters that ``supernet`` has from a file of the same ones.

    Raises:
        ValueError: the file is missing or damaged, or its adapters are those of another network.
    """
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(folder / WEIGHTS)
        rank = json.loads((folder / CONFIG).read_text())["r"]
    except FileNotFoundError as error:
        raise ValueError(f"{setting}={folder}: it holds no adapter ({CONFIG} and {WEIGHTS})") from error
    except SafetensorError as error:
        raise ValueError(f"{setting}={folder}: {WEIGHTS} is damaged ({error})") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{setting}={folder}: {CONFIG} is damaged ({error})") from error
    there = {name: tuple(tensor.shape) for name, tensor in _weights(supernet.model).items()}
    given = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if there != given:
        name = next(name for name in sorted(there.keys() | given.keys()) if there.get(name) != given.get(name))
        raise ValueError(
            f"{setting}={folder}: the adapter (rank {rank}) is one of another network or of other modules: "
            f"{name.removeprefix(PREFIX)} has the shape {given.get(name, 'none')} in it and "
            f"{there.get(name, 'none')} here"
        )
    state = {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}
    outcome: Any = set_peft_model_state_dict(supernet.model, state, adapter_name=NAME)
    assert not outcome.unexpected_keys


def _config(model: nn.Module, base: str | None) -> LoraConfig:
    whole: LoraConfig = model.peft_config[NAME]  # type: ignore[union-attr, index, assignment]
    config = copy.deepcopy(whole)
    config.base_model_name_or_path, config.inference_mode = base, True
    config.rank_pattern, config.alpha_pattern = {}, {}
    config.target_modules = target_names(model, [name for name, _ in lora_layers(model)])
    for name, layer in lora_layers(model):
        rank = factors(layer)[0].shape[0]
        if rank != config.r:
            part = rank / config.r
            config.rank_pattern[name] = rank
            config.alpha_pattern[name] = config.lora_alpha * (part**0.5 if config.use_rslora else part)  # type: ignore[assignment]
    return config


def target_names(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The shortest ends of ``names`` that peft matches to these matrices and to no others of the model."""
    chosen, suffixes = set(names), {name.rpartition(".")[2] for name in names}
    inside = tuple(f"{name}." for name in names)  # an adapter's own matrices, and the weight that it stands beside
    others = [name for name, _ in model.named_modules() if name not in chosen and not name.startswith(inside)]
    if any(name.rpartition(".")[2] in suffixes for name in others):
        return sorted(chosen)
    return sorted(suffixes)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    return {PREFIX + name: tensor.detach().contiguous().cpu() for name, tensor in found.items()}
