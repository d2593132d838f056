"""report.html: one self-contained page about a run, made from the files of its directory."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_llm.atomic_files import read_json, write_text
from nas_llm.reporting import charts, importance_charts, numbers, tables
from nas_llm.reporting.card_tables import metric_row, metric_rows
from nas_llm.reporting.front_plot import plot_front
from nas_llm.reporting.importance_plot import plot_scores
from nas_llm.reporting.model_card import LOADERS, reader_of
from nas_llm.reporting.operator_files import NETWORKS_FILE
from nas_llm.reporting.operator_plots import PICTURES, plot_operators
from nas_llm.reporting.operator_tables import networks_table
from nas_llm.reporting.progress_plot import plot_progress
from nas_llm.reporting.recipe import recipe
from nas_llm.reporting.run_files import Export, Progress, RunFiles, Search
from nas_llm.reporting.templates import render
from nas_llm.search_space import SearchSpace

HTML_FILE = "report.html"
HALF = 0.5


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html`; `importance_scores.png` where the run was sorted, and `pareto.png`, `pareto.csv` and
    `search_progress.png` where it was searched.

    Returns the page's path.

    Raises:
        ValueError: `run_dir` is no directory, or one of its files is damaged.
    """
    run = RunFiles(run_dir)
    if run.search is not None:
        tables.write_csv(run, run.search)
        plot_front(run, run.search)
        if run.search.progress is not None:
            plot_progress(run, run.search.progress)
    if run.importance is not None:
        plot_scores(run, run.importance)
    if (run.path / NETWORKS_FILE).is_file():
        plot_operators(run.path)
    path = run.path / HTML_FILE
    write_text(path, render("report.html.j2", _context(run)))
    return path


def _context(run: RunFiles) -> dict[str, Any]:
    search = run.search
    return {
        "name": run.name,
        "recipe": recipe(run),
        "command": " ".join(run.stages[0]["argv"]) if run.stages else "",
        "status": _status(run),
        "tiles": _tiles(run, search) if search else [],
        "front": _front(run, search) if search else None,
        "progress": _progress(search.progress) if search and search.progress else None,
        "exports": [_export(run, search, export) for export in run.exports] if search else [],
        "importance": _importance(run),
        "operators": _operators(run),
        "curves": _curves(run),
        "search": _search_facts(run, search) if search else [],
        "metrics": _other_metrics(run),
        "configuration": run.configuration,
        "environment": _environment(run),
        "stages": [_stage(stage) for stage in run.stages],
    }


def _tiles(run: RunFiles, search: Search) -> list[dict[str, str]]:
    """The figures one would tell a colleague."""
    quality = search.qualities[0]
    best, half = search.full.objectives[quality], search.closest(HALF)
    name, unit = numbers.label(quality), search.unit(quality)
    difference = numbers.signed(half.objectives[quality] - best)
    truncated = search.truncation.get(half.id)
    tiles = [
        {
            "figure": numbers.count(search.full.objectives["params"]),
            "what": "parameters in the full network",
            "note": f"{name} {numbers.value(quality, best, unit)}",
        },
        {
            "figure": f"{len(search.front)} of {len(search.front) + len(search.dominated)}",
            "what": "measured networks on the front",
            "note": f"from {numbers.percent(search.fraction(search.front[0]))} of the parameters up",
        },
        {
            "figure": numbers.value(quality, half.objectives[quality], unit),
            "what": f"{name} at {numbers.percent(search.fraction(half))} of the parameters",
            "note": f"{difference} against the full network",
        },
    ]
    if truncated is not None:
        tiles.append(
            {
                "figure": numbers.value(quality, truncated.objectives[quality], unit),
                "what": f"{name} of {run.untrained} cut to that size",
                "note": "naive truncation, no sorting, no training",
            }
        )
    return tiles


def _front(run: RunFiles, search: Search) -> dict[str, Any]:
    names = list(dict.fromkeys(["params", *search.qualities, *search.costs]))
    return {
        "charts": [charts.front_chart(run, search, cost, quality) for cost, quality in search.planes()],
        "heads": [numbers.axis(name, search.unit(name)) for name in names],
        "truncated": numbers.label(search.qualities[0]) if search.truncation else "",
        "rows": tables.rows(run, search),
        "shown": tables.thinned(tables.rows(run, search)),
        "grouped": any(row.shape["groups"] != row.shape["heads"] for row in tables.rows(run, search)),
        "has_exports": bool(run.exports),
        "has_baseline": bool(search.truncation),
        "untrained": run.untrained,
    }


def _progress(progress: Progress) -> dict[str, Any]:
    ends = [(numbers.searcher(name), points[-1][1]) for name, points in progress.curves.items()]
    keys = [(f"search-{i % charts.SEARCH_COLOURS}", f"{name} {end:.3f}") for i, (name, end) in enumerate(ends)]
    return {"chart": charts.progress_chart(progress), "searches": keys, "heuristic": f"{progress.heuristic:.3f}"}


