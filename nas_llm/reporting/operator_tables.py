"""The networks that a search over operators found, as a table for the terminal."""

from __future__ import annotations

from pathlib import Path

from nas_llm.reporting.operator_files import NetworkRow, read_networks


def networks_table(run_dir: str | Path) -> str:
    """The best network of every budget beside the teacher: what it costs, its loss before and after training."""
    rows = read_networks(Path(run_dir))
    shown = [row for row in rows if row.winner or not row.budget]
    costs = list(dict.fromkeys(name for row in shown for name in row.costs))
    rounds = any(len(row.losses) > 1 for row in shown)
    heads = ["network", "budget", *costs, "untrained" if rounds else "loss", *(["trained"] if rounds else []), "of"]
    table = [heads]
    for row in shown:
        number = sum(other.asked == row.asked for other in rows)
        cells = [row.id if row.budget else "teacher", row.asked]
        cells += [f"{100 * row.costs[name]:.1f} %" if name in row.costs else "" for name in costs]
        cells.append(f"{row.losses[0]:.3f}")
        if rounds:
            cells.append(f"{row.losses[-1]:.3f}" if len(row.losses) > 1 else "")
        table.append([*cells, str(number) if row.budget else ""])
    return "\n".join([_aligned(table), "", *_places(shown)])


def _aligned(table: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    rule = ["-" * width for width in widths]
    lines = [table[0], rule, *table[1:]]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _places(rows: list[NetworkRow]) -> list[str]:
    return [
        "costs: of the teacher's blocks; loss: nats per token; of: networks that the programme gave",
        *(f"  {row.asked}: {row.path}" for row in rows if row.path),
    ]
