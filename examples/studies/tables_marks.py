"""The table of the study on marks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from marks import METHODS, PAIR, RANDOM
from results import Estimate, Results, difference

MEASURES = ("pointed", "separation")


def by_method(results: Results) -> str:
    """Return both measures of every method, with the paired difference of the pair's map from it."""
    lines = ["| map | points at the mark, % | tells mark from letter, % |", "|---|---|---|"]
    for name in METHODS:
        cells = [entry(results, measure, name) for measure in MEASURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) if results.rows else "(not measured yet.)"


def entry(results: Results, measure: str, name: str) -> str:
    """Return a mean with its interval, and how far the pair's map is above it."""
    values = results.values(f"{measure}, {name}", {})
    if not values:
        return ""
    change = difference(results.values(f"{measure}, {PAIR}", {}), values) if name not in {PAIR, RANDOM} else None
    beside = f" (pair: {change.text(sign=True)})" if change else ""
    return Estimate.of([*values.values()]).text() + beside


def tables(folder: Path) -> dict[str, Callable[[], str]]:
    """Return what the page's placeholders stand for."""
    results = Results.load(folder, "marks")
    return {"marks": partial(by_method, results), "marks runs": lambda: results.provenance}
