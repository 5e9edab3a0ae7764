"""The figures of the studies on characters."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import semi_hard
import svmax_glyphs as svmax
from drawing import Line, beyond, differences, lines, panels
from knowledge_evolution import ALONE, LONG
from matplotlib.figure import Figure
from results import Results
from spread import NONE, SVMAX
from tables_glyphs import (
    LENGTH_FILES,
    LENGTHS,
    RATES,
    RESETS,
    RIVAL_FILES,
    SVMAX_FILES,
    WEIGHT_FILES,
    gains,
    head_rows,
    rival_rows,
)
from two_head import BALANCED, LONG_TAILED


def by(results: Results, measure: str, name: str, values: tuple[float, ...], where: Mapping[str, Any]) -> Line:
    """Return a measure by the values of a setting."""
    return {value: results.values(measure, {**where, name: value}) for value in values}


def svmax_figure(results: Results) -> Figure:
    """Draw R@1 by learning rate of two losses, and the gain of all by the rank of the training without SVMax."""
    figure, axes = panels(2, 2.9, 2.4, rows=2)
    for axis, loss in zip(axes, svmax.SWEPT, strict=False):
        base = {"loss": loss, "steps": svmax.STEPS}
        own = {**base, "regularizer": SVMAX, "weight": svmax.WEIGHT[loss]}
        alone = by(results, "R@1", "learning rate", RATES, {**base, "regularizer": NONE})
        lines(axis, {"the loss alone": alone, "with SVMax": by(results, "R@1", "learning rate", RATES, own)})
        axis.set(title=loss, xscale="log", xticks=RATES, ylim=(20, 80), xlabel="learning rate", ylabel="R@1, %")
    for colour, loss in enumerate(svmax.LOSSES):
        points = [(rank, gain) for name, rank, gain in gains(results) if name == loss]
        axes[2].plot(*zip(*points, strict=True), "o", color=f"C{2 + colour}", label=loss) if points else None
    axes[2].axhline(0, color="grey", linewidth=1)
    axes[2].set(title="gain by rank", xlabel="rank of training images, without", ylabel="R@1 gained", xlim=(0, 64))
    axes[3].set_axis_off()
    handles = [*axes[0].get_legend_handles_labels(), *axes[2].get_legend_handles_labels()]
    axes[3].legend(handles[0] + handles[2], handles[1] + handles[3], frameon=False, loc="center")
    return figure


def rivals_figure(rivals: Results, weights: Results, longer: Results) -> Figure:
    """Draw R@1 beyond two losses alone, of SVMax and its rivals and by SVMax's weight; and R@1 by length."""
    figure, axes = panels(2, 2.9, 2.5, rows=2)
    axes[1].sharex(axes[0])
    where = {"learning rate": svmax.RATE}
    beyond_alone, by_length = {}, {}
    names = [name for name in rival_rows() if rivals.values("R@1", {"regularizer": name})]
    for axis, loss in zip(axes, svmax.SWEPT, strict=False):
        base = {"loss": loss, "steps": svmax.STEPS, **where}
        alone = rivals.values("R@1", {**base, "regularizer": NONE})
        found = [rivals.values("R@1", {**base, "regularizer": name}) for name in names]
        differences(axis, names, found, alone)
        axis.set(title=loss, xlabel="R@1 gained")
        own = by(weights, "R@1", "weight", svmax.WEIGHTS, {**base, "regularizer": SVMAX})
        beyond_alone[loss] = {weight: beyond(values, alone) for weight, values in own.items()}
    for loss, name in itertools.product(svmax.LENGTHENED, (NONE, SVMAX)):
        settings = {"loss": loss, "regularizer": name, **where}  # the weight is the published one
        by_length[f"{loss} alone" if name == NONE else f"{loss}, SVMax"] = by(longer, "R@1", "steps", LENGTHS, settings)
    axes[1].set_yticks([])
    axes[2].axhline(0, color="grey", linewidth=1)
    lines(axes[2], beyond_alone)
    axes[2].set(xscale="log", xlabel="weight of SVMax", ylabel="R@1 gained")
    lines(axes[3], by_length)
    axes[3].set(xlabel="steps", xticks=LENGTHS, ylabel="R@1, %")
    for axis in axes[2:]:
        axis.legend(frameon=False, fontsize="x-small")
    return figure


def semi_hard_figure(results: Results) -> Figure:
    """Draw R@1 beyond the published triplets, and the time that mining and loss take."""
    figure, axes = panels(1, 5.4, 2.2, rows=2)
    where = {m: {"triplets": m, "learning rate": semi_hard.RATE} for m in semi_hard.METHODS}
    values = {method: results.values("R@1", chosen) for method, chosen in where.items()}
    level = values.pop(semi_hard.PUBLISHED)
    differences(axes[0], list(values), list(values.values()), level)
    axes[0].set(xlabel="R@1 beyond the published triplets")
    times = {method: results.values(semi_hard.MEASURES[-1], chosen) for method, chosen in where.items()}
    means = {m: sum(each.values()) / len(each) for m, each in times.items() if each}
    axes[1].barh(list(means), list(means.values()), color="C0")
    axes[1].invert_yaxis()
    axes[1].set(xlabel="milliseconds a batch, of mining and loss")
    return figure


def two_head_figure(results: Results) -> Figure:
    """Draw the differences from cross-entropy on the same batches, a row a setting."""
    kinds, measures = (BALANCED, LONG_TAILED), ("accuracy", "R@1, pooled")
    figure, axes = panels(2, 2.9, 1.6, rows=2)
    for axis, (classes, measure) in zip(axes, itertools.product(kinds, measures), strict=True):
        control, *others = head_rows(classes)
        level = results.values(measure, control.where)
        differences(axis, [r.label for r in others], [results.values(measure, r.where) for r in others], level)
        axis.set_title(f"{classes}: {measure}", fontsize="small")
        axis.set_yticks([]) if measure != measures[0] else None
    figure.supxlabel("points beyond cross-entropy on the same batches", fontsize="small")
    return figure


def evolution_figure(results: Results) -> Figure:
    """Draw the last generation's accuracy beyond that of the control of its size."""
    alone = results.values("slim 5", {"method": ALONE})
    figure, axes = panels(1, 5.4, 1.8, rows=2 if alone else 1)
    found = {method: results.values("dense 5", {"method": method}) for method in RESETS}
    found = {method: values for method, values in found.items() if values}
    differences(axes[0], list(found), list(found.values()), results.values("dense 5", {"method": LONG}))
    axes[0].set(title="full size", xlabel="points beyond one long training")
    if alone:
        slim = {"as copied": "slim 5", "statistics anew": "anew 5"}
        own = [results.values(column, {"method": "KELS"}) for column in slim.values()]
        differences(axes[1], list(slim), own, alone)
        axes[1].set(title="KELS, slim size", xlabel="points beyond that size trained alone")
    return figure


def figures(folder: Path) -> dict[str, Callable[[], Figure]]:
    """Return the figures by file name."""
    grid = Results.load(folder, *SVMAX_FILES)
    beside = [Results.load(folder, *names) for names in (RIVAL_FILES, WEIGHT_FILES, LENGTH_FILES)]
    return {
        "svmax_rivals.png": lambda: rivals_figure(*beside),
        "svmax_glyphs.png": lambda: svmax_figure(grid),
        "semi_hard.png": lambda: semi_hard_figure(Results.load(folder, "semi_hard")),
        "two_head_glyphs.png": lambda: two_head_figure(Results.load(folder, "two_head_glyphs")),
        "evolution_glyphs.png": lambda: evolution_figure(Results.load(folder, "evolution_glyphs")),
    }
