"""The configuration: where it lies, whether it fits the code, and the objects it describes.

`check` binds every `_target_` node to the signature of what it names (unknown, missing and ill-typed settings) and
refuses impossible values, before a model or data are loaded. `build` makes the object of one node.
"""

import importlib
import inspect
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nas_llm.config_types import describe, fits

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG_NAME = "config"

# What a stage passes to `build` for each group, so that it is not missing from the configuration.
RUNTIME: Mapping[str, frozenset[str]] = {
    "data": frozenset({"tokenizer"}),
    "search_space": frozenset({"supernet"}),
    "importance": frozenset({"supernet", "space"}),
    "sampler": frozenset({"supernet", "space"}),
    "objectives": frozenset({"supernet", "space", "batches", "tokenizer", "data", "split"}),
    "search": frozenset({"space", "directions", "num_parameters"}),
    "training": frozenset(
        {
            "supernet",
            "space",
            "sampler",
            "distillation",
            "optimizer",
            "scheduler",
            "hidden_matching",
            "teacher_network",
        }
    ),
    "checkpoint": frozenset({"folder"}),
    "trainer": frozenset({"logger", "callbacks", "plugins"}),
    "bench": frozenset({"extract"}),
}
MODEL_LOADER = "nas_llm.models.supernet.Supernet.from_pretrained"  # takes model.path and the rest of the group by name
TYPES = {
    "seed": int,
    "name": str,
    "run_dir": str,
    "ckpt_path": str | None,
    "architecture": str | None,
    "max_params": float | None,
    "max_latency_ms": float | None,
    "export.path": str | None,
    "export.format": Literal["hf", "decilm"],
    "evaluate.model_path": str | None,
    "evaluate.name": str | None,
    "evaluate.replace": bool,
    "evaluate.texts": bool,
    "model.path": str,
    **{f"budget.{cost}": float | list[float] | None for cost in ("latency", "params", "memory", "kv_cache", "macs")},
    "budget.of": Literal["body", "whole"],
    "scale": Literal["mini", "paper"],
    "seeds": list[int] | None,
    "rows": list[str] | None,
}
LIGHT = ("nas_llm.samplers.", "nas_llm.schedules.", "nas_llm.search")  # checked first: they import without torch
HYDRA_KEYS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})


