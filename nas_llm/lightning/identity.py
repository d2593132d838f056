"""What a checkpoint belongs to: the model's configuration, the search space and the teacher; anything else is
refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_llm.models.fingerprint import fingerprint
from nas_llm.run_fingerprints import recorded_fingerprints

if TYPE_CHECKING:
    from nas_llm.models.supernet import Supernet

# Said by the loader or the file's place, not by the network.
_INCIDENTAL = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache", "nas_llm"}
)


def model_identity(supernet: Supernet) -> dict[str, Any]:
    """The configuration and the size of the whole network; JSON-able."""
    config = {key: value for key, value in supernet.config.to_dict().items() if key not in _INCIDENTAL}
    config["num_parameters"] = supernet.num_parameters(supernet.largest())
    return json.loads(json.dumps(config, sort_keys=True, default=str))


def refuse_other_network(run_dir: Path, path: str, supernet: Supernet) -> dict[str, Any]:
    """What tells the network of ``model.path``, before it is sorted, from others; compared with the run's.

    Raises:
        ValueError: the run was started with another configuration, or with other weights of the same one.
    """
    found: dict[str, Any] = {"model": model_identity(supernet), "weights": fingerprint(supernet)}
    recorded = recorded_fingerprints(run_dir)
    if any(recorded.get(key, value) != value for key, value in found.items()):
        known: dict[str, Any] = {**found, **recorded}
        before, now = ({**_plain(values["model"]), "weights": values["weights"]} for values in (known, found))
        key = next(key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key))
        raise ValueError(
            f"model.path={path} is another network than {run_dir} was started with, {key} {_short(now.get(key))} here "
            f"and {_short(before.get(key))} there: set model.path to that network, or start a new run with another "
            "run_dir="
        )
    return found


def teacher_identity(frozen: Supernet | None, *, external: bool = False) -> dict[str, Any]:
    """Which teacher the checkpoint's steps had; a frozen one by the fingerprint of its weights. ``external``: it is
    another model than the one in training."""
    if frozen is None:
        return {"kind": "in_place"}
    return {"kind": "external" if external else "frozen", "weights": fingerprint(frozen)}


def refuse_other(checkpoint: Mapping[str, Any], current: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare a checkpoint's identity with this run's: the groups ``model``, ``search_space`` and ``teacher``.

    Raises:
        ValueError: naming the first setting that differs, with both values.
    """
    if "nas_llm" not in checkpoint:
        raise ValueError(
            "ckpt_path: the checkpoint is not of the training of a super-network; leave ckpt_path out to start anew"
        )
    recorded = {"teacher": teacher_identity(None), **checkpoint["nas_llm"]}  # older checkpoints know no other
    for group, values in current.items():
        before, now = _plain(recorded[group]), _plain(values)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"ckpt_path: the checkpoint was trained with {group}.{key}={_short(before.get(key))}, this run has "
                    f"{group}.{key}={_short(now.get(key))}: resume with the same {group}, or start a new run_dir"
                )


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value, default=str))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:90]}..."
