"""The figures of the studies' pages."""

import itertools
from collections.abc import Callable
from pathlib import Path

import all_together as together
import figures_glyphs
import figures_marks
import knowledge_evolution as evolution
import svmax
import two_head as heads
from drawing import beyond, differences, lines, panels
from maps import GRAD_CAM, METHODS, RANDOM
from matplotlib.figure import Figure
from results import Results, Values
from tables import PLAIN, STRONG, head_rows, map_rows


def svmax_figure(results: Results) -> Figure:
    """Draw by learning rate, a panel a loss: recall beyond the loss alone, and effective rank."""
    figure, axes = panels(len(svmax.LOSSES), rows=2)
    for upper, lower, loss in zip(axes, axes[len(svmax.LOSSES) :], svmax.LOSSES, strict=False):

        def found(measure: str, name: str, rate: float, loss: str = loss) -> Values:
            return results.values(measure, {"loss": loss, "regularizer": name, "learning rate": rate})

        gain = {
            name: {rate: beyond(found("R@1", name, rate), found("R@1", "none", rate)) for rate in svmax.RATES}
            for name in svmax.REGULARIZERS
        }
        rank = {
            name: {rate: found("effective rank", name, rate) for rate in svmax.RATES} for name in svmax.REGULARIZERS
        }
        lines(upper, gain)
        upper.set(title=loss, ylim=(-15, 15), xscale="log", xticks=svmax.RATES)
        lines(lower, rank)
        lower.set(xlabel="learning rate", ylim=(0, 32), xscale="log", xticks=svmax.RATES)
    axes[0].set_ylabel("R@1 beyond the loss alone, points")
    axes[len(svmax.LOSSES)].set_ylabel("effective rank, of 32")
    axes[-1].legend(frameon=False, fontsize="small")
    return figure


def weight_figure(results: Results) -> Figure:
    """Draw by the regularizer's weight: recall beyond the loss alone."""
    chosen = list(dict.fromkeys(setting["loss"] for setting in svmax.WEIGHT.settings))
    figure, axes = panels(len(chosen), 4)
    for axis, loss in zip(axes, chosen, strict=True):
        base = {"loss": loss, "learning rate": 0.1}
        control = results.values("R@1", {**base, "regularizer": "none"})
        grid = {
            name: {
                w: beyond(results.values("R@1", {**base, "regularizer": name, "weight": w}), control)
                for w in svmax.WEIGHTS
            }
            for name in svmax.REGULARIZERS
            if name != "none"
        }
        axis.axhline(0, color="grey", linewidth=1)
        lines(axis, grid)
        axis.set(title=loss, xscale="log", xlabel="weight", ylim=(-15, 15))
    axes[0].set_ylabel("R@1 beyond the loss alone, points")
    axes[0].legend(frameon=False, fontsize="small", loc="lower left")
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
    """Draw by generation, of the settings that were run: the score beyond that of one long training."""
    settings = tuple(base for base in settings if results.values("dense 1", base))
    figure, axes = panels(len(settings), 4)
    generations = range(1, evolution.GENERATIONS + 1)
    for base, axis in zip(settings, axes, strict=True):
        level = results.values(f"dense {evolution.GENERATIONS}", {**base, "method": evolution.LONG})
        grid = {
            m: {g: beyond(results.values(f"dense {g}", {**base, "method": m}), level) for g in generations}
            for m in (evolution.RESTARTS, *evolution.SPLITS)
        }
        axis.axhline(0, color="grey", linewidth=1)
        lines(axis, grid)
        axis.set(title=base["regularization"], xlabel="generation", xticks=list(generations))
        axis.set_ylabel(f"points beyond {evolution.LONG}")
        axis.legend(frameon=False, fontsize="x-small", loc="lower right")
    return figure


