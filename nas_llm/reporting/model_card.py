"""README.md of an exported model: how it was made, how it is built, what it measures, and how to load it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_llm.architecture import Architecture
from nas_llm.atomic_files import read_json, write_text
from nas_llm.reporting import numbers
from nas_llm.reporting.card_tables import (
    beside,
    depth_beside,
    layer_rows,
    metric_row,
    metric_rows,
    model_index,
    network_rows,
    ranks_beside,
)
from nas_llm.reporting.operator_files import NetworkRow
from nas_llm.reporting.recipe import recipe, recipe_of_baseline
from nas_llm.reporting.run_files import RunFiles
from nas_llm.reporting.templates import render
from nas_llm.search.archive import TRUNCATION

CARD_FILE = "README.md"
ADAPTER_FOLDER = "adapter"  # of an exported network, beside whose weights its adapters lie
UNNAMED = "supernet"  # the name of a run that was given none
LOADERS = {  # by what can load the model; {place} is where {path} starts
    "stock": "from transformers import AutoModelForCausalLM\n\n"
    'model = AutoModelForCausalLM.from_pretrained(\n    "{path}"  # from {place}\n)',
    "own": 'import nas_llm\n\nmodel = nas_llm.from_pretrained("{path}")  # from {place}',
    "vllm": 'from vllm import LLM\n\nmodel = LLM("{path}", trust_remote_code=True)  # from {place}',
}
READERS = {"nas_llm": "own", "nemotron-nas": "vllm"}  # by model type; any other is stock


def reader_of(config: Mapping[str, Any]) -> str:
    """What loads a model with this `config.json`: a key of `LOADERS`."""
    return READERS.get(str(config.get("model_type")), "stock")


def write_model_card(
    path: str | Path,
    architecture: Architecture,
    *,
    run_dir: str | Path,
    full: Architecture | None = None,
    name: str | None = None,
    notes: Sequence[str] = (),
    operators: Sequence[Mapping[str, str]] = (),
    params: tuple[int, int] | None = None,
    found: Sequence[NetworkRow] = (),
) -> Path:
    """Write the model card into an exported directory, from the files of the run that it came from.

    Args:
        path: the exported directory, which holds `config.json`.
        architecture: what was exported.
        run_dir: the run.
        full: the whole network; by default as the run's search recorded it.
        name: of the directory, where it is still to be renamed.
        notes: sentences on what became of it on the way here, as of low-rank adapters.
        operators: of a network of operators the names of each layer's, {"attention": ..., "mlp": ...}.
        params: parameters of the network that the run began with, without adapters, and of what was exported; None: of
            the full network and of this one, as the run's search counted them.
        found: what a search over operators knows of it, a row for every budget that it is the best of.

    Raises:
        ValueError: `path` holds no model, or one of the run's files is damaged.
    """
    folder, run = Path(path), RunFiles(run_dir)
    config = read_json(folder / "config.json")
    reader = reader_of(config)
    whole = full or (run.search.full.architecture if run.search else None)
    measured = {e.id: e for e in run.evaluations if e.source != TRUNCATION}.get(architecture.id)
    of_whom = "the full network's" if params is None else "the pre-trained model's"
    if params is None and measured is not None and run.search is not None:
        params = int(run.search.full.objectives["params"]), int(measured.objectives["params"])
    if found:
        intro = _of_network(run, found[0])
    else:
        intro = _whole(run) if architecture == full else _intro(run, params, of_whom)
    context = {
        "title": f"{_title(run)}: network {found[0].id}" if found else f"{_title(run)}: sub-network {architecture.id}",
        "intro": intro,
        "recipe": recipe(run, found),
        "reader": reader,
        "packed": "quantization_config" in config,
        "adapters": (folder / ADAPTER_FOLDER).is_dir(),
        "loader": LOADERS[reader].format(path=name or folder.name, place="the folder that holds this directory"),
        "class_name": next(iter(config.get("architectures") or []), "the stock class"),
        "notes": notes,
        "layers": layer_rows(architecture, whole),
        "operators": {str(c.index): of for c, of in zip(architecture.layers, operators, strict=False)},
        "hidden": beside(architecture.hidden, whole.hidden if whole else None),
        "searched": True,
        "ranks": bool(architecture.ranks) or any(layer.ranks for layer in architecture.layers),
        "shared_ranks": ranks_beside(architecture.ranks, whole.ranks if whole else ()),
        "depth": depth_beside(architecture.num_layers, whole.num_layers if whole else architecture.num_layers),
        "metrics": [row for each in found[-1:] for row in network_rows(each)] + metric_rows(run, architecture.id),
        "results": model_index(run, architecture.id),
        "command": " ".join(run.stages[0]["argv"]) if run.stages else "",
        "versions": run.stages[0].get("versions", {}) if run.stages else {},
    }
    card = folder / CARD_FILE
    write_text(card, render("model_card.md.j2", context))
    return card


def write_baseline_card(
    path: str | Path,
    *,
    run_dir: str | Path,
    name: str,
    method: str,
    summary: str,
    params: tuple[int, int],
    metrics: Sequence[Mapping[str, Any]],
    architecture: Architecture | None,
    full: Architecture,
    operators: Sequence[Mapping[str, str]] = (),
) -> Path:
    """Write the model card of a network that a baseline has made, from what its run knows.

    Args:
        path: the directory of the model, which holds `config.json`.
        run_dir: the run.
        name: of the directory once it is in its place.
        method: the baseline, in words.
        summary: what it did, in one sentence.
        params: parameters of the whole network, and of this one.
        metrics: as they go to `results.json`.
        architecture: which units it keeps; None where it is no sub-network of the whole one.
        full: the whole network.
        operators: as in `write_model_card`.

    Raises:
        ValueError: `path` holds no model, or one of the run's files is damaged.
    """
    folder, run = Path(path), RunFiles(run_dir)
    config = read_json(folder / "config.json")
    reader, before, now = reader_of(config), *params
    base = run.setting("model.path")
    context = {
        "title": f"{_title(run)}: {method}",
        "intro": f"{base} after {method}, a baseline that other methods are compared with. It has "
        f"{numbers.count(now)} parameters, {numbers.percent(now / before)} of the {numbers.count(before)} before.",
        "searched": False,
        "recipe": recipe_of_baseline(run, summary),
        "reader": reader,
        "packed": "quantization_config" in config,
        "adapters": False,
        "loader": LOADERS[reader].format(path=name, place="the folder that holds this directory"),
        "class_name": next(iter(config.get("architectures") or []), "the stock class"),
        "notes": [],
        "layers": [] if architecture is None else layer_rows(architecture, full),
        "operators": {}
        if architecture is None
        else {str(c.index): of for c, of in zip(architecture.layers, operators, strict=False)},
        "hidden": None if architecture is None else beside(architecture.hidden, full.hidden),
        "ranks": False,
        "shared_ranks": "",
        "depth": "" if architecture is None else depth_beside(architecture.num_layers, full.num_layers),
        "metrics": [metric_row(metric) for metric in metrics],
        "results": [],
        "command": " ".join(run.stages[-1]["argv"]) if run.stages else "",
        "versions": run.stages[-1].get("versions", {}) if run.stages else {},
    }
    card = folder / CARD_FILE
    write_text(card, render("model_card.md.j2", context))
    return card


def _intro(run: RunFiles, params: tuple[int, int] | None, of_whom: str) -> str:
    base = run.setting("model.path") or "a larger model"
    if params is None:
        return f"A sub-network of {base}."
    before, now = params
    fraction = f"{numbers.percent(now / before)} of {of_whom}"
    return f"A sub-network of {numbers.count(now)} parameters, {fraction}, cut from {base}."


def _whole(run: RunFiles) -> str:
    return f"The whole network of {run.setting('model.path') or 'a run'}, as its run left it."


def _of_network(run: RunFiles, found: NetworkRow) -> str:
    base, part = run.setting("model.path") or "a larger model", found.costs.get("params")
    size = "" if part is None else f", with {numbers.percent(part)} of the parameters of its blocks"
    return f"A network of operators in the places of the sublayers of {base}{size}."


def _title(run: RunFiles) -> str:
    """What the run is called; where nobody has given it a name, the network."""
    network = Path(str(run.setting("model.path") or "")).name
    return network if network and run.setting("name") in (None, UNNAMED) else run.name
