"""Overrides as text: those a run was started with, merged with new ones, and the sweeps among them."""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from omegaconf import OmegaConf

RECORD = Path(".hydra", "overrides.yaml")
REPLACED = ("search_space.ranks",)  # a list or a mapping by name, of which neither is merged into the other
NOT_RECORDED = ("stage", "run_dir", "ckpt_path")  # of one call, not of the run


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides in Hydra's grammar; raises its OverrideParseException."""
    return [_parsed(override) for override in overrides]


@lru_cache(maxsize=4096)
def _parsed(override: str) -> Override:
    """One override; a launch looks at the same ones a dozen times."""
    (found,) = OverridesParser.create().parse_overrides([override])
    return found


def enumerated(overrides: Sequence[str], options: Callable[[str], Sequence[str]]) -> list[str]:
    """Globs of a group's options as the options that they match: Hydra's own do not look into folders of options.

    Raises:
        ValueError: one matches nothing.
    """
    found = []
    for override in parse(overrides):
        glob, named = override.value(), str(override.input_line)
        if isinstance(glob, Glob):
            known = options(override.key_or_group)
            matched = glob.filter(list(known))
            if not matched:
                raise ValueError(f"{named} matches none of {override.key_or_group}'s options: {', '.join(known)}")
            named = f"{override.get_key_element()}={','.join(matched)}"
        found.append(named)
    return found


def value_of(overrides: Sequence[str], key: str) -> str | None:
    """The last value given for `key`, which says what a call is about; None where there is none.

    Raises:
        ValueError: it is a sweep.
    """
    found = [override for override in parse(overrides) if override.key_or_group == key]
    if any(override.is_sweep_override() for override in found):
        raise ValueError(
            f"{found[-1].input_line}: {key} cannot be swept; call the stage once for each, or sweep others"
        )
    value = found[-1].value() if found else None
    return None if value is None else str(value)


def assign(key: str, value: object) -> str:
    """An override that sets `key` to this very text, whatever characters it has."""
    text = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), str(value))
    return f"{key}='{text}'"


def quoted(overrides: Iterable[str]) -> list[str]:
    """Architectures' ids and paths as text: in Hydra's grammar 12e456789012 is a number, and step=3.ckpt an error."""
    return [_quoted(*override.partition("=")) for override in overrides]


def _quoted(key: str, equals: str, value: str) -> str:
    if key == "architecture":
        value = re.sub(r"(?<![^,])([0-9a-f]+)(?![^,])", r"'\1'", value)
    elif key.endswith(("path", "run_dir")) and "=" in value and value[0] not in "'\"":
        return assign(key, value)
    return f"{key}{equals}{value}"


def recorded(run_dir: str | Path) -> list[str]:
    """The overrides that the run in `run_dir` was started with; relative paths among them as absolute ones.

    Raises:
        ValueError: the directory holds no recorded run.
    """
    record = Path(run_dir) / RECORD
    if not record.is_file():
        raise ValueError(
            f"run_dir={run_dir} holds no run ({RECORD} is missing): start one with nas-llm train run_dir={run_dir}"
        )
    start = Path(OmegaConf.load(record.with_name("hydra.yaml")).hydra.runtime.cwd)
    lines = [str(line) for line in OmegaConf.load(record)]
    return [_anchored(override, start) for override in parse(lines)]


def to_record(overrides: Iterable[str]) -> list[str]:
    """What of a call's overrides belongs to the run."""
    parsed = parse(given([text for text in overrides if not text.startswith("hydra")]))
    return [str(override.input_line) for override in parsed if override.key_or_group not in NOT_RECORDED]


def given(overrides: Iterable[str]) -> list[str]:
    """Those of a call that a user has given: what `replacing` has put before them is left out."""
    parsed = parse(list(overrides))
    return [str(o.input_line) for i, o in enumerate(parsed) if not _empties(o, parsed[i + 1 :])]


def replacing(overrides: Sequence[str]) -> list[str]:
    """With what is replaced whole emptied first."""
    found: list[str] = []
    for override in parse(overrides):
        if override.key_or_group in REPLACED and override.type is OverrideType.CHANGE:
            found.append(f"{override.key_or_group}=null")
        found.append(str(override.input_line))
    return found


