"""Numbers as people read them: 2.13 M, 49.7 %, 3.2 ms, 4 min 10 s."""

import math

UNITS = {"params": "parameters"}  # of what is measured whether or not it is an objective
LABELS = {"params": "parameters", "nonzero_params": "non-zero parameters", "macs": "MACs", "latency": "latency"}
SEARCHERS = {
    "nsga2": "NSGA-II",
    "random": "Random search",
    "grid": "Grid search",
    "local_search": "Pareto local search",
    "hill_climbing": "Hill climbing",
    "stratified": "Stratified random search",
}
COUNTS = ("params", "nonzero_params", "macs", "weight_bytes")
SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def label(name: str) -> str:
    """An objective's name in a sentence or a table's head."""
    return LABELS.get(name, name.replace("_", " "))


def searcher(name: str) -> str:
    """A search's name in a sentence's beginning or a legend."""
    return SEARCHERS.get(name, name)


def axis(name: str, unit: str) -> str:
    """An objective's name with its unit in brackets, for an axis."""
    return label(name) if unit in ("", "1") or unit == label(name) else f"{label(name)} [{unit}]"


def value(name: str, number: float | None, unit: str = "") -> str:
    """A measured value with its unit where the name does not say it."""
    if number is None or not math.isfinite(number):
        return "not finite"
    if name in COUNTS:
        return count(number)
    suffix = f" {unit}" if unit == "ms" or unit == "%" else ""
    return f"{significant(number)}{suffix}"


def count(number: float) -> str:
    """1234567 -> 1.23 M; at most three digits, below a thousand all of them."""
    for scale, letter in SCALES:
        if abs(number) >= 0.9995 * scale:
            return f"{_three_digits(number / scale)} {letter}"
    return f"{number:.0f}"


def counted(number: int, noun: str) -> str:
    """1 layer, 2 layers, 1,200 layers."""
    return f"{number:,} {plural(number, noun)}"


def plural(number: int, noun: str) -> str:
    """The noun as it follows this number."""
    return noun if number == 1 else f"{noun}s"


def tick(number: float) -> str:
    """A round number on an axis: 0.5, 20, 1.5 M."""
    for scale, letter in SCALES:
        if abs(number) >= scale:
            return f"{number / scale:.3g} {letter}"
    return f"{number:.3g}"


def significant(number: float) -> str:
    """Three decimals, fewer for large numbers and more for small ones: 0.512, 12.35, 1,234, 0.00034."""
    size = abs(number)
    if size < 0.0095:
        return f"{number:.2g}" if size else "0"
    if size >= 1000:
        return f"{number:,.0f}" if size < 1e7 else f"{number:.2e}"
    return f"{number:.3f}" if size < 10 else f"{number:.2f}" if size < 100 else f"{number:.1f}"


def percent(fraction: float) -> str:
    """0.4968 -> 49.7 %."""
    return f"{100 * fraction:.1f} %"


def signed(number: float) -> str:
    """A difference: +0.123, −0.040."""
    return ("+" if number >= 0 else "−") + significant(abs(number))


def duration(seconds: float) -> str:
    """7.3 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _three_digits(number: float) -> str:
    size = abs(number)
    return f"{number:.2f}" if size < 9.995 else f"{number:.1f}" if size < 99.95 else f"{number:.0f}"