def slim_figure(results: Results, published: Results) -> Figure:
    """Draw the score by generation: of the dense network, and of the slim one as published and with statistics anew."""
    short = {"method": evolution.MORE_GENERATIONS}
    settings: dict[str, tuple[Results, dict[str, object], int]] = {
        "20 images a class": (results, {**PLAIN, "method": "KELS", "task": "classification", "images a class": 20}, 1),
        "100 images a class": (results, {"method": "KELS", "images a class": 100}, 1),
        "label smoothing, augmentation": (results, {**STRONG, "method": "KELS"}, 1),
        "new classes, R@1": (results, {"method": "KELS", "task": "retrieval"}, 1),
        "ten generations of half the length": (results, short, 2),
        "digits, published script": (published, {}, 1),
    }
    figure, axes = panels(3, 3.4, 2.6, rows=2)
    for axis, (title, (found, where, step)) in zip(axes, settings.items(), strict=True):
        generations = range(1, evolution.GENERATIONS + 1)
        labels = {"dense": "dense", "slim": "slim, as published", "anew": "slim, statistics anew"}
        grid = {
            label: {step * g: found.values(f"{size} {g}", where) for g in generations} for size, label in labels.items()
        }
        lines(axis, grid)
        axis.set(title=title, xlabel="generation", ylim=(0, 100), xticks=[step * g for g in generations])
    axes[0].set_ylabel("score, %")
    axes[3].set_ylabel("score, %")
    axes[0].legend(frameon=False, fontsize="x-small", loc="upper left")
    return figure


def together_figure(results: Results, *shown: str) -> Figure:
    """Draw the differences from the plain metric loss in retrieval of new classes, on some data."""
    measure, control = "R@1, new classes", "triplet, semi-hard"
    figure, axes = panels(1, 5.4, 2.4, rows=len(shown))
    for axis, data in zip(axes, shown, strict=True):
        own = {m: results.values(measure, {"data": data, "method": m}) for m in together.METHODS}
        level, own = own.pop(control), {method: values for method, values in own.items() if values}
        differences(axis, list(own), list(own.values()), level)
        axis.set(title=data, xlabel="R@1 beyond the triplet loss, points")
    return figure


def map_figure(photographs: Results, clutter: Results) -> Figure:
    """Draw the differences from Grad-CAM: a row a network, without the random map, which is far off."""
    taken = ((photographs, "insertion"), (clutter, "insertion"), (clutter, "mass in the box"), (clutter, "sensitivity"))
    figure, axes = panels(len(taken), 3.4, 2.8, rows=2)
    for axis, (network, (results, measure)) in zip(axes, itertools.product(METHODS, taken), strict=True):
        rows = [row for row in map_rows(network) if row.where["method"] not in {GRAD_CAM, RANDOM}]
        values = [results.values(measure, row.where) for row in rows]
        differences(axis, [row.label for row in rows], values, results.values(measure, rows[0].control or {}))
        images = "photographs" if results is photographs else "digits"
        axis.set(title=f"{network}, {images}:\n{measure}", xlabel="points beyond Grad-CAM")
        if (results, measure) != taken[0]:
            axis.set_yticks([])
    return figure


def figures(folder: Path) -> dict[str, Callable[[], Figure]]:
    """Return the figures by file name."""
    grid, weights = Results.load(folder, "svmax"), Results.load(folder, "svmax", "svmax_weight")
    few = Results.load(folder, "evolution", "evolution_strong")
    slim = Results.load(folder, *(f"evolution{name}" for name in ("", "_strong", "_more_images", "_retrieval", "_why")))
    all_parts = Results.load(folder, "all_together_glyphs", "all_together", "all_together_digits")
    return {
        **figures_glyphs.figures(folder),
        **figures_marks.figures(folder),
        "svmax.png": lambda: svmax_figure(grid),
        "svmax_weight.png": lambda: weight_figure(weights),
        "two_head.png": lambda: head_figure(Results.load(folder, "two_head")),
        "knowledge_evolution.png": lambda: evolution_figure(few, PLAIN, STRONG),
        "knowledge_evolution_slim.png": lambda: slim_figure(slim, Results.load(folder, "evolution_published")),
        "all_together.png": lambda: together_figure(all_parts, together.GLYPHS),
        "all_together_few.png": lambda: together_figure(all_parts, "digits", "Fashion-MNIST"),
        "l2_caf.png": lambda: map_figure(Results.load(folder, "l2_caf_photographs"), Results.load(folder, "l2_caf")),
    }
