"""What Hydra and OmegaConf raise, as one line: the key, the value, what is allowed, and the override that mends it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

LISTED = 12  # longer lists of what is known are left out where one is likely meant
MODIFIERS = {"budget": {"of"}}  # settings of a node that are no such thing as its others
EXTRAS = {
    "joblib": "sweep",
    "submitit_local": "sweep",
    "submitit_slurm": "sweep",
    "ray": "ray",
}  # launcher -> its extra
CONFIG_ERRORS = (HydraException, OmegaConfBaseException)


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` was most likely meant to be."""
    matches = get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown(what: str, name: str, candidates: Iterable[str], *, prefix: str = "", rest: str = "") -> str:
    """`what` is not known, the nearest name that is, and all of them where they are few.

    The nearest name is shown as a user would write it, between `prefix` and `rest`.
    """
    names = sorted(candidate for candidate in candidates if not candidate.startswith("_"))
    guess = nearest(name, names)
    if guess and len(names) > LISTED:
        return f"{what}: did you mean {prefix}{guess}{rest}?"
    if not names:
        return f"{what}: there are none to choose from"
    meant = f" did you mean {prefix}{guess}{rest}?" if guess else ""
    return f"{what}:{meant} Known are {', '.join(names)}"


EXPERIMENT = "experiment"
IN_FOLDERS = (EXPERIMENT, "reproduce")  # groups whose options may lie in folders, as ablation/arm


def options(folder: Path, group: str) -> list[str]:
    """The options of a group, found by listing its folder."""
    return sorted(str(path.relative_to(folder / group).with_suffix("")) for path in _files(folder / group))


def _files(group: Path) -> Iterator[Path]:
    return group.rglob("*.yaml") if group.name in IN_FOLDERS else group.glob("*.yaml")


def one_line(error: BaseException, overrides: Sequence[str], folder: Path) -> str:
    """What to tell the user of `error`.

    Args:
        error: raised by Hydra or OmegaConf.
        overrides: what the user asked for.
        folder: the folder of the configuration groups.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(error, folder)
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return f"{_instantiated(error)}{flat(error.__cause__)}"
    if inner := re.match(r"Could not override '(\w+)/(\w+)'", str(error)):
        group, name = inner.groups()
        given = given_for(f"{group}/{name}", overrides)
        return f"{given} cannot take effect: the chosen {group} takes no {name}; choose another with {group}=..."
    if many := re.match(r"Multiple values for ([\w/]+)\.", str(error)):
        return f"{given_for(many[1], overrides)} cannot be added: there is one {many[1]} already; write {many[1]}=..."
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read: write key=value, and quote special characters: key='\"a, b=c\"'"
    if isinstance(error, MissingMandatoryValue):
        return f"{_full_key(error)} is required: add {_full_key(error)}=..."
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, InterpolationKeyError | InterpolationResolutionError):
        named = re.search(r"'([\w.]+)' not found", flat(cause))
        given = given_for(named[1], overrides) if named else ""
        return _left_out(given) if given.startswith("~") else flat(cause)
    if isinstance(cause, OmegaConfBaseException) and "is not in struct" in str(cause):
        return _unknown_key(cause, overrides, folder)
    return flat(error)


def flat(error: BaseException) -> str:
    """The error's message on one line, without OmegaConf's trailer."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(kept) or type(error).__name__


def refuse_choices(overrides: Iterable[Override], folder: Path) -> None:
    """Refuse overrides without a key, and groups that are given what cannot be an option's name, as sampler=null.

    Raises:
        ValueError: the first of them.
    """
    known = all_groups(folder)
    for override in overrides:
        if not override.key_or_group:
            raise ValueError(f"{override.input_line!r} cannot be read: write key=value")
        if override.key_or_group not in known or override.is_sweep_override() or override.is_delete():
            continue
        value, group = override.value(), override.key_or_group
        if not isinstance(value, str | list | dict):
            named = options(folder, group)
            raise ValueError(unknown(f"{override.input_line} is not known", str(value), named, prefix=f"{group}="))


def given_for(key: str, overrides: Sequence[str]) -> str:
    """The override of `key`, or of a setting below it, as the user wrote it."""
    keys = {text: text.partition("=")[0].lstrip("+~") for text in overrides}
    return next((text for text, given in keys.items() if given == key or given.startswith(f"{key}.")), key)


