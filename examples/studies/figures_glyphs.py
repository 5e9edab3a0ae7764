"""The figures of the studies on characters."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import evolution_glyphs as evolution
import semi_hard
import svmax_glyphs as svmax
import two_head_glyphs as two_head
from drawing import Line, beyond, differences, lines, panels
from knowledge_evolution import ALONE, LONG, RESTARTS
from matplotlib.figure import Figure
from results import Results
from spread import NONE, SVMAX
from tables_glyphs import RATES, SVMAX_FILES, gains, head_rows

OUTSIDE = {"frameon": False, "fontsize": "small", "loc": "outside lower center"}


def by(results: Results, measure: str, name: str, values: tuple[float, ...], where: Mapping[str, Any]) -> Line:
    """Return a measure by the values of a setting."""
    return {value: results.values(measure, {**where, name: value}) for value in values}


def svmax_figure(results: Results) -> Figure:
    """Draw R@1 by learning rate, a panel a loss, and the gain by the rank of the training without SVMax."""
    figure, axes = panels(3, 2.7, 2.5, rows=2)
    for axis, loss in zip(axes, svmax.LOSSES, strict=False):
        base = {"loss": loss, "steps": svmax.STEPS}
        own = {**base, "regularizer": SVMAX, "weight": svmax.WEIGHT[loss]}
        alone = by(results, "R@1", "learning rate", RATES, {**base, "regularizer": NONE})
        lines(axis, {"the loss alone": alone, "with SVMax": by(results, "R@1", "learning rate", RATES, own)})
        axis.set(title=loss, xscale="log", xticks=RATES, ylim=(40, 90), xlabel="learning rate")
    for axis in axes[::3]:
        axis.set_ylabel("R@1, %")
    for colour, loss in enumerate(svmax.LOSSES):
        points = [(rank, gain) for name, rank, gain in gains(results) if name == loss]
        axes[-1].plot(*zip(*points, strict=True), "o", color=f"C{2 + colour}", label=loss) if points else None
    axes[-1].axhline(0, color="grey", linewidth=1)
    axes[-1].set(title="gain by rank", xlabel="effective rank without", ylabel="R@1 gained", xlim=(0, 64))
    handles = [*axes[0].get_legend_handles_labels(), *axes[-1].get_legend_handles_labels()]
    figure.legend(handles[0] + handles[2], handles[1] + handles[3], ncols=4, **OUTSIDE)
    return figure


def weight_figure(results: Results) -> Figure:
    """Draw R@1 beyond the loss alone by the weight: SVMax for every loss, and its rivals for two."""
    figure, axes = panels(3, 2.9, 2.8)
    where = {"learning rate": svmax.RATE, "steps": svmax.STEPS}

    def gained(loss: str, name: str, weights: tuple[float, ...]) -> Line:
        control = results.values("R@1", {**where, "loss": loss, "regularizer": NONE})
        own = by(results, "R@1", "weight", weights, {**where, "loss": loss, "regularizer": name})
        return {weight: beyond(values, control) for weight, values in own.items()}

    lines(axes[0], {loss: gained(loss, SVMAX, svmax.WEIGHTS) for loss in svmax.LOSSES})
    axes[0].set(title="SVMax", ylabel="R@1 beyond the loss alone")
    axes[0].legend(frameon=False, fontsize="x-small")
    for axis, loss in zip(axes[1:], svmax.RIVALS_LOSSES, strict=True):
        lines(axis, {name: gained(loss, name, svmax.RIVALS_WEIGHTS) for name in (SVMAX, *svmax.RIVALS)})
        axis.set(title=loss)
    for axis in axes:
        axis.axhline(0, color="grey", linewidth=1)
        axis.set(xscale="log", xlabel="weight", ylim=(-30, 30))
    figure.legend(*axes[1].get_legend_handles_labels(), ncols=4, **OUTSIDE)
    return figure


def semi_hard_figure(results: Results) -> Figure:
    """Draw R@1 by learning rate, and the time that mining and loss take."""
    figure, axes = panels(2, 4, 2.8)
    for axis, measure in zip(axes, ("R@1", semi_hard.MEASURES[-1]), strict=True):
        lines(axis, {m: by(results, measure, "learning rate", RATES, {"triplets": m}) for m in semi_hard.METHODS})
        axis.set(xscale="log", xticks=RATES, xlabel="learning rate", ylabel=measure)
    axes[1].set(ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=3, **OUTSIDE)
    return figure


def two_head_figure(results: Results) -> Figure:
    """Draw the differences from cross-entropy on the same batches, a row a setting."""
    figure, axes = panels(3, 3, 1.7, rows=len(two_head.SETTINGS))
    measures = ("accuracy", "R@1, pooled", "R@1, embedding")
    for place, axis in enumerate(axes):
        (count, classes), measure = two_head.SETTINGS[place // 3], measures[place % 3]
        control, *others = head_rows(count, classes)
        level = results.values(measure.replace("embedding", "pooled"), control.where)
        differences(axis, [r.label for r in others], [results.values(measure, r.where) for r in others], level)
        axis.set_title(f"{count} classes, {classes}:\n{measure}", fontsize="small")
        axis.set_yticks([]) if place % 3 else None
    figure.supxlabel(
        "points beyond cross-entropy on the same batches, retrieving by its pooled features", fontsize="small"
    )
    return figure


def evolution_figure(results: Results) -> Figure:
    """Draw the last generation's accuracy beyond that of the control of its size."""
    figure, axes = panels(2, 4.4, 2.8)
    long = results.values("dense 5", {"method": LONG, "schedule": evolution.ONE})
    alone = results.values("slim 5", {"method": ALONE, "schedule": evolution.EQUAL})
    schedules = (evolution.EQUAL, evolution.LONG_LAST)
    dense = {f"{m}, {s}": {"method": m, "schedule": s} for s in schedules for m in (RESTARTS, *evolution.RESETS)}
    differences(axes[0], list(dense), [results.values("dense 5", where) for where in dense.values()], long)
    axes[0].set(title="full size", xlabel="points beyond one long training")
    slim = {f"{size}, {s}": (f"{c} 5", s) for s in schedules for size, c in (("as copied", "slim"), ("anew", "anew"))}
    found = [results.values(column, {"method": "KELS", "schedule": s}) for column, s in slim.values()]
    differences(axes[1], list(slim), found, alone)
    axes[1].set(title="KELS, slim size", xlabel="points beyond that size trained alone")
    return figure


def figures(folder: Path) -> dict[str, Callable[[], Figure]]:
    """Return the figures by file name."""
    grid = Results.load(folder, *SVMAX_FILES)
    return {
        "svmax_glyphs.png": lambda: svmax_figure(grid),
        "svmax_glyphs_weight.png": lambda: weight_figure(grid),
        "semi_hard.png": lambda: semi_hard_figure(Results.load(folder, "semi_hard")),
        "two_head_glyphs.png": lambda: two_head_figure(Results.load(folder, "two_head_glyphs")),
        "evolution_glyphs.png": lambda: evolution_figure(Results.load(folder, "evolution_glyphs")),
    }