def config_dir() -> Path:
    """The folder of the configuration groups: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next((folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir()), package / "conf")


def build(node: "DictConfig | None", **runtime: Any) -> Any:
    """Instantiate a node with, of `runtime`, what its target takes; None where the node is empty (an option `none`).

    Lists and mappings arrive as plain ones. A node with `_partial_` gives a callable that lacks some arguments.
    """
    from hydra.utils import instantiate

    if not node or "_target_" not in node:
        return None
    parameters = inspect.signature(locate(node["_target_"], "_target_")).parameters
    taken = {key: value for key, value in runtime.items() if key in parameters}
    # Runtime arguments never pass through Hydra, which would turn dataclasses among them into configurations.
    factory = instantiate(node, _partial_=True, _convert_="all")
    return partial(factory, **taken) if node.get("_partial_") else factory(**taken)


def checkpoint_path(cfg: "DictConfig") -> Path | None:
    """The checkpoint to resume from; `last` is the newest of the run.

    Raises:
        ValueError: there is no such file.
    """
    if cfg.ckpt_path is None:
        return None
    checkpoints = Path(cfg.run_dir) / "checkpoints"
    path = checkpoints / "last.ckpt" if cfg.ckpt_path == "last" else Path(cfg.ckpt_path)
    if not path.is_file():
        found = sorted(file.name for file in checkpoints.glob("*.ckpt"))
        held = f"{checkpoints} holds {', '.join(found)}" if found else f"{checkpoints} holds none"
        raise ValueError(f"ckpt_path={cfg.ckpt_path}: there is no {path}; {held}; leave ckpt_path out to start anew")
    return path


def check(cfg: "DictConfig") -> None:
    """Bind every `_target_` node to its signature and refuse values that no model and no data make possible.

    Raises:
        ValueError: the first such setting, with its key, its value and what is allowed.
    """
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    for key, annotation in TYPES.items():
        value = OmegaConf.select(cfg, key)
        _check_type(key, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, annotation)
    checkpoint_path(cfg)
    sources = sources_of(OmegaConf.to_container(cfg, resolve=False), "")
    for key in ("tokenizer_path", "adapter_path"):
        _check_type(f"model.{key}", plain["model"].get(key), str | None)
    loaded = {key: value for key, value in plain["model"].items() if not key.endswith("path")}
    nodes = [*_nodes(plain, ""), ("model", {"_target_": MODEL_LOADER, "_partial_": True, **loaded})]
    for key in ("max_params", "max_latency_ms"):
        if plain[key] is not None and plain[key] <= 0:
            raise ValueError(f"{key}={plain[key]} is not a limit: give a number above 0")
    _check_targets(plain)
    _check_numbers(plain, "", sources)
    for key, node in sorted(nodes, key=lambda pair: not str(pair[1]["_target_"]).startswith(LIGHT)):
        _check_node(key, node, sources)
    _check_names(plain["trainer"])


def locate(target: str, key: str) -> Any:
    """The class or function behind a dotted path.

    Raises:
        ValueError: there is none; `key` says where it was asked for.
    """
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if error.name is not None and target.startswith(error.name):
                continue
            raise ValueError(f"{key}={target} needs {error.name}, which is not installed: pip install it") from error
        try:
            for name in parts[end:]:
                found = getattr(found, name)
        except AttributeError as error:
            raise ValueError(f"{key}={target} names nothing: {error}") from error
        return found
    raise ValueError(f"{key}={target} names nothing: there is no module {parts[0]}")


def _nodes(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield key, value
        for name, child in value.items():
            yield from _nodes(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _nodes(child, f"{key}.{index}")


def sources_of(raw: Any, key: str) -> dict[str, str]:
    """For each setting that is one interpolation: the key that its value comes from, which is the one to mend."""
    if isinstance(raw, dict):
        return {
            place: source
            for name, child in raw.items()
            for place, source in sources_of(child, f"{key}.{name}" if key else str(name)).items()
        }
    match = re.fullmatch(r"\$\{([\w.]+)\}", raw) if isinstance(raw, str) else None
    return {key: match[1]} if match else {}


def _check_targets(plain: Mapping[Any, Any]) -> None:
    """What stands for an object says of which class; settings alone are those of an option that was not chosen."""
    from nas_llm.config_errors import groups, options

    folder = config_dir()
    for group in [*groups(folder), "training", "checkpoint"]:
        if group not in plain or group == "model" or _may_be_empty(folder / group):
            continue
        node: dict[str, Any] = plain[group] or {}
        if group == "objectives":
            chosen = [name for name, child in node.items() if "_target_" in child]
            for name in node.keys() - set(chosen):
                known = ", ".join(options(folder, group))
                raise ValueError(
                    f"{group}.{name}={node[name]} cannot take effect: {name} is not among the {group}; add it, "
                    f"{group}=[{','.join([*chosen, name])}], or leave it out (there are {known})"
                )
        elif "_target_" not in node:
            raise ValueError(
                f"{group}={node} has no _target_, so that nothing can be built of it: choose {group}=, of "
                f"{', '.join(options(folder, group))}"
            )


def _may_be_empty(group: Path) -> bool:
    from omegaconf import OmegaConf

    none = group / "none.yaml"
    return none.is_file() and not OmegaConf.load(none)


def _check_numbers(value: Any, key: str, sources: Mapping[str, str]) -> None:
    """Every number is finite, and a seed is one that numpy and torch both take."""
    if isinstance(value, dict | list):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for name, child in children:
            _check_numbers(child, f"{key}.{name}" if key else str(name), sources)
        return
    given = sources.get(key, key)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{given}={value} is not allowed: set {given} to a finite number")
    if key.rpartition(".")[2] == "seed" and isinstance(value, int) and not 0 <= value < 2**32:
        raise ValueError(f"{given}={value} is not allowed: set {given} to a whole number from 0 to {2**32 - 1}")


def _check_names(trainer: Mapping[str, Any]) -> None:
    """Lightning's own names, which its signature does not tell."""
    from lightning.pytorch.accelerators import AcceleratorRegistry
    from lightning.pytorch.strategies import StrategyRegistry

    from nas_llm.config_errors import unknown

    known = {
        "accelerator": {"auto", "gpu", *AcceleratorRegistry.available_accelerators()},
        "strategy": {"auto", *StrategyRegistry.available_strategies()},
    }
    for key, names in known.items():
        value = trainer.get(key)
        if isinstance(value, str) and value not in names:
            raise ValueError(unknown(f"trainer.{key}={value} is not known", value, names, prefix=f"trainer.{key}="))


