"""What a checkpoint belongs to: the model's configuration, the search space and the teacher; anything else is
refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from nas_llm.models.supernet import Supernet

_HASHED_NUMBERS = 1024  # of each weight: enough to know it again, at no cost for large models

# Said by the loader or the file's place, not by the network.
_INCIDENTAL = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache", "nas_llm"}
)


def model_identity(supernet: Supernet) -> dict[str, Any]:
    """The configuration and the size of the whole network; JSON-able."""
    config = {key: value for key, value in supernet.config.to_dict().items() if key not in _INCIDENTAL}
    config["num_parameters"] = supernet.num_parameters(supernet.largest())
    return json.loads(json.dumps(config, sort_keys=True, default=str))


def teacher_identity(frozen: Supernet | None) -> dict[str, Any]:
    """Which teacher the checkpoint's steps had; a frozen one by a hash of evenly spaced numbers of its weights."""
    if frozen is None:
        return {"kind": "in_place"}
    digest = hashlib.sha256()
    for name, parameter in sorted(frozen.model.named_parameters()):
        flat = parameter.detach().flatten()
        some = flat[:: max(1, flat.numel() // _HASHED_NUMBERS)]
        digest.update(name.encode() + some.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return {"kind": "frozen", "weights": digest.hexdigest()[:16]}


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