def _export(run: RunFiles, search: Search, export: Export) -> dict[str, Any]:
    quality = search.qualities[0]
    baseline = search.truncation.get(export.id)
    values = export.evaluation.objectives
    size = numbers.percent(search.fraction(export.evaluation))
    measured = [name for name in search.objectives if name in values and name != "params"]
    facts = {
        "parameters": f"{numbers.count(values['params'])} ({size} of the full)",
        **{numbers.label(name): _against(search, name, values[name]) for name in measured},
    }
    if baseline is not None:
        facts[f"{numbers.label(quality)}, truncated"] = numbers.value(quality, baseline.objectives[quality])
    facts["built as"] = export.evaluation.architecture.summary()
    return {
        "id": export.id,
        "size": size,
        "facts": facts,
        "chart": charts.layers_chart(export.evaluation.architecture, search.full.architecture),
        "path": str(export.path.relative_to(run.path)),
        "reader": reader_of(export.config),
        "loader": LOADERS[reader_of(export.config)].format(
            path=export.path.relative_to(run.path), place="the run's directory"
        ),
        "metrics": metric_rows(run, export.id, besides=search.objectives),
    }


def _against(search: Search, name: str, value: float) -> str:
    shown = numbers.value(name, value, search.unit(name))
    whole = search.full.objectives[name]
    if name in numbers.COUNTS or name == "latency":
        return f"{shown} ({numbers.percent(value / whole)} of the full)"
    return f"{shown} ({numbers.signed(value - whole)} against the full)"


def _operators(run: RunFiles) -> dict[str, Any] | None:
    """The search over distilled operators: its table, and its pictures inside the page."""
    if not (run.path / NETWORKS_FILE).is_file():
        return None
    found = [(caption, run.path / f"{name}.png") for name, caption in PICTURES.items()]
    pictures = [
        {"caption": caption, "data": base64.b64encode(file.read_bytes()).decode()}
        for caption, file in found
        if file.exists()
    ]
    return {"table": networks_table(run.path), "pictures": pictures}


def _importance(run: RunFiles) -> dict[str, Any] | None:
    if run.importance is None:
        return None
    return {"method": run.importance.method, "charts": importance_charts.charts(run.importance)}


def _curves(run: RunFiles) -> dict[str, Any] | None:
    if not run.curves:
        return None
    return {"chart": charts.curves_chart(run.curves), "names": [curve.name for curve in run.curves]}


def _search_facts(run: RunFiles, search: Search) -> dict[str, str]:
    facts, file = search.facts, run.path / "search_space.json"
    size = SearchSpace.from_dict(read_json(file)).size if file.exists() else None
    overhead = facts["search_overhead"]
    return {
        "searcher": numbers.searcher(facts["searcher"]),
        "objectives": ", ".join(f"{name} ({o['direction']}, {o['unit']})" for name, o in search.objectives.items()),
        "search space": "" if size is None else numbers.counted(size, "architecture"),
        "asked for": f"{numbers.counted(facts['evaluations'], 'architecture')}, {facts['from_archive']:,} known before",
        "measured on": f"{numbers.counted(facts['samples'], 'record')} of the {facts['split']} split",
        "time": f"{numbers.duration(facts['evaluation_seconds'])} measuring"
        + (f", the searcher's own time is {numbers.percent(overhead)} of that" if overhead is not None else ""),
        "super-network": f"step {facts['step']:,}",
    }


def _other_metrics(run: RunFiles) -> list[dict[str, str]]:
    """Metrics that are shown nowhere else on the page."""
    shown = {export.id for export in run.exports}
    objectives = run.search.objectives if run.search else {}
    ids = dict.fromkeys(m["architecture"] for m in run.metrics if m.get("architecture") not in {None, *shown})
    alone = [m for m in run.metrics if "architecture" not in m and ("model" in m or run.search is None)]
    return [  # of sub-networks; of saved models; of what a baseline made
        *({"network": _name(run, id), **row} for id in ids for row in metric_rows(run, id, besides=objectives)),
        *({"network": metric.get("model", ""), **metric_row(metric)} for metric in alone),
    ]


def _name(run: RunFiles, id: str) -> str:
    return "full network" if run.search and run.search.full.id == id else id


def _environment(run: RunFiles) -> dict[str, str]:
    """Of the first stage, which made the super-network."""
    if not run.stages:
        return {}
    stage = run.stages[0]
    hardware, git = stage.get("hardware", {}), stage.get("git")
    gpus = ", ".join(hardware.get("gpus", [])) or "no graphics card"
    size = f"{hardware.get('cores', '?')} cores, {hardware.get('memory_gib', '?')} GiB"
    packages = ", ".join(f"{name} {version}" for name, version in stage.get("versions", {}).items())
    return {
        "hardware": f"{hardware.get('cpu', '')}, {size}, {gpus}",
        "system": str(hardware.get("platform", "")),
        "packages": packages,
        "git": f"{git['commit'][:12]}{' with uncommitted changes' if git['dirty'] else ''}" if git else "no repository",
        "seed": str(stage.get("seed", "")),
    }


def _stage(stage: Mapping[str, Any]) -> dict[str, str]:
    seconds = stage.get("seconds")
    return {
        "command": " ".join(stage["argv"]),
        "started": str(stage.get("started", "")).replace("T", " ").partition("+")[0],
        "took": "" if seconds is None else numbers.duration(seconds),
        "status": status if (status := stage.get("status", "")) != "running" else "",
    }


def _status(run: RunFiles) -> str:
    if not run.stages:
        return ""
    first = _stage(run.stages[0])
    return " · ".join(part for part in (f"started {first['started']} UTC", first["took"], first["status"]) if part)
