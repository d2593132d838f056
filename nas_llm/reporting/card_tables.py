"""What the tables of an exported network's card say: its measurements, and the sizes of its layers beside the whole
network's.
"""

from collections.abc import Container, Mapping
from typing import Any

from nas_llm.architecture import Architecture, Ranks
from nas_llm.reporting import numbers
from nas_llm.reporting.operator_files import NetworkRow
from nas_llm.reporting.run_files import RunFiles
from nas_llm.search.archive import TRUNCATION
from nas_llm.search.pareto import COSTS


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
        rows.append(metric_row(metric))
    return rows


def metric_row(metric: Mapping[str, Any]) -> dict[str, str]:
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


def network_rows(found: NetworkRow) -> list[dict[str, str]]:
    """What the search over operators measured: costs against the teacher's, losses before and after training."""
    data, of = "validation", "of the whole network's"
    rows = [
        (f"{numbers.label(name)} of its blocks", numbers.percent(part), of, "") for name, part in found.costs.items()
    ]
    rows.append(("loss, put together and untrained", numbers.value("loss", found.losses[0]), "nats/token", data))
    if found.rounds:
        rows.append(("loss", numbers.value("loss", found.losses[-1]), "nats/token", data))
    return [dict(zip(("name", "value", "unit", "data", "samples"), (*row, ""), strict=True)) for row in rows]


def model_index(run: RunFiles, id: str) -> list[dict[str, Any]]:
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


def layer_rows(architecture: Architecture, full: Architecture | None) -> list[dict[str, str]]:
    """The sizes of every layer beside those of the `full` network, whose other layers are dropped."""
    kept = {layer.index: layer for layer in architecture.layers}
    whole = {layer.index: layer for layer in full.layers} if full else {}
    rows = []
    for index in sorted(whole.keys() | kept.keys()):
        layer, of = kept.get(index), whole.get(index)
        if layer is None:
            rows.append({"index": str(index), "heads": "dropped", "groups": "", "head_dim": "", "ffn": "", "ranks": ""})
            continue
        row = {
            "heads": beside(layer.heads, of.heads if of else None),
            "groups": beside(layer.kv_groups, of.kv_groups if of else None),
            "head_dim": beside(layer.head_dim, of.head_dim if of else None),
            "ffn": beside(layer.ffn, of.ffn if of else None),
            "ranks": ranks_beside(layer.ranks, of.ranks if of else ()),
        }
        rows.append({"index": str(index), **row})
    return rows


def ranks_beside(kept: Ranks, whole: Ranks) -> str:
    """Of every group of adapters, or one for all where they agree."""
    of = dict(whole)
    found = {group: beside(rank, of.get(group)) for group, rank in kept}
    if len(found) > 1 and len(set(found.values())) == 1:
        return f"all {next(iter(found.values()))}"
    return ", ".join(f"{group} {rank}" for group, rank in found.items())


def beside(kept: int, whole: int | None) -> str:
    """ "4 of 8"; the number alone where all are kept, or where nobody knows how many there were."""
    return str(kept) if whole is None or whole == kept else f"{kept} of {whole}"


def depth_beside(kept: int, whole: int) -> str:
    """ "3 of 4 layers"."""
    return f"{beside(kept, whole)} {numbers.plural(whole, 'layer')}"
