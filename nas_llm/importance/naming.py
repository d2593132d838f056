"""An importance method in words, as files of scores and the titles of pictures name it: Activation(abs_mean, l2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from nas_llm.importance.combined import Combined
from nas_llm.importance.file import File
from nas_llm.importance.scores import recorded_method

_FROM = ", from "


def in_words(importance: Callable[..., Any]) -> str:
    """The method and its settings; of a file of scores, the method that it was made by, and the file.

    Raises:
        ValueError: the file cannot be read.
    """
    if isinstance(importance, Combined):
        return f"{in_words(importance.width)}; layers by {in_words(importance.depth)}"
    if isinstance(importance, File):
        method = recorded_method(Path(importance.path), setting=f"importance.path={importance.path}")
        return f"{method.partition(_FROM)[0] or 'scores'}{_FROM}{importance.path}"
    name = getattr(importance, "__name__", type(importance).__name__)
    if not is_dataclass(importance):
        return name
    values = {field.name: getattr(importance, field.name) for field in fields(importance)}
    said = [value if isinstance(value, str) else f"{key} {value}" for key, value in values.items()]
    return f"{name}({', '.join(said)})" if said else name
