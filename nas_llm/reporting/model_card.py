"""README.md of an exported model: how it was made, how it is built, what it measures, and how to load it."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_llm.architecture import Architecture, Ranks
from nas_llm.atomic_files import read_json, write_text
from nas_llm.reporting import numbers
from nas_llm.reporting.operator_files import NETWORKS_FILE, NetworkRow
from nas_llm.reporting.run_files import RunFiles
from nas_llm.reporting.templates import render
from nas_llm.run_directory import BASELINE_FILE, OPERATORS
from nas_llm.search.archive import TRUNCATION
from nas_llm.search.pareto import COSTS

CARD_FILE = "README.md"
ADAPTER_FOLDER = "adapter"  # of an exported network, beside whose weights its adapters lie
STANDARD = "standard sampler"  # trains the largest network alone
UNNAMED = "supernet"  # the name of a run that was given none
LOADERS = {  # by what can load the model; {place} is where {path} starts
    "stock": "from transformers import AutoModelForCausalLM\n\n"
    'model = AutoModelForCausalLM.from_pretrained(\n    "{path}"  # from {place}\n)',
    "own": 'import nas_llm\n\nmodel = nas_llm.from_pretrained("{path}")  # from {place}',
    "vllm": 'from vllm import LLM\n\nmodel = LLM("{path}", trust_remote_code=True)  # from {place}',
}
TEACHERS = {  # training.teacher
    "in_place": "the in-place teacher (the largest network as it trains)",
    "frozen": "a frozen teacher (the network as it was before training)",
}
ADAPTERS = {"lora": "LoRA", "sparse lora": "SparsePEFT", "qa sparse lora": "QA-SparsePEFT"}  # classes of the group peft
METHODS = {"wanda": "Wanda", "sparse GPT": "SparseGPT", "round to nearest": "round-to-nearest"}
DISTANCES = {"mse": "MSE", "cosine": "cosine"}  # hidden_matching.distance
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
        "layers": _layers(architecture, whole),
        "operators": {str(c.index): of for c, of in zip(architecture.layers, operators, strict=False)},
        "hidden": _of(architecture.hidden, whole.hidden if whole else None),
        "searched": True,
        "ranks": bool(architecture.ranks) or any(layer.ranks for layer in architecture.layers),
        "shared_ranks": _ranks(architecture.ranks, whole.ranks if whole else ()),
        "depth": _depth(architecture.num_layers, whole.num_layers if whole else architecture.num_layers),
        "metrics": [row for each in found[-1:] for row in _network_rows(each)] + metric_rows(run, architecture.id),
        "results": _model_index(run, architecture.id),
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
        "recipe": _of_baseline(run, summary),
        "reader": reader,
        "packed": "quantization_config" in config,
        "adapters": False,
        "loader": LOADERS[reader].format(path=name, place="the folder that holds this directory"),
        "class_name": next(iter(config.get("architectures") or []), "the stock class"),
        "notes": [],
        "layers": [] if architecture is None else _layers(architecture, full),
        "operators": {}
        if architecture is None
        else {str(c.index): of for c, of in zip(architecture.layers, operators, strict=False)},
        "hidden": None if architecture is None else _of(architecture.hidden, full.hidden),
        "ranks": False,
        "shared_ranks": "",
        "depth": "" if architecture is None else _depth(architecture.num_layers, full.num_layers),
        "metrics": [_row(metric) for metric in metrics],
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


def _network_rows(found: NetworkRow) -> list[dict[str, str]]:
    """What the search over operators measured: costs against the teacher's, losses before and after training."""
    data, of = "validation", "of the whole network's"
    rows = [
        (f"{numbers.label(name)} of its blocks", numbers.percent(part), of, "") for name, part in found.costs.items()
    ]
    rows.append(("loss, put together and untrained", numbers.value("loss", found.losses[0]), "nats/token", data))
    if found.rounds:
        rows.append(("loss", numbers.value("loss", found.losses[-1]), "nats/token", data))
    return [dict(zip(("name", "value", "unit", "data", "samples"), (*row, ""), strict=True)) for row in rows]


def _title(run: RunFiles) -> str:
    """What the run is called; where nobody has given it a name, the network."""
    network = Path(str(run.setting("model.path") or "")).name
    return network if network and run.setting("name") in (None, UNNAMED) else run.name


