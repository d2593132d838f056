"""Loading and saving: Hugging Face directories, and those of models that no stock configuration can describe.

A sub-network that the stock class can express is saved as any Hugging Face model is. Another one (layers of
different shapes, head counts that do not divide the width ...) gets a ``config.json`` of model type ``nas_llm``,
which holds the configuration it was cut from and the cut; the stock loader refuses that by name,
:func:`from_pretrained` rebuilds it without remote code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.atomic_files import atomic_path
from nas_llm.models.families import FAMILIES, family_of, known_family
from nas_llm.models.order import FILE_NAME as AXES_ORDER
from nas_llm.models.packed_checkpoint import BITS_KEY, KEY, is_packed, place, quantization_keys, quantized_layers
from nas_llm.models.quantized_linear import QuantizedLinear, quantized_modules
from nas_llm.models.rotated_stream import KEY as ROTATED
from nas_llm.models.rotated_stream import place_norms
from nas_llm.operator_network import OperatorNetwork

MODEL_TYPE = "nas_llm"
WEIGHTS = "model.safetensors"
DTYPES = ("float32", "bfloat16", "float16", "float64")
EMBEDDED = "microworld_llama, microworld_neox"
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
ADAPTER = "adapter"  # the folder of low-rank adapters beside a network's own files
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


def resolve(name_or_path: str | Path) -> str:
    """The directory of an embedded model ("microworld_llama", "microworld_neox"); anything else unchanged."""
    embedded = Path(str(files("nas_llm"))) / "assets" / str(name_or_path)
    if str(name_or_path) and "/" not in str(name_or_path) and (embedded / "config.json").is_file():
        return str(embedded)
    return str(name_or_path)


def from_pretrained(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Loads a causal language model: a directory (of :func:`save_pretrained` or Hugging Face), a hub or embedded name.

    ``dtype`` None keeps the precision of the file. Weights that :func:`save_pretrained` packed stay packed, in layers
    that are :class:`~nas_llm.models.quantized_linear.QuantizedLinear`.

    Raises:
        ValueError: neither a directory with a model nor loadable from the hub; a family that is not known; a
            configuration or weights that are damaged, incomplete, or do not belong together; an unknown ``dtype``.
    """
    path = resolve(name_or_path)
    _refuse_missing(path, "model.path")
    precision = _precision(dtype)
    keys = _config_keys(path, "model.path")
    if keys["model_type"] == MODEL_TYPE:
        return _load_cut(Path(path), keys, precision, attn_implementation)
    _refuse_family(path, keys["model_type"])
    try:
        family_of(AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code))
    except (OSError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"model.path={path}: its config.json is not supported ({_one_line(error)})") from error
    if is_packed(keys) and Path(path).is_dir():
        return _load_packed(Path(path), keys, precision, attn_implementation)
    optional = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=precision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, in one line
            **optional,
        )
    except OSError as error:
        raise ValueError(_not_found(path, "model.path")) from error
    except (SafetensorError, json.JSONDecodeError, EOFError, RuntimeError) as error:  # the last two are torch's
        raise ValueError(f"model.path={path}: a weights file is damaged ({_first_line(error)})") from error
    except (ValueError, ImportError) as error:
        if attn_implementation is None:
            raise
        raise ValueError(
            f"model.attn_implementation={attn_implementation}: {_one_line(error)}; set model.attn_implementation=null"
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
    _refuse_missing(path, "model.path")
    precision = _precision(dtype)
    keys = _config_keys(path, "model.path")
    if keys["model_type"] == MODEL_TYPE:
        raise ValueError(f"model.path={path}: a cut model is described with its weights alone: name the stock one")
    _refuse_family(path, keys["model_type"])
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
        model: Any = _empty(model_class, config)
    except (OSError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"model.path={path}: its config.json is not supported ({_one_line(error)})") from error
    return model.to(precision) if isinstance(precision, torch.dtype) else model.float()


def shape_of(path: str | Path, *, setting: str = "model.path") -> Architecture:
    """The sizes of a saved model by its ``config.json`` alone, in layers 0, 1, ...

    Raises:
        ValueError: there is none, it is damaged, of an unknown family, or one of a network of operators; errors name
            ``setting``.
    """
    place = resolve(path)
    _refuse_missing(place, setting)
    keys = _config_keys(place, setting)
    try:
        if keys["model_type"] != MODEL_TYPE:
            known_family(keys["model_type"])
            config = AutoConfig.from_pretrained(place)
            return family_of(config).largest(config)
        origin = keys["nas_llm"]
        cut = Architecture.from_dict(origin["architecture"])
    except (OSError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{setting}={path}: its config.json is not supported ({_one_line(error)})") from error
    if "operators" in origin:
        raise ValueError(f"{setting}={path} is a network of operators, whose sublayers have no sizes to cut others to")
    return Architecture(cut.hidden, tuple(LayerChoice(i, *layer.shape) for i, layer in enumerate(cut.layers)))


def load_tokenizer(
    name_or_path: str | Path, *, trust_remote_code: bool = False, setting: str = "model.path"
) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, or alone in a directory; errors name ``setting`` as the key it came from.

    Raises:
        ValueError: there is none, or the model beside it is none that this program knows.
    """
    path = resolve(name_or_path)
    folder = Path(path)
    _refuse_missing(path, setting)
    own: Mapping[str, Any] | None = None
    if (folder / "config.json").is_file():
        keys = _config_keys(path, setting)
        own = keys.get("nas_llm") if keys["model_type"] == MODEL_TYPE else None
        if setting == "model.path" and keys["model_type"] != MODEL_TYPE:
            _refuse_family(path, keys["model_type"])
    if folder.is_dir() and not any(folder.glob("*token*")) and not any(folder.glob("vocab.*")):
        raise ValueError(
            f"{setting}={path}: no tokenizer in this directory (tokenizer.json and tokenizer_config.json); "
            "copy it there or name one: model.tokenizer_path=<directory or hub name>"
        )
    try:
        # of a cut model transformers would look for a class of its configuration, and warn that there is none
        config = None if own is None else base_config(own)
        return AutoTokenizer.from_pretrained(path, config=config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # a damaged file fails in any way
        if not folder.is_dir() and not _has_config(path):
            raise ValueError(_not_found(path, setting)) from error
        raise ValueError(
            f"{setting}={path}: its tokenizer does not load ({_first_line(error)}); "
            "name one: model.tokenizer_path=<directory or hub name>"
        ) from error


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


def is_stock(model: PreTrainedModel) -> bool:
    """Whether the stock class, built from the model's own configuration, has the same weights and constants."""
    origin = getattr(model.config, "nas_llm", None)
    if origin is None or model.config.model_type not in FAMILIES:
        return True
    if "operators" in origin or ROTATED in origin:
        return False
    try:
        config = _stock_config(model)
        stock = _empty(type(model), config)
    except (ValueError, StrictDataclassError):  # sizes that the stock configuration or constructor refuses
        return False
    if _shapes(model) != _shapes(stock):
        return False
    row = family_of(config)
    blocks = (model.get_submodule(row.layers).children(), stock.get_submodule(row.layers).children())
    for mine, other in zip(*blocks, strict=True):
        constants = [vars(block.get_submodule(row.attention)) for block in (mine, other)]
        if any(constants[0][name] != constants[1][name] for name in row.constants if name != "config"):
            return False
    buffers = dict(stock.named_buffers())
    return all(
        name in buffers
        and buffer.shape == buffers[name].shape
        and torch.allclose(buffer.float(), buffers[name].to(buffer.dtype).float(), rtol=1e-5)
        for name, buffer in model.named_buffers()
        if not isinstance(model.get_submodule(name.rpartition(".")[0]), QuantizedLinear)
    )


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Of every weight and persistent buffer; a quantised layer has that of the weight it stands for."""
    quantized = quantized_modules(model)
    held = {f"{name}.{buffer}" for name, layer in quantized.items() for buffer in layer._buffers}
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items() if name not in held}
    return shapes | {f"{name}.weight": (layer.out_features, layer.in_features) for name, layer in quantized.items()}


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


def weights_once(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every weight and persistent buffer under one name: tied weights under that of the embedding."""
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    return {name: weight.contiguous() for name, weight in model.state_dict().items() if name not in tied}


def _stock_config(model: PreTrainedModel) -> Any:
    """The model's configuration as a stock loader will read it."""
    keys = model.config.to_dict()
    keys.pop("nas_llm", None)
    config = type(model.config).from_dict(keys)
    config._attn_implementation = model.config._attn_implementation
    return config


def base_config(origin: Mapping[str, Any]) -> PreTrainedConfig:
    """The stock configuration that a cut model's weights first came from."""
    keys = dict(origin["base_config"])
    return AutoConfig.for_model(keys.pop("model_type"), **keys)


def _empty(model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model whose weights take no memory and whose buffers (rotary frequencies, scales) are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return model_class(config)


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
    optional = {"attn_implementation": attn_implementation} if attn_implementation else {}
    model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    model, found = model_class.from_pretrained(
        None,
        config=config,
        state_dict=dense,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **optional,
    )
    other = sorted(name for name, *_ in found["mismatched_keys"])
    _refuse_incomplete(str(folder), sorted(found["missing_keys"]), other)
    try:
        place(model, layers, packed)
    except (KeyError, ValueError) as error:
        raise _not_read(folder, error) from error
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _not_read(folder: Path, error: Exception) -> ValueError:
    return ValueError(
        f"model.path={folder}: its {KEY} is not one that is read ({_one_line(error)}); export it again, or "
        "dequantise it with transformers: AutoModelForCausalLM.from_pretrained(path, "
        "quantization_config=CompressedTensorsConfig(dequantize=True)).save_pretrained(other)"
    )


def _read_weights(folder: Path, pattern: str) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob(pattern))
    if not files:
        raise ValueError(f"model.path={folder}: {WEIGHTS} is missing; export it again")
    try:
        return {name: weight for file in files for name, weight in load_file(file).items()}
    except SafetensorError as error:
        raise ValueError(f"model.path={folder}: a weights file is damaged ({_first_line(error)})") from error


def _cast(weights: Mapping[str, torch.Tensor], dtype: torch.dtype | str) -> dict[str, torch.Tensor]:
    """Floating ones in another precision; "auto" is their own."""
    if not isinstance(dtype, torch.dtype):
        return dict(weights)
    return {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in weights.items()}


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
    model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    small: Any = Supernet(_empty(model_class, config)).extract(architecture)
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
            f"model.path={folder}: its config.json does not describe a sub-network ({_one_line(error)}); "
            "export it again"
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
    if (folder / "generation_config.json").is_file():
        small.generation_config = GenerationConfig.from_pretrained(folder)
    return small.eval()


def _refuse_missing(path: str, setting: str) -> None:
    """A path that no hub name can look like is looked for on this machine alone."""
    if not path:
        raise ValueError(f"{setting}='': allowed are a directory, a hub name or an embedded model ({EMBEDDED})")
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") != 1
    if looks_local and not Path(path).is_dir():
        raise ValueError(_not_found(path, setting))


def _precision(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """A precision of weights; "auto" is that of the file."""
    if dtype is None or dtype == "auto":
        return "auto"
    found = getattr(torch, dtype) if isinstance(dtype, str) and dtype in DTYPES else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"model.dtype={dtype}: allowed are null, auto, {', '.join(DTYPES)}")
    return found


def _config_keys(path: str, setting: str) -> dict[str, Any]:
    """What ``config.json`` says, as far as no library has judged it; a model type is there."""
    file = Path(path) / "config.json"
    try:
        keys = json.loads(file.read_text()) if Path(path).is_dir() else PreTrainedConfig.get_config_dict(path)[0]
    except json.JSONDecodeError as error:
        raise ValueError(f"{setting}={path}: config.json is not JSON, line {error.lineno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{setting}={path}: config.json is not UTF-8 text") from error
    except OSError as error:
        raise ValueError(_not_found(path, setting)) from error
    if not isinstance(keys, dict) or not isinstance(keys.get("model_type"), str):
        raise ValueError(f"{setting}={path}: config.json holds no model_type; is it that of a transformers model?")
    return keys


def _refuse_family(path: str, model_type: str) -> None:
    try:
        known_family(model_type)
    except ValueError as error:
        raise ValueError(f"model.path={path}: {error}") from error


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


def _has_config(path: str) -> bool:
    try:
        AutoConfig.from_pretrained(path)
    except OSError:
        return False
    return True


def _not_found(path: str, setting: str) -> str:
    if Path(path).is_dir():
        return f"{setting}={path}: the directory holds no loadable model (config.json and *.safetensors are needed)"
    return f"{setting}={path}: neither a local directory, nor an embedded model ({EMBEDDED}), nor loadable from the hub"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:290]} ..."
