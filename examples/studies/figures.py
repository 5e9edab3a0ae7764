"""The figures of the studies' pages: lines with 95 % bands, and paired differences with their intervals."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import all_together as together
import knowledge_evolution as evolution
import matplotlib as mpl
import svmax
import two_head as heads

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import Estimate, Results, Values, difference
from tables import PLAIN, STRONG, head_rows

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
        change = difference(own, control)
        if change:
            each = [own[seed] - control[seed] for seed in sorted(own.keys() & control.keys())]
            axes.plot(each, [place] * len(each), ".", color="C0", alpha=0.4)
            axes.errorbar(change.mean, place, xerr=change.half, fmt="o", color="C0", capsize=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()


def svmax_figure(results: Results) -> Figure:
    """Draw recall and effective rank by learning rate, a panel a loss."""
    figure, axes = panels(len(svmax.LOSSES), rows=2)
    for place, (measure, loss) in enumerate(itertools.product(("R@1", "effective rank"), svmax.LOSSES)):
        grid = {
            name: {
                rate: results.values(measure, {"loss": loss, "regularizer": name, "learning rate": rate})
                for rate in svmax.RATES
            }
            for name in svmax.REGULARIZERS
        }
        lines(axes[place], grid)
        axes[place].set(title=loss, xscale="log", xlabel="learning rate", xticks=svmax.RATES)
    axes[0].set_ylabel("R@1 on new classes, %")
    axes[len(svmax.LOSSES)].set_ylabel("effective rank on new classes")
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def weight_figure(results: Results) -> Figure:
    """Draw recall by the regularizer's weight."""
    chosen = list(dict.fromkeys(setting["loss"] for setting in svmax.WEIGHT.settings))
    figure, axes = panels(len(chosen), 4)
    for axis, loss in zip(axes, chosen, strict=True):
        base = {"loss": loss, "learning rate": 0.1}
        grid = {
            name: {w: results.values("R@1", {**base, "regularizer": name, "weight": w}) for w in weights}
            for name in svmax.REGULARIZERS
            for weights in [(0.0,) if name == "none" else svmax.WEIGHTS]
        }
        lines(axis, grid)
        axis.set(title=loss, xscale="log", xlabel="weight", ylabel="R@1 on new classes, %")
    axes[-1].legend(frameon=False, fontsize="small")
    return figure


def head_figure(results: Results) -> Figure:
    """Draw the differences from cross-entropy on the same batches."""
    figure, axes = panels(4, 3.4, 2.2)
    settings = [(c, m) for c in (heads.BALANCED, heads.LONG_TAILED) for m in ("accuracy", "R@1")]
    for axis, (classes, measure) in zip(axes, settings, strict=True):
        rows = [row for row in head_rows(classes) if row.control]
        control = results.values(measure, rows[0].control or {})
        differences(axis, [r.label for r in rows], [results.values(measure, r.where) for r in rows], control)
        axis.set(title=f"{classes}: {measure}", xlabel="difference in points")
    for axis in axes[1:]:
        axis.set_yticks([])
    return figure


def evolution_figure(results: Results, *settings: dict[str, object]) -> Figure:
    """Draw the score by generation, full size and slim, of the settings that were run."""
    settings = tuple(base for base in settings if results.values("dense 1", base))
    figure, axes = panels(2 * len(settings), 3.6)
    generations = range(1, evolution.GENERATIONS + 1)
    for index, base in enumerate(settings):
        for axis, size in zip(axes[2 * index : 2 * index + 2], ("dense", "slim"), strict=True):
            grid = {
                m: {g: results.values(f"{size} {g}", {**base, "method": m}) for g in generations}
                for m in evolution.METHODS
                if (m in {"KELS", evolution.ALONE}) or size == "dense"
            }
            lines(axis, grid)
            title = "the network" if size == "dense" else "of the slim size"
            axis.set(title=f"{base['regularization']}: {title}", xlabel="generation", xticks=list(generations))
            axis.legend(frameon=False, fontsize="x-small", loc="lower right")
    axes[0].set_ylabel("score, %")
    return figure


def together_figure(results: Results) -> Figure:
    """Draw the differences from the plain metric loss in retrieval of new classes."""
    figure, axes = panels(2, 4.2, 2.8)
    for axis, data in zip(axes, ("Fashion-MNIST", "digits"), strict=True):
        own = {m: results.values("R@1, new classes", {"data": data, "method": m}) for m in together.METHODS}
        control = own.pop("triplet, semi-hard")
        differences(axis, list(own), list(own.values()), control)
        axis.set(title=data, xlabel="R@1 on new classes, points beyond the triplet loss")
    axes[1].set_yticks([])
    return figure


def figures(folder: Path) -> dict[str, Callable[[], Figure]]:
    """Return the figures by file name."""
    grid, weights = Results.load(folder, "svmax"), Results.load(folder, "svmax", "svmax_weight")
    few = Results.load(folder, "evolution", "evolution_strong")
    all_parts = Results.load(folder, "all_together", "all_together_digits")
    return {
        "svmax.png": lambda: svmax_figure(grid),
        "svmax_weight.png": lambda: weight_figure(weights),
        "two_head.png": lambda: head_figure(Results.load(folder, "two_head")),
        "knowledge_evolution.png": lambda: evolution_figure(few, PLAIN, STRONG),
        "all_together.png": lambda: together_figure(all_parts),
    }