def recipe(run: RunFiles, found: Sequence[NetworkRow] = ()) -> list[str]:
    """How the networks of a run were made, one sentence per step, as far as its configuration tells; ``found``: one of
    them, of operators, by its budgets."""
    if (run.path / BASELINE_FILE).is_file():
        return _of_baseline(run, read_json(run.path / BASELINE_FILE, "summary")["summary"])
    steps = []
    if base := run.setting("model.path"):
        given = run.setting("model.adapter_path")
        merged = f", into which the adapters of {given} were merged" if given and not run.strategy("peft") else ""
        steps.append(f"The pre-trained model is {base}{merged}.")
    if importance := run.strategy("importance"):
        steps.append(
            f"Its units were sorted by {_named(importance, 'importance')}, so that sub-networks keep the best."
        )
    steps += _prepared(run)
    max_steps = run.setting("trainer.max_steps")
    max_steps = -1 if max_steps is None else max_steps
    if (run.path / OPERATORS).is_dir():
        steps += _of_operators(run, found)
    elif max_steps == 0:
        steps.append("It was not trained.")
    elif sampler := run.strategy("sampler"):
        length = f" for {numbers.counted(max_steps, 'step')}" if max_steps > 0 else ""
        data = f" on {run.setting('data.path')}" if run.setting("data.path") else ""
        losses = _taught(run)
        teacher = _teacher(run) if losses else None
        by, whose = _listed([_named(sampler, "sampler"), *losses]), f" from {teacher}" if teacher else ""
        trained = "The adapters alone were" if run.strategy("peft") else "It was"
        if sampler == STANDARD:
            by = _listed(losses) if losses else "labels' cross-entropy"
            steps.append(f"{trained} trained as a whole, and no sub-network of it, with the {by}{whose}{length}{data}.")
        else:
            steps.append(f"{trained} trained as a super-network with the {by}{whose}{length}{data}.")
        if run.setting("training.zeros") == "keep":
            steps.append("Weights that were zero stayed so.")
    if run.search is not None:
        compared, facts = _listed([numbers.label(name) for name in run.search.objectives]), run.search.facts
        networks = numbers.counted(facts["evaluations"], "sub-network")
        steps.append(f"{numbers.searcher(facts['searcher'])} compared {networks} by {compared}.")
    return steps


def _of_baseline(run: RunFiles, summary: str) -> list[str]:
    return [f"The pre-trained model is {run.setting('model.path')}.", summary, "It was not trained after that."]


def _of_operators(run: RunFiles, found: Sequence[NetworkRow]) -> list[str]:
    """How networks of operators come about: candidates, programme, training."""
    loss, learnt, rounds = (run.setting(key) for key in ("local_loss._target_", "distill.steps", "select.steps"))
    how = f", for {numbers.counted(learnt, 'step')} with {loss.rpartition('.')[2]}" if learnt and loss else ""
    steps = [f"Candidates for every sublayer learnt what the teacher's sublayer writes{how}."]
    if found:
        budgets, rounds_of = " and for ".join(row.asked for row in found), found[-1].rounds
        steps.append(
            "An integer programme chose one candidate for every sublayer within a budget; this network is the best for "
            f"{budgets} (a part of what the teacher's {'whole' if found[-1].of == 'whole' else 'blocks'} cost, or an "
            "absolute limit)."
        )
        trained = numbers.counted(rounds_of, "round") + f" of {numbers.counted(found[-1].steps or 0, 'step')}"
        steps.append(
            f"It was trained as a whole for {trained} with the {_listed(_taught(run))}, beside others that were left "
            "behind on the way."
            if rounds_of and _taught(run)
            else f"It was trained as a whole for {trained}."
            if rounds_of
            else "It was not trained as a whole."
        )
    elif (run.path / NETWORKS_FILE).is_file():
        training = (
            f", after rounds of {numbers.counted(rounds, 'step')} with the {_listed(_taught(run))}," if rounds else ""
        )
        steps.append(
            "An integer programme chose one candidate for every sublayer within the budgets; the best of its networks"
            f"{training} was exported."
        )
    return steps


def _teacher(run: RunFiles) -> str | None:
    external = run.setting("training.teacher_path")
    return f"the teacher {external}" if external else TEACHERS.get(run.setting("training.teacher"))


def _prepared(run: RunFiles) -> list[str]:
    """What became of the weights before training, and what stands beside them."""
    steps = []
    if sparsity := run.strategy("sparsity"):
        pattern, share = run.setting("sparsity.pattern"), run.setting("sparsity.sparsity")
        amount = f"{pattern} of the weights stay" if pattern else f"{numbers.percent(share)} of the weights are zero"
        steps.append(f"Its linear layers were made sparse by {METHODS.get(sparsity, sparsity)}: {amount}.")
    if quantization := run.strategy("quantization"):
        bits = run.setting("quantization.bits")
        steps.append(f"Its linear layers were quantised to {bits} bits by {METHODS.get(quantization, quantization)}.")
    if peft := run.strategy("peft"):
        rank, alpha = run.setting("peft.r"), run.setting("peft.lora_alpha")
        kind = ADAPTERS.get(peft, peft) + (", DoRA" if run.setting("peft.use_dora") else "")
        given = run.setting("model.adapter_path")
        begun = f" Training began with those of {given}." if given else ""
        steps.append(
            f"Low-rank adapters ({kind}) of rank {rank} and alpha {alpha:g} were put beside its weights, which stay as "
            f"they are.{begun}"
        )
    return steps


