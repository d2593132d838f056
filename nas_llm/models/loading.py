"""Loading: Hugging Face directories, and those that :mod:`nas_llm.models.saving` wrote of models that no stock
configuration can describe, which are rebuilt without remote code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from nas_llm.architecture import Architecture
from nas_llm.models.families import family_of
from nas_llm.models.model_directory import (
    MODEL_TYPE,
    WEIGHTS,
    config_keys,
    first_line,
    not_found,
    one_line,
    refuse_family,
    refuse_missing,
    resolve,
)
from nas_llm.models.packed_checkpoint import BITS_KEY, KEY, is_packed, place, quantized_layers
from nas_llm.models.rotated_stream import KEY as ROTATED
from nas_llm.models.rotated_stream import place_norms
from nas_llm.models.stock import base_config, empty_model, stock_class
from nas_llm.operator_network import OperatorNetwork

DTYPES = ("float32", "bfloat16", "float16", "float64")


def from_pretrained(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Loads a causal language model: a directory (of :func:`nas_llm.save_pretrained` or Hugging Face), a hub name or an
    embedded one.

    ``dtype`` None keeps the precision of the file. Weights that :func:`nas_llm.save_pretrained` packed stay packed, in
    layers that are :class:`~nas_llm.models.quantized_linear.QuantizedLinear`.

    Raises:
        ValueError: neither a directory with a model nor loadable from the hub; a family that is not known; a
            configuration or weights that are damaged, incomplete, or do not belong together; an unknown ``dtype``.
    """
    path = resolve(name_or_path)
    refuse_missing(path, "model.path")
    precision = _precision(dtype)
    keys = config_keys(path, "model.path")
    if keys["model_type"] == MODEL_TYPE:
        return _load_cut(Path(path), keys, precision, attn_implementation)
    refuse_family(path, keys["model_type"])
    try:
        family_of(AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code))
    except (OSError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"model.path={path}: its config.json is not supported ({one_line(error)})") from error
    if is_packed(keys) and Path(path).is_dir():
        return _load_packed(Path(path), keys, precision, attn_implementation)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=precision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, in one line
            **_chosen(attn_implementation),
        )
    except OSError as error:
        raise ValueError(not_found(path, "model.path")) from error
    except (SafetensorError, json.JSONDecodeError, EOFError, RuntimeError) as error:  # the last two are torch's
        raise ValueError(f"model.path={path}: a weights file is damaged ({first_line(error)})") from error
    except (ValueError, ImportError) as error:
        if attn_implementation is None:
            raise
        raise ValueError(
            f"model.attn_implementation={attn_implementation}: {one_line(error)}; set model.attn_implementation=null"
        ) from error
    model, found = loaded
    _refuse_incomplete(path, sorted(found["missing_keys"]), sorted(name for name, *_ in found["mismatched_keys"]))
    return model


