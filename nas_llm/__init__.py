"""Compress large language models by neural architecture search.

Everything of the public surface is loaded on first use, so that `import nas_llm` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_llm.architecture import Architecture, LayerChoice
    from nas_llm.models.loading import from_pretrained
    from nas_llm.models.saving import save_pretrained
    from nas_llm.models.supernet import Supernet
    from nas_llm.search_space import SearchSpace


__version__ = "0.1.0"

_HOMES = {
    "Architecture": "nas_llm.architecture",
    "LayerChoice": "nas_llm.architecture",
    "SearchSpace": "nas_llm.search_space",
    "Supernet": "nas_llm.models.supernet",
    "from_pretrained": "nas_llm.models.loading",
    "save_pretrained": "nas_llm.models.saving",
}

__all__ = [
    "Architecture",
    "LayerChoice",
    "SearchSpace",
    "Supernet",
    "__version__",
    "from_pretrained",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