def _taught(run: RunFiles) -> list[str]:
    """What the sub-networks learnt from a teacher, by its losses; nothing where they learnt from the labels alone."""
    distillation, distance = run.strategy("distillation"), run.setting("hidden_matching.distance")
    losses = [] if distillation in (None, "labels") else [_named(distillation, "distillation")]
    return losses if distance is None else [*losses, f"{DISTANCES.get(distance, distance)} hidden matching"]


def _listed(words: Sequence[str]) -> str:
    """a, b and c."""
    *first, last = words
    return " and ".join(filter(None, [", ".join(first), last]))


def _named(strategy: str | None, kind: str) -> str:
    """activation importance, sandwich sampler, forward KL distillation."""
    return strategy if strategy is not None and kind in strategy else f"{strategy} {kind}"


def metric_rows(run: RunFiles, id: str, *, besides: Container[str] = ()) -> list[dict[str, str]]:
    """The run's metrics of one network with units, data and number of samples.

    `besides`: objectives that are shown already, with the values of the search; those of other splits are not left out.
    """
    rows, costs = [], set()
    for metric in run.metrics:
        name, searched = metric["name"], metric.get("split") in (None, run.search and run.search.facts["split"])
        if metric.get("architecture") != id or metric.get("variant") == TRUNCATION or name in costs:
            continue
        if name in besides and (searched or name in COSTS):
            continue
        costs |= {name} & set(COSTS)
        rows.append(_row(metric))
    return rows


def _row(metric: Mapping[str, Any]) -> dict[str, str]:
    """One metric for the table."""
    data = ", ".join(str(metric[key]) for key in ("data", "split") if metric.get(key))
    label = numbers.label(metric["name"])
    return {
        "name": f"{label} ({metric['variant']})" if metric.get("variant") else label,
        "value": numbers.value(metric["name"], metric["value"]),
        "unit": "" if metric.get("unit") in (None, "1", "parameters") else str(metric["unit"]),
        "data": data,
        "samples": f"{metric['samples']:,}" if metric.get("samples") else "",
    }


def _layers(architecture: Architecture, full: Architecture | None) -> list[dict[str, str]]:
    kept = {layer.index: layer for layer in architecture.layers}
    whole = {layer.index: layer for layer in full.layers} if full else {}
    rows = []
    for index in sorted(whole.keys() | kept.keys()):
        layer, of = kept.get(index), whole.get(index)
        if layer is None:
            rows.append({"index": str(index), "heads": "dropped", "groups": "", "head_dim": "", "ffn": "", "ranks": ""})
            continue
        row = {
            "heads": _of(layer.heads, of.heads if of else None),
            "groups": _of(layer.kv_groups, of.kv_groups if of else None),
            "head_dim": _of(layer.head_dim, of.head_dim if of else None),
            "ffn": _of(layer.ffn, of.ffn if of else None),
            "ranks": _ranks(layer.ranks, of.ranks if of else ()),
        }
        rows.append({"index": str(index), **row})
    return rows


def _ranks(kept: Ranks, whole: Ranks) -> str:
    """Of every group of adapters, or one for all where they agree."""
    of = dict(whole)
    found = {group: _of(rank, of.get(group)) for group, rank in kept}
    if len(found) > 1 and len(set(found.values())) == 1:
        return f"all {next(iter(found.values()))}"
    return ", ".join(f"{group} {rank}" for group, rank in found.items())


def _of(kept: int, whole: int | None) -> str:
    return str(kept) if whole is None or whole == kept else f"{kept} of {whole}"


def _depth(kept: int, whole: int) -> str:
    return f"{_of(kept, whole)} {numbers.plural(whole, 'layer')}"


def _model_index(run: RunFiles, id: str) -> list[dict[str, Any]]:
    """Metrics with a data set, as the front matter of Hugging Face's cards holds them."""
    own = str(run.setting("data.path") or run.strategy("data") or "own data")
    return [
        {"dataset": f"{metric.get('data') or own}, {metric['split']}", "name": metric["name"], "value": metric["value"]}
        for metric in run.metrics
        if metric.get("architecture") == id
        and metric.get("split")
        and metric["value"] is not None
        and metric.get("variant") != TRUNCATION
    ]