def without_weights(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model that a ``config.json`` describes, on the meta device: its shapes, and no memory for its weights.

    ``dtype`` None is float32.

    Raises:
        ValueError: as :func:`from_pretrained`; a model that this package has cut, which needs its weights.
    """
    path = resolve(name_or_path)
    refuse_missing(path, "model.path")
    precision = _precision(dtype)
    keys = config_keys(path, "model.path")
    if keys["model_type"] == MODEL_TYPE:
        raise ValueError(f"model.path={path}: a cut model is described with its weights alone: name the stock one")
    refuse_family(path, keys["model_type"])
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        model: Any = empty_model(stock_class(config), config)
    except (OSError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"model.path={path}: its config.json is not supported ({one_line(error)})") from error
    return model.to(precision) if isinstance(precision, torch.dtype) else model.float()


def cut_without_weights(origin: Mapping[str, Any], attn_implementation: str | None) -> Any:
    """The model that a description of :meth:`nas_llm.Supernet.origin` is of, its weights on the meta device.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    from nas_llm.models.operator_assembly import assemble
    from nas_llm.models.supernet import Supernet

    config, architecture = base_config(origin), Architecture.from_dict(origin["architecture"])
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    small: Any = Supernet(empty_model(stock_class(config), config)).extract(architecture)
    if "operators" in origin:
        small = assemble(Supernet(small), OperatorNetwork.from_dict(origin["operators"]))
    if ROTATED in origin:
        place_norms(small, **origin[ROTATED])
        small.config.nas_llm[ROTATED] = dict(origin[ROTATED])
    return small


def _load_cut(
    folder: Path, keys: Mapping[str, Any], precision: str | torch.dtype, attn_implementation: str | None
) -> PreTrainedModel:
    try:
        small = cut_without_weights(keys["nas_llm"], attn_implementation)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(
            f"model.path={folder}: its config.json does not describe a sub-network ({one_line(error)}); export it again"
        ) from error
    weights = _cast(_read_weights(folder, WEIGHTS), precision)  # alone: buffers keep theirs, as in the stock classes
    if is_packed(keys):
        try:
            place(small, quantized_layers(keys, weights))
        except (KeyError, TypeError, ValueError) as error:
            raise _not_read(folder, error) from error
    shapes = {name: weight.shape for name, weight in small.state_dict().items()}
    other = [name for name, weight in weights.items() if name in shapes and weight.shape != shapes[name]]
    _refuse_incomplete(str(folder), [], other)
    _, unexpected = small.load_state_dict(weights, strict=False, assign=True)
    small.tie_weights()
    held = [*small.named_parameters(), *small.named_buffers()]
    _refuse_incomplete(str(folder), [name for name, weight in held if weight.is_meta], [])
    if unexpected:
        raise ValueError(
            f"model.path={folder}: {len(unexpected)} weights are unknown, first {unexpected[0]}; export it again"
        )
    _read_generation(small, folder)
    return small.eval()


def _load_packed(
    folder: Path, keys: Mapping[str, Any], precision: str | torch.dtype, attn_implementation: str | None
) -> PreTrainedModel:
    """A stock model with quantised layers: loaded with empty linear layers, whose places the packed ones then take."""
    config = AutoConfig.from_pretrained(folder)
    for key in {KEY, BITS_KEY} & keys.keys():
        delattr(config, key)
    weights = _read_weights(folder, "model*.safetensors")  # one or several; the order of axes is not theirs
    own: torch.dtype = config.dtype or torch.float32
    dtype = precision if isinstance(precision, torch.dtype) else own
    weights = _cast(weights, dtype)
    try:
        layers = quantized_layers(keys, weights)
    except (KeyError, TypeError, ValueError) as error:
        raise _not_read(folder, error) from error
    packed = {name: weight for name, weight in weights.items() if name.rpartition(".")[0] in layers}
    dense = {name: weight for name, weight in weights.items() if name not in packed or name.endswith(".bias")}
    for name in layers:  # no memory: one number, seen as a whole weight
        dense[f"{name}.weight"] = torch.zeros((), dtype=dtype).expand(*weights[f"{name}.weight_shape"].tolist())
    model, found = stock_class(config).from_pretrained(
        None,
        config=config,
        state_dict=dense,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **_chosen(attn_implementation),
    )
    other = sorted(name for name, *_ in found["mismatched_keys"])
    _refuse_incomplete(str(folder), sorted(found["missing_keys"]), other)
    try:
        place(model, layers, packed)
    except (KeyError, ValueError) as error:
        raise _not_read(folder, error) from error
    _read_generation(model, folder)
    return model


def _precision(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """A precision of weights; "auto" is that of the file."""
    if dtype is None or dtype == "auto":
        return "auto"
    found = getattr(torch, dtype) if isinstance(dtype, str) and dtype in DTYPES else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"model.dtype={dtype}: allowed are null, auto, {', '.join(DTYPES)}")
    return found


def _chosen(attn_implementation: str | None) -> dict[str, str]:
    return {"attn_implementation": attn_implementation} if attn_implementation else {}


def _read_generation(model: PreTrainedModel, folder: Path) -> None:
    """Gives the model the settings of generation that lie beside it."""
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def _read_weights(folder: Path, pattern: str) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob(pattern))
    if not files:
        raise ValueError(f"model.path={folder}: {WEIGHTS} is missing; export it again")
    try:
        return {name: weight for file in files for name, weight in load_file(file).items()}
    except SafetensorError as error:
        raise ValueError(f"model.path={folder}: a weights file is damaged ({first_line(error)})") from error


def _cast(weights: Mapping[str, torch.Tensor], dtype: torch.dtype | str) -> dict[str, torch.Tensor]:
    """Floating ones in another precision; "auto" is their own."""
    if not isinstance(dtype, torch.dtype):
        return dict(weights)
    return {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in weights.items()}


def _not_read(folder: Path, error: Exception) -> ValueError:
    return ValueError(
        f"model.path={folder}: its {KEY} is not one that is read ({one_line(error)}); export it again, or "
        "dequantise it with transformers: AutoModelForCausalLM.from_pretrained(path, "
        "quantization_config=CompressedTensorsConfig(dequantize=True)).save_pretrained(other)"
    )


def _refuse_incomplete(path: str, missing: Sequence[str], other: Sequence[str]) -> None:
    """Weights that are left out, or of another shape than the configuration says, would be random ones."""
    if missing:
        raise ValueError(
            f"model.path={path}: {len(missing)} weights are missing, first {missing[0]}; "
            "complete the directory, or mend its config.json"
        )
    if other:
        raise ValueError(
            f"model.path={path}: {len(other)} weights have another shape than config.json says, first {other[0]}; "
            "the two do not belong together"
        )