def _empties(override: Override, later: Sequence[Override]) -> bool:
    again = any(other.key_or_group == override.key_or_group for other in later)
    return again and override.key_or_group in REPLACED and override.value() is None


def merge(old: Sequence[str], new: Sequence[str], groups: Iterable[str]) -> list[str]:
    """`old`, then `new`: of one key the new value counts, and a new option of a group drops the old one's settings.

    What a group is put into counts as a setting of that place: importance@importance.width as importance.width. Of a
    group that takes several options at once, as objectives=[params,accuracy], those chosen again keep theirs.
    """
    known, before, after = set(groups), parse(old), parse(new)
    replaced = {(override.key_or_group, override.package) for override in after}
    choices = {
        (override.key_or_group, override.package): override.value()
        for override in before
        if override.key_or_group in known
    }
    changed, again = [], []
    for override in after:
        chosen = override.value() if override.key_or_group in known else None
        if override.key_or_group in known and chosen != choices.get((override.key_or_group, override.package), ...):
            changed.append(f"{place(override)}.")
            again += [f"{place(override)}.{option}." for option in chosen] if isinstance(chosen, list) else []
    kept = [
        override
        for override in before
        if (override.key_or_group, override.package) not in replaced
        and (not place(override).startswith(tuple(changed)) or place(override).startswith(tuple(again)))
    ]
    return [str(override.input_line) for override in (*kept, *after)]


def jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """Every job of a sweep, in the order that Hydra runs them in; what only another sweeper can draw is left out."""
    values = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [str(override.input_line)]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [list(job) for job in itertools.product(*values.values())]


def place(override: Override) -> str:
    """The key that an override sets, or puts its group's option into."""
    return (override.package or override.key_or_group).replace("/", ".")


def swept(overrides: Sequence[str]) -> list[str]:
    """Keys that the jobs of a sweep differ in."""
    return [override.key_or_group for override in parse(overrides) if override.is_sweep_override()]


def not_sweeps(overrides: Sequence[str]) -> list[str]:
    """Those that are the same in every job of a sweep."""
    return [str(override.input_line) for override in parse(overrides) if not override.is_sweep_override()]


def as_additions(overrides: Sequence[str], groups: Iterable[str]) -> list[str]:
    """Settings inside of nodes as ++KEY=VALUE, which sets what is there and adds what is not."""
    known = set(groups)

    def inside(override: Override) -> bool:
        plain = override.type is OverrideType.CHANGE and not override.is_sweep_override()
        return plain and "." in override.key_or_group and not override.is_hydra_override()

    return [
        f"++{override.input_line}"
        if inside(override) and override.key_or_group not in known
        else str(override.input_line)
        for override in parse(overrides)
    ]


def mentions(value: str, keys: Iterable[str]) -> bool:
    """Whether one of these keys is interpolated in a value: ${seed}, or ${hydra:runtime.choices.sampler}."""
    named = re.findall(r"\$\{(?:hydra:runtime\.choices\.)?([^}]*)\}", value)
    return any(key in named for key in keys)


def not_swept(overrides: Sequence[str]) -> list[str]:
    """Keys that do not tell the jobs of a sweep apart in a directory's name: not swept, or not over plain words."""
    return [
        override.key_or_group
        for override in parse(overrides)
        if not override.is_sweep_override() or not re.fullmatch(r"[\w.,=+-]+", str(override.input_line))
    ]


def _anchored(override: Override, start: Path) -> str:
    value, key = override.value() if override.key_or_group.endswith("path") else None, override.get_key_element()
    paths = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if not any(isinstance(path, str) and not Path(path).is_absolute() and (start / path).exists() for path in paths):
        return str(override.input_line)
    if isinstance(value, str):
        return assign(key, start / value)
    items = (assign("", start / path if (start / str(path)).exists() else path) for path in paths)
    return f"{key}=[{','.join(item.removeprefix('=') for item in items)}]"