def _missing_option(error: MissingConfigException, folder: Path) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if group == "hydra/launcher" and option in EXTRAS:
        return f"{group}={option} is not installed: pip install 'nas_llm[{EXTRAS[option]}]'"
    outer, _, inner = group.partition("/")
    if outer in IN_FOLDERS:  # as reproduce=paper1/table1, whose folder is no group of its own
        option = f"{inner}/{option}" if inner else option
        return unknown(f"{outer}={option} is not known", option, options(folder, outer), prefix=f"{outer}=")
    known = [Path(name).stem for name in error.options or options(folder, group)]
    if not known and not (folder / group).is_dir():
        return unknown(f"{group}={option} is not known", group, groups(folder))
    return unknown(f"{group}={option} is not known", option, known, prefix=f"{group}=")


def groups(folder: Path) -> list[str]:
    """The configuration groups, found by listing the folder."""
    places = (path for path in folder.iterdir() if path.is_dir() and path.name != "hydra")
    return sorted(path.name for path in places if any(_files(path)))


def inner_groups(folder: Path) -> list[str]:
    """The groups inside a group, as search/initial."""
    outer = [folder / group for group in groups(folder) if group not in IN_FOLDERS]
    found = (inner for group in outer for inner in group.iterdir() if inner.is_dir())
    return sorted(f"{inner.parent.name}/{inner.name}" for inner in found)


def all_groups(folder: Path) -> list[str]:
    """The configuration groups, and after them those inside a group."""
    return [*groups(folder), *inner_groups(folder)]


def _left_out(given: str) -> str:
    return f"{given} leaves out what is read: set it instead, {given.lstrip('~').partition('=')[0]}=..."


def _unknown_key(cause: OmegaConfBaseException, overrides: Sequence[str], folder: Path) -> str:
    parent, _, name = str(cause.full_key or cause.key).rpartition(".")
    prefix = f"{parent}." if parent else ""
    known = [str(key) for key in cause.parent_node] if isinstance(cause.parent_node, DictConfig) else []
    if not parent:
        known = sorted({*known, *groups(folder)} - {"hydra"})
    given = given_for(prefix + name, overrides)
    if given.startswith("~"):
        return _left_out(given)
    if (inner := f"{parent}/{name}") in inner_groups(folder):
        return f"{given} is not known: choose {inner}=, of {', '.join(options(folder, inner))}"
    if parent in groups(folder) and name in options(folder, parent):
        chosen = ",".join([*known, name])
        return f"{given} cannot take effect: {name} is not among the {parent}; add it, {parent}=[{chosen}]"
    elsewhere = [key for key in _leaves(cause.parent_node) if key.rpartition(".")[2] == name]
    if elsewhere:
        return f"{given} is not known: did you mean {' or '.join(elsewhere)}?"
    if not known:
        return f"{given} cannot take effect: the chosen {parent} has no settings; choose another with {parent}=..."
    rest = given.partition("=")[0].lstrip("+").removeprefix(prefix + name)
    alike = set(known) - MODIFIERS.get(parent, set())
    return unknown(f"{given} is not known", name, alike, prefix=prefix, rest=rest)


def _leaves(node: DictConfig | None) -> list[str]:
    """The dotted keys of all settings of the configuration that `node` is part of."""
    if node is None:
        return []
    whole = OmegaConf.to_container(node._get_root(), resolve=False)
    assert isinstance(whole, dict)
    return list(_dotted({key: value for key, value in whole.items() if key != "hydra"}, ""))


def _dotted(value: dict[Any, Any], prefix: str) -> Iterator[str]:
    for name, child in value.items():
        yield from _dotted(child, f"{prefix}{name}.") if isinstance(child, dict) else [f"{prefix}{name}"]


def _full_key(error: OmegaConfBaseException) -> str:
    return str(error.full_key or error.key)


def _instantiated(error: InstantiationException) -> str:
    lines = str(error).splitlines()
    key = next((line.partition("full_key:")[2].strip() for line in lines if line.startswith("full_key:")), "")
    text = flat(error.__cause__) if error.__cause__ else ""
    return f"{key}: " if key and not text.startswith(key) else ""
