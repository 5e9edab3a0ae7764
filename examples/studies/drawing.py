"""What all figures are drawn of: panels, lines with 95 % bands, and paired differences with their intervals."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import Estimate, Values, difference

Line = Mapping[float, Values]  # x -> values by seed


def panels(columns: int, width: float = 3.2, height: float = 2.8, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a grid of plain axes, row by row."""
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def lines(axes: Axes, named: Mapping[str, Line]) -> None:
    """Draw a line a name: the mean over the seeds, and its 95 % interval as a band; one point alone is a level."""
    for colour, (name, line) in enumerate(named.items()):
        estimates = {x: Estimate.of(list(values.values())) for x, values in line.items() if values}
        if not estimates:
            continue
        x, means = list(estimates), [e.mean for e in estimates.values()]
        if len(x) == 1:
            axes.axhline(means[0], color=f"C{colour}", linestyle="--", label=name)
            continue
        axes.plot(x, means, "o-", color=f"C{colour}", label=name, markersize=4)
        low, high = ([e.mean + side * e.half for e in estimates.values()] for side in (-1, 1))
        axes.fill_between(x, low, high, color=f"C{colour}", alpha=0.12, linewidth=0)


def differences(axes: Axes, labels: Sequence[str], values: Sequence[Values], control: Values) -> None:
    """Draw every seed's difference from a control, and the mean with its 95 % interval."""
    axes.axvline(0, color="grey", linewidth=1)
    for place, own in enumerate(values):
        each = [*beyond(own, control).values()]
        axes.plot(each, [place] * len(each), ".", color="C0", alpha=0.4)
        change = difference(own, control)
        if change:
            axes.errorbar(change.mean, place, xerr=change.half, fmt="o", color="C0", capsize=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)


def beyond(values: Values, control: Values) -> Values:
    """Return the differences from a control, seed by seed."""
    return {seed: values[seed] - control[seed] for seed in sorted(values.keys() & control.keys())}
