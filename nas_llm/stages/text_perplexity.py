"""The perplexity of a text (`text_perplexity=`) under the networks that `nas-llm evaluate` measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nas_llm.config import build
from nas_llm.evaluation.text_perplexity import TextPerplexity
from nas_llm.metrics import add_metrics
from nas_llm.reporting import numbers

Network = tuple[str, Mapping[str, str], Callable[[], AbstractContextManager[PreTrainedModel]]]
FIGURES = ("token_perplexity", "word_perplexity", "bits_per_byte")


def measure_text(
    node: DictConfig,
    tokenizer: PreTrainedTokenizerBase,
    run_dir: Path,
    networks: Iterable[Network],
    *,
    without: Callable[[Mapping[str, Any]], bool] | None = None,
) -> list[list[str]]:
    """The rows of a table, its head first; metrics go to `results.json`.

    Args:
        node: the option of `text_perplexity`.
        tokenizer: of all networks.
        run_dir: where results go.
        networks: each with the name it is shown by, what tells it from others in the results ({"architecture": id} or
            {"model": name}), and the model, which is run inside the context.
        without: tells older metrics that go.

    Raises:
        ValueError: the text cannot be read, or its windows do not fit a model; before anything is written.
    """
    score: TextPerplexity = build(node)
    text = score.read(tokenizer)
    head = ["network", *(numbers.label(figure) for figure in FIGURES)]
    rows, metrics = [head], []
    for name, identity, opened in networks:
        with opened() as model:
            found = score(model, text).metrics()
        values = {metric["name"]: metric["value"] for metric in found}
        rows.append([name, *(numbers.value(key, values[key]) if key in values else "-" for key in FIGURES)])
        metrics += [{**metric, **identity, "data": text.name, "variant": score.variant} for metric in found]
    add_metrics(run_dir, metrics, without=without)
    return rows
