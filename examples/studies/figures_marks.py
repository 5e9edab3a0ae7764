"""The figure of the study on marks."""

from collections.abc import Callable
from pathlib import Path

from drawing import panels
from marks import METHODS
from matplotlib.figure import Figure
from results import Estimate, Results

TITLES = {"pointed": "least in the mark, % of pairs", "separation": "mark below letter, % of cells"}


def marks_figure(results: Results) -> Figure:
    """Draw both measures of every method: each seed, and the mean with its interval."""
    figure, axes = panels(2, 4, 2.6)
    for axis, (measure, title) in zip(axes, TITLES.items(), strict=True):
        for place, name in enumerate(METHODS):
            values = [*results.values(f"{measure}, {name}", {}).values()]
            axis.plot(values, [place] * len(values), ".", color="C0", alpha=0.4)
            if values:
                found = Estimate.of(values)
                axis.errorbar(found.mean, place, xerr=found.half, fmt="o", color="C0", capsize=3)
        axis.set(title=title, xlim=(0, 100), ylim=(len(METHODS) - 0.5, -0.5))
        axis.set_yticks(range(len(METHODS)), METHODS if axis is axes[0] else [""] * len(METHODS))
    return figure


def figures(folder: Path) -> dict[str, Callable[[], Figure]]:
    """Return the figure by its file's name."""
    return {"marks.png": lambda: marks_figure(Results.load(folder, "marks"))}
