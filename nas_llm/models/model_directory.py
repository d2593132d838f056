"""A saved model's directory: where a name leads, what its ``config.json`` says as far as no library has judged it, and
the refusals of what is none, which name the setting that it came from.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.families import family_of, known_family

MODEL_TYPE = "nas_llm"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter"  # the folder of low-rank adapters beside a network's own files
EMBEDDED = "microworld_llama, microworld_neox"


def resolve(name_or_path: str | Path) -> str:
    """The directory of an embedded model ("microworld_llama", "microworld_neox"); anything else unchanged."""
    embedded = Path(str(files("nas_llm"))) / "assets" / str(name_or_path)
    if str(name_or_path) and "/" not in str(name_or_path) and (embedded / "config.json").is_file():
        return str(embedded)
    return str(name_or_path)


def config_keys(path: str, setting: str) -> dict[str, Any]:
    """What ``config.json`` says; a model type is there.

    Raises:
        ValueError: there is no such file, it is damaged, or it is none of a model.
    """
    file = Path(path) / "config.json"
    try:
        keys = json.loads(file.read_text()) if Path(path).is_dir() else PreTrainedConfig.get_config_dict(path)[0]
    except json.JSONDecodeError as error:
        raise ValueError(f"{setting}={path}: config.json is not JSON, line {error.lineno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{setting}={path}: config.json is not UTF-8 text") from error
    except OSError as error:
        raise ValueError(not_found(path, setting)) from error
    if not isinstance(keys, dict) or not isinstance(keys.get("model_type"), str):
        raise ValueError(f"{setting}={path}: config.json holds no model_type; is it that of a transformers model?")
    return keys


def precision_of(path: str | Path, *, setting: str = "model.path") -> torch.dtype:
    """Of a saved model, as its ``config.json`` says; float32 where it says nothing. Raises as `config_keys`."""
    keys = config_keys(resolve(path), setting)
    places = (keys, keys.get("base_config") or {})
    named = next((place[key] for place in places for key in ("dtype", "torch_dtype") if place.get(key)), "float32")
    return getattr(torch, str(named))  # type: ignore[no-any-return]


def shape_of(path: str | Path, *, setting: str = "model.path") -> Architecture:
    """The sizes of a saved model by its ``config.json`` alone, in layers 0, 1, ...

    Raises:
        ValueError: there is none, it is damaged, of an unknown family, or one of a network of operators; errors name
            ``setting``.
    """
    place = resolve(path)
    refuse_missing(place, setting)
    keys = config_keys(place, setting)
    try:
        if keys["model_type"] != MODEL_TYPE:
            known_family(keys["model_type"])
            config = AutoConfig.from_pretrained(place)
            return family_of(config).largest(config)
        origin = keys["nas_llm"]
        cut = Architecture.from_dict(origin["architecture"])
    except (OSError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{setting}={path}: its config.json is not supported ({one_line(error)})") from error
    if "operators" in origin:
        raise ValueError(f"{setting}={path} is a network of operators, whose sublayers have no sizes to cut others to")
    return Architecture(cut.hidden, tuple(LayerChoice(i, *layer.shape) for i, layer in enumerate(cut.layers)))


def refuse_missing(path: str, setting: str) -> None:
    """A path that no hub name can look like is looked for on this machine alone.

    Raises:
        ValueError: it is not there.
    """
    if not path:
        raise ValueError(f"{setting}='': allowed are a directory, a hub name or an embedded model ({EMBEDDED})")
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") != 1
    if looks_local and not Path(path).is_dir():
        raise ValueError(not_found(path, setting))


def refuse_family(path: str, model_type: str) -> None:
    """Raises ValueError where the family is not known."""
    try:
        known_family(model_type)
    except ValueError as error:
        raise ValueError(f"model.path={path}: {error}") from error


def not_found(path: str, setting: str) -> str:
    """What to say of a model that is not there."""
    if Path(path).is_dir():
        return f"{setting}={path}: the directory holds no loadable model (config.json and *.safetensors are needed)"
    return f"{setting}={path}: neither a local directory, nor an embedded model ({EMBEDDED}), nor loadable from the hub"


def first_line(error: Exception) -> str:
    """The first line of another library's error, or its kind."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def one_line(error: Exception) -> str:
    """Another library's error on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:290]} ..."