def _check_node(key: str, node: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    from huggingface_hub.errors import StrictDataclassError

    from nas_llm.config_errors import unknown

    target = locate(node["_target_"], f"{key}._target_")
    if not callable(target):
        raise ValueError(
            f"{key}._target_={node['_target_']} is no class or function, so that nothing can be built of it"
        )
    parameters = _parameters(target)
    runtime = RUNTIME.get(key.partition(".")[0], frozenset())
    settings = {str(name): value for name, value in node.items() if name not in HYDRA_KEYS}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {name: parameter for name, parameter in parameters.items() if parameter.kind not in (0, 2, 4)}
    for name, value in settings.items():
        if name in runtime and "." not in key.removeprefix("objectives."):  # a node that a stage builds itself
            raise ValueError(f"{key}.{name}={value} cannot take effect: the stage sets it itself; leave it out")
        if name in named:
            setting = f"{key}.{name}"
            _check_type(sources.get(setting, setting), value, named[name].annotation)
        elif not takes_any:
            what = f"{key}.{name}={value} is not a setting of {node['_target_']}"
            raise ValueError(unknown(what, name, set(named) - runtime, prefix=f"{key}."))
    if node.get("_partial_") or node.get("_args_"):
        return
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in settings and name not in runtime:
            raise ValueError(f"{key}.{name} is required by {node['_target_']}: add {key}.{name}=...")
    if is_dataclass(target) or (node["_target_"].startswith("nas_llm.") and runtime & named.keys()):
        missing = dict.fromkeys(runtime & _required(named), _LATER)
        try:
            target(**_tried(settings), **missing)  # refuses impossible values now
        except (_NotYet, TypeError):
            return  # as far as it goes without a model and data
        except StrictDataclassError as error:  # transformers' own configurations
            raise ValueError(f"{key}: {' '.join(str(error).split())}") from error


class _NotYet(Exception):
    """Something was asked of what is only there later."""


class _Later:
    """Stands for what a stage passes at run time, and for objects that are built of nodes of their own."""

    def __getattr__(self, name: str) -> Any:
        raise _NotYet(name)

    def __call__(self, *args: Any) -> Any:
        raise _NotYet

    def __iter__(self) -> Iterator[Any]:
        raise _NotYet

    def __len__(self) -> int:
        raise _NotYet


_LATER = _Later()


def _tried(value: Any) -> Any:
    """A setting as its class would get it."""
    if isinstance(value, dict):
        return _LATER if "_target_" in value else {name: _tried(child) for name, child in value.items()}
    return [_tried(child) for child in value] if isinstance(value, list) else value


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    return {
        name: parameter.replace(annotation=_evaluated(parameter.annotation, _names_beside(target, name)))
        for name, parameter in inspect.signature(target).parameters.items()
    }


def _names_beside(target: Any, parameter: str) -> dict[str, Any]:
    """The names of the module in which a parameter is annotated: of an inherited field its class's."""
    classes = inspect.getmro(target) if is_dataclass(target) and isinstance(target, type) else ()
    owner = next((one for one in classes if parameter in inspect.get_annotations(one)), target)
    return vars(sys.modules[inspect.unwrap(owner).__module__])


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)
    except NameError:  # imported for type checkers only, so that no value can be judged by it
        return Any


def _required(named: Mapping[str, inspect.Parameter]) -> set[str]:
    return {name for name, parameter in named.items() if parameter.default is parameter.empty}


def _check_type(key: str, value: Any, annotation: Any) -> None:
    if annotation is inspect.Parameter.empty or fits(value, annotation):
        return
    from nas_llm.config_errors import inner_groups, options

    given, group = "null" if value is None else value, key.replace(".", "/")
    inner = group in inner_groups(config_dir())
    mend = f"; choose {group}=, of {', '.join(options(config_dir(), group))}" if inner else ""
    raise ValueError(
        f"{key}={given} is not allowed: it must be {describe(annotation)}{mend}{_as_text(key, value, annotation)}"
    )


def _as_text(key: str, value: Any, annotation: Any) -> str:
    """How a word that is read as a number, or as true and false, is written as text."""
    if not isinstance(value, int | float) or not fits("", annotation):
        return ""
    word = str(value).lower() if isinstance(value, bool) else str(value)
    path = f", or write {key}=./{word}" if key.endswith("path") else ""
    return f"; quote it as {key}=\"'{word}'\"{path}"
