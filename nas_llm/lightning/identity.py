"""What a checkpoint belongs to: the model's configuration and the search space; anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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


def refuse_other(checkpoint: Mapping[str, Any], model: Mapping[str, Any], space: Mapping[str, Any]) -> None:
    """Compare a checkpoint's identity with this run's.

    Raises:
        ValueError: naming the first setting that differs, with both values.
    """
    if "nas_llm" not in checkpoint:
        raise ValueError(
            "ckpt_path: the checkpoint is not of the training of a super-network; leave ckpt_path out to start anew"
        )
    recorded = checkpoint["nas_llm"]
    for group, current in (("model", model), ("search_space", space)):
        before, now = _plain(recorded[group]), _plain(current)
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
