"""The configuration: where it lies, whether it fits the code, and the objects it describes.

`check` binds every `_target_` node to the signature of what it names (unknown, missing and ill-typed settings) and
refuses settings that cannot take effect, before a model or data are loaded. `build` makes the object of one node.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    "objectives": frozenset({"supernet", "space", "batches", "tokenizer"}),
    "search": frozenset({"space", "directions", "num_parameters"}),
    "training": frozenset(
        {"supernet", "space", "sampler", "distillation", "optimizer", "scheduler", "hidden_matching"}
    ),
    "checkpoint": frozenset({"folder"}),
    "trainer": frozenset({"logger", "callbacks"}),
}
MODEL_LOADER = "nas_llm.models.supernet.Supernet.from_pretrained"  # takes model.path and the rest of the group by name
ROOT_TYPES = {
    "seed": int,
    "name": str,
    "run_dir": str,
    "ckpt_path": str | None,
    "architecture": str | None,
    "max_params": float | None,
    "max_latency_ms": float | None,
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
    """Bind every `_target_` node to its signature and refuse what cannot take effect.

    Raises:
        ValueError: the first such setting, with its key, its value and what is allowed.
    """
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    for key, annotation in ROOT_TYPES.items():
        _check_type(key, plain[key], annotation)
    _check_type("model.path", plain["model"]["path"], str)
    checkpoint_path(cfg)
    sources = _sources(OmegaConf.to_container(cfg, resolve=False), "")
    _check_type("model.tokenizer_path", plain["model"].get("tokenizer_path"), str | None)
    loaded = {key: value for key, value in plain["model"].items() if key not in ("path", "tokenizer_path")}
    nodes = [*_nodes(plain, ""), ("model", {"_target_": MODEL_LOADER, "_partial_": True, **loaded})]
    for key, node in sorted(nodes, key=lambda pair: not str(pair[1]["_target_"]).startswith(LIGHT)):
        _check_node(key, node, sources)
    _check_effects(cfg)


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


def _sources(raw: Any, key: str) -> dict[str, str]:
    """For each setting that is one interpolation: the key that its value comes from, which is the one to mend."""
    if isinstance(raw, dict):
        return {
            place: source
            for name, child in raw.items()
            for place, source in _sources(child, f"{key}.{name}" if key else str(name)).items()
        }
    match = re.fullmatch(r"\$\{([\w.]+)\}", raw) if isinstance(raw, str) else None
    return {key: match[1]} if match else {}


def _check_node(key: str, node: Mapping[str, Any], sources: Mapping[str, str]) -> None:
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
    if (
        isinstance(target, type)
        and is_dataclass(target)
        and settings.keys() >= _required(named)
        and not _nested(settings)
    ):
        target(**settings)  # a strategy that needs nothing else refuses impossible values now


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    names = vars(sys.modules[inspect.unwrap(target).__module__])
    return {
        name: parameter.replace(annotation=_evaluated(parameter.annotation, names))
        for name, parameter in inspect.signature(target).parameters.items()
    }


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)
    except NameError:  # imported for type checkers only, so that no value can be judged by it
        return Any


def _required(named: Mapping[str, inspect.Parameter]) -> set[str]:
    return {name for name, parameter in named.items() if parameter.default is parameter.empty}


def _nested(settings: Mapping[str, Any]) -> bool:
    return any(isinstance(value, dict | list) for value in settings.values())


def _check_type(key: str, value: Any, annotation: Any) -> None:
    if annotation is inspect.Parameter.empty or fits(value, annotation):
        return
    given = "null" if value is None else value
    raise ValueError(f"{key}={given} is not allowed: it must be {describe(annotation)}")


def _check_effects(cfg: "DictConfig") -> None:
    """Settings that are each right but cannot take effect together."""
    if cfg.stage != "train":
        return
    reads_logits, frozen = build(cfg.distillation).uses_teacher, cfg.training.teacher == "frozen"
    matches = bool(cfg.hidden_matching)
    if str(cfg.sampler.get("_target_", "")).endswith(".StandardSampler") and not frozen and (reads_logits or matches):
        group = "distillation" if reads_logits else "hidden_matching"
        raise ValueError(
            f"{group}={cfg[group]['_target_'].rpartition('.')[2]} cannot take effect with sampler=standard, "
            f"which trains the teacher alone: add {group}=none, or choose sampler=sandwich, or training.teacher=frozen"
        )
    if frozen and not reads_logits and not matches:
        raise ValueError(
            "training.teacher=frozen cannot take effect where nothing is learnt from a teacher: "
            "choose distillation=forward_kl or hidden_matching=mse, or training.teacher=in_place"
        )
    if cfg.training.teacher_logits == "recomputed" and not reads_logits:
        raise ValueError(
            "training.teacher_logits=recomputed cannot take effect where no logits of a teacher are read: "
            "choose distillation=forward_kl, or training.teacher_logits=recorded"
        )
