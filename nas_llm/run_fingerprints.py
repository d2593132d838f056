"""What a run was started with: the model, the search space and the data; resuming with something else is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_llm.atomic_files import read_json, write_json
from nas_llm.ranks import is_main_process
from nas_llm.run_directory import FINGERPRINTS_FILE


def refuse_mismatch(
    run_dir: str | Path, fingerprints: Mapping[str, Any], *, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Compare JSON-able fingerprints (`model`, `search_space`, `data`, ...) with the run's; those not yet recorded are.

    `settings`: of a fingerprint, as `data`, what it follows from, by the keys that a user sets. They are recorded with
    it and not compared; but where the fingerprint differs, the first that does is what is named.

    Raises:
        ValueError: one differs; the key and both values are named.
    """
    recorded = recorded_fingerprints(run_dir)
    new = json.loads(json.dumps(dict(fingerprints)))
    behind = json.loads(json.dumps({f"settings of {key}": dict(values) for key, values in (settings or {}).items()}))
    for key, value in new.items():
        if key in recorded and recorded[key] != value:
            now, before = (known.get(f"settings of {key}", {}) for known in (behind, recorded))
            setting = next((name for name in now if name in before and now[name] != before[name]), None)
            if setting is not None:
                raise _other(setting, now[setting], before[setting], run_dir, mend=setting)
            raise _other(*_first_difference(key, value, recorded[key]), run_dir, mend=key)
    if is_main_process() and not new.keys() <= recorded.keys():
        write_json(Path(run_dir) / FINGERPRINTS_FILE, {**behind, **recorded, **new})


def recorded_fingerprints(run_dir: str | Path) -> dict[str, Any]:
    """What the run was started with, as `refuse_mismatch` recorded it; empty before."""
    path = Path(run_dir) / FINGERPRINTS_FILE
    return read_json(path) if path.exists() else {}


def forget_start(run_dir: str | Path) -> None:
    """Forget the fingerprints of a start that left no results, so that a new run may be another one.

    Only for the process that holds the directory's lock: the start may be that of a run that is under way.
    """
    (Path(run_dir) / FINGERPRINTS_FILE).unlink(missing_ok=True)


def _other(key: str, now: Any, before: Any, run_dir: str | Path, *, mend: str) -> ValueError:
    return ValueError(
        f"{key}={_short(now)} differs from {key}={_short(before)} that {run_dir} was started with: resume with the "
        f"same {mend}, or start a new run with another run_dir="
    )


def _first_difference(key: str, new: Any, recorded: Any) -> tuple[str, Any, Any]:
    """The setting of a group that differs, with both values; the whole groups where they are of another kind."""
    if not (isinstance(new, dict) and isinstance(recorded, dict)) or new.get("_target_") != recorded.get("_target_"):
        return key, new, recorded
    differing = next(name for name in [*new, *recorded] if new.get(name) != recorded.get(name))
    return f"{key}.{differing}", new.get(differing), recorded.get(differing)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else f"{text[:150]}... ({len(text)} characters)"
