"""What each stage reads of the configuration, as its module says: an override of anything else cannot take effect.

``READS`` of a stage's module names the nodes and settings that its `main` reads, ``IGNORES`` those below them that it
sets itself or does without. Both are read without importing the stage, and compared in the tests with what the stage
does read. A setting that another one interpolates is read where that one is.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from nas_llm.config_errors import EXPERIMENT, given_for, groups, options, unknown
from nas_llm.overrides import parse, place
from nas_llm.stages import modules

OF_EVERY_STAGE = ("stage", "run_dir", "name", EXPERIMENT, "debug")  # a label; and what sets others


@dataclass(frozen=True)
class Reads:
    """The keys that a stage reads, each with all below it, but for those that it ignores."""

    keys: tuple[str, ...]
    ignores: tuple[str, ...] = ()

    def __contains__(self, key: str) -> bool:
        below = any(_is_in(key, name) or _is_in(name, key) for name in self.keys)
        return below and not any(_is_in(key, name) for name in self.ignores)


def declared() -> dict[str, Reads]:
    """What each stage says of itself."""
    return {
        stage: Reads(tuple(_literal(module, "READS", ())), tuple(_literal(module, "IGNORES", ())))
        for stage, module in modules().items()
    }


def overrides_of(stage: str) -> list[tuple[str, str]]:
    """The overrides of a stage that people need most, each with what it means."""
    return [(str(given), str(meaning)) for given, meaning in _literal(modules()[stage], "OVERRIDES", {}).items()]


def refuse_ignored(stage: str, overrides: Sequence[str]) -> None:
    """Refuse overrides that the stage ignores, whether or not the configuration has such a key.

    Raises:
        ValueError: the first of them.
    """
    ignores = declared()[stage].ignores
    for given in _of_stage(overrides):
        if any(_is_in(place(given), name) for name in ignores):
            raise ValueError(_without_effect(stage, given, declared()))


def unread(stage: str, overrides: Sequence[str], cfg: DictConfig) -> list[str]:
    """The overrides of keys that the stage does not read from the composed configuration."""
    reads = _with_interpolated(declared()[stage], _settings(cfg))
    return [str(given.input_line) for given in _of_stage(overrides) if place(given) not in reads]


def refuse_unread(stage: str, overrides: Sequence[str], cfg: DictConfig, folder: Path) -> None:
    """Refuse what the stage would pass over, and what it lacks.

    Args:
        stage: its name.
        overrides: of the command line, without those that a run has recorded.
        cfg: the composed configuration.
        folder: of the configuration groups.

    Raises:
        ValueError: an override that the stage does not read (the stages that do are named), a setting of any file that
            no stage reads, or a group that the stage reads and that was left out.
    """
    settings = _settings(cfg)
    stages = {name: _with_interpolated(reads, settings) for name, reads in declared().items()}
    for given in _of_stage(overrides):
        if place(given) not in stages[stage]:
            raise ValueError(_without_effect(stage, given, stages))
    known = sorted({name.partition(".")[0] for reads in stages.values() for name in reads.keys})
    for key in settings:
        if not any(key in reads for reads in stages.values()):
            raise ValueError(unknown(f"{key} cannot take effect, no stage reads it", key.partition(".")[0], known))
    there = groups(folder)
    for key in declared()[stage].keys:
        if key in there and key not in cfg:
            left_out = given_for(key, overrides)
            what = f"{key} is missing" if left_out == key else f"{left_out} leaves out {key}"
            named = ", ".join(options(folder, key))
            raise ValueError(f"{what}, which nas-llm {stage} reads: choose {key}=, of {named}")


def _without_effect(stage: str, given: Override, stages: Mapping[str, Reads]) -> str:
    key = place(given)
    readers = [name for name, reads in stages.items() if key in reads and name != stage]
    whose = f"only {', '.join(readers)}" if readers else "no stage does"
    return f"{given.input_line} cannot take effect: nas-llm {stage} does not read {key}, {whose}; leave it out"


def _of_stage(overrides: Sequence[str]) -> list[Override]:
    return [override for override in parse(overrides) if not override.is_hydra_override()]


def _literal(module: ast.Module, name: str, default: Any) -> Any:
    """The value of a constant, of one of the `default`'s kind."""
    values = (
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]
    )
    return next((ast.literal_eval(value) for value in values), default)


def _is_in(key: str, node: str) -> bool:
    return key == node or key.startswith(f"{node}.")


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """Dotted key -> value, as it is written."""
    return dict(_leaves(OmegaConf.to_container(cfg, resolve=False), ""))


def _with_interpolated(reads: Reads, settings: Mapping[str, Any]) -> Reads:
    """With the settings that those read interpolate, and so on."""
    named = {key: re.findall(r"\$\{([\w.]+)\}", text) for key, text in settings.items() if "${" in str(text)}
    found = Reads((*OF_EVERY_STAGE, *reads.keys), reads.ignores)
    while more := {name for key, names in named.items() if key in found for name in names} - set(found.keys):
        found = Reads((*found.keys, *sorted(more)), found.ignores)
    return found


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    children: Mapping[Any, Any] = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(children, dict) or not children:
        yield key, value
        return
    for name, child in children.items():
        yield from _leaves(child, f"{key}.{name}" if key else str(name))
