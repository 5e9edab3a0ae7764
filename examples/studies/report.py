"""Make docs/studies from docs/results: every table, figure and number on those pages comes from the rows there.

    python examples/studies/report.py

The pages' words are in examples/studies/pages; {{name}} there stands for what a function of this file returns.
"""

import argparse
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import all_together as together
import knowledge_evolution as evolution
import slim_cost
import svmax
import two_head as heads
from figures import differences, lines, panels
from matplotlib.figure import Figure
from results import Column, Results, Row, compared, table, tally

ROOT = Path(__file__).parents[2]
PAGES = Path(__file__).parent / "pages"
PLAIN, STRONG = {"regularization": "plain"}, {"regularization": "strong"}


def svmax_rows(losses: list[str]) -> list[Row]:
    """Return a row for each loss and regularizer, compared with the loss alone."""
    rows = []
    for loss in losses:
        for name in svmax.REGULARIZERS:
            where = {"loss": loss, "regularizer": name}
            control = None if name == "none" else {"loss": loss, "regularizer": "none"}
            rows.append(Row(f"{loss}, {name}" if name != "none" else f"**{loss}** alone", where, control))
    return rows


def svmax_columns(measure: str) -> list[Column]:
    """Return a column for each learning rate."""
    return [Column(f"rate {rate:g}", measure, {"learning rate": rate}) for rate in svmax.RATES]


def svmax_table(results: Results, measure: str) -> str:
    """Return a measure by learning rate."""
    return table(results, measure, svmax_rows(list(svmax.LOSSES)), svmax_columns(measure))


def svmax_tally(results: Results) -> str:
    """Return how often each regularizer changes a measure significantly, over losses and learning rates."""
    rows = svmax_rows(list(svmax.LOSSES))
    cells = {measure: compared(results, rows, svmax_columns(measure)) for measure in svmax.MEASURES}
    lines = [f"| significant changes | {' | '.join(svmax.MEASURES)} |", "|---" * (1 + len(svmax.MEASURES)) + "|"]
    for name in list(svmax.REGULARIZERS)[1:]:
        own = [place for place, row in enumerate(rows) if row.where["regularizer"] == name]
        found = [tally([c for place in own for c in cells[measure][place]]) for measure in svmax.MEASURES]
        lines.append(f"| {name} | {' | '.join(found)} |")
    return "\n".join(lines)


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


def weight_table(results: Results, loss: str, measure: str = "R@1") -> str:
    """Return a measure by the regularizer's weight, compared with the loss alone."""
    alone = {"loss": loss, "regularizer": "none", "learning rate": 0.1, "weight": 0.0}
    columns = [Column(f"weight {weight:g}", measure, {"weight": weight}) for weight in svmax.WEIGHTS]
    names = [name for name in svmax.REGULARIZERS if name != "none"]
    rows = [Row(name, {"loss": loss, "regularizer": name, "learning rate": 0.1}, alone) for name in names]
    return table(results, f"{loss}: {measure}", rows, columns)


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


def head_rows(classes: str, **where: object) -> list[Row]:
    """Return the methods, compared with cross-entropy on the same batches."""
    base = {"classes": classes, **where}
    control = {**base, "method": heads.P_X_K}
    methods = (heads.SHUFFLED, heads.P_X_K, heads.SEMI_HARD, heads.HARD)
    return [Row(m, {**base, "method": m}, None if m == heads.P_X_K else control) for m in methods]


def head_table(results: Results, classes: str) -> str:
    """Return all measures of one setting."""
    columns = [Column(name, name, {}) for name in heads.MEASURES]
    return table(results, classes, head_rows(classes), columns)


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


def why_table(results: Results) -> str:
    """Return the longer training and the smaller weight."""
    base = {"classes": heads.BALANCED}
    longer, short = {**base, "steps": 600}, {**base, "steps": 150}
    rows = [
        Row("cross-entropy, P x K, 4 times as long", {**longer, "method": heads.P_X_K}),
        Row("hard, 4 times as long", {**longer, "method": heads.HARD}, {**longer, "method": heads.P_X_K}),
        Row("cross-entropy, P x K", {**short, "method": heads.P_X_K}),
        *(
            Row(f"{m}, weight {w:g}", {**short, "method": m, "weight": w}, {**short, "method": heads.P_X_K})
            for m in (heads.SEMI_HARD, heads.HARD)
            for w in (0.1, 1.0)
        ),
    ]
    return table(results, "why", rows, [Column(n, n, {}) for n in ("accuracy", "R@1", "MAP@R", "R@1, pooled")])


def evolution_rows(**base: object) -> list[Row]:
    """Return the methods, compared with one long training; the slim network with one of its size trained alone."""
    long, alone = ({**base, "method": m} for m in (evolution.LONG, evolution.ALONE))
    dense = [Row(m, {**base, "method": m}, None if m == evolution.LONG else long) for m in evolution.METHODS[:-1]]
    return [*dense, Row(evolution.ALONE, alone)]


def evolution_table(results: Results, title: str, **base: object) -> str:
    """Return the last generation's score, full size and slim."""
    last = evolution.GENERATIONS
    dense = evolution_rows(**base)[:-1]
    slim = [
        Row("the slim network of KELS", {**base, "method": "KELS"}, {**base, "method": evolution.ALONE}),
        Row(evolution.ALONE, {**base, "method": evolution.ALONE}),
    ]
    return "\n\n".join(
        [
            table(results, f"{title}, full size", dense, [Column("score, %", f"dense {last}", {})]),
            table(results, f"{title}, slim size", slim, [Column("score, %", f"slim {last}", {})]),
        ]
    )


def slim_why_table(results: Results) -> str:
    """Return what else was tried for the slim network, compared with the published number of generations."""
    base = {"regularization": "plain"}
    rows = [Row("KELS", {**base, "method": "KELS"}), Row(evolution.ALONE, {**base, "method": evolution.ALONE})]
    rows += [Row(m, {**base, "method": m}, {**base, "method": "KELS"}) for m in evolution.WHY]
    last = evolution.GENERATIONS
    return table(
        results, "score, %", rows, [Column("full size", f"dense {last}", {}), Column("slim", f"slim {last}", {})]
    )


def evolution_figure(results: Results, *settings: dict[str, object]) -> Figure:
    """Draw the score by generation, full size and slim."""
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


def together_table(results: Results, data: str) -> str:
    """Return all measures, compared with the plain metric loss."""
    base = {"data": data}
    control = {**base, "method": "triplet, semi-hard"}
    rows = [Row(m, {**base, "method": m}, None if m == "triplet, semi-hard" else control) for m in together.METHODS]
    return table(results, data, rows, [Column(name, name, {}) for name in together.MEASURES])


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


def cost_table(results: Results) -> str:
    """Return sizes and times of the dense and the slim networks."""
    rows = [Row(f"{m}, {pixels} px", {"model": m}) for m, pixels in slim_cost.MODELS.items()]
    return table(results, "8 images", rows, [Column(name, name, {}, digits=2) for name in slim_cost.MEASURES])


def tables(folder: Path) -> dict[str, Callable[[], str]]:
    """Return what the pages' placeholders stand for."""
    grid, weights = Results.load(folder, "svmax"), Results.load(folder, "svmax", "svmax_weight")
    head, why = Results.load(folder, "two_head"), Results.load(folder, "two_head", "two_head_why")
    few = Results.load(folder, "evolution", "evolution_strong")
    new, more = (Results.load(folder, f"evolution_{name}") for name in ("retrieval", "more_images"))
    cost = Results.load(folder, "slim_cost")
    all_parts = Results.load(folder, "all_together", "all_together_digits")
    return {
        "svmax runs": lambda: grid.provenance,
        "svmax tally": lambda: svmax_tally(grid),
        "svmax recall": lambda: svmax_table(grid, "R@1"),
        "svmax map": lambda: svmax_table(grid, "MAP@R"),
        "svmax rank": lambda: svmax_table(grid, "effective rank"),
        "weight runs": lambda: weights.provenance,
        "weight contrastive": lambda: weight_table(weights, "contrastive"),
        "weight triplet": lambda: weight_table(weights, "triplet, hard"),
        "two_head runs": lambda: head.provenance,
        "two_head balanced": lambda: head_table(head, heads.BALANCED),
        "two_head long-tailed": lambda: head_table(head, heads.LONG_TAILED),
        "two_head why": lambda: why_table(why),
        "evolution runs": lambda: few.provenance,
        "evolution plain": lambda: evolution_table(few, "20 images a class", **PLAIN),
        "evolution strong": lambda: evolution_table(few, "20 images a class, strong", **STRONG),
        "evolution retrieval": lambda: evolution_table(new, "R@1, new classes", **PLAIN),
        "evolution more": lambda: evolution_table(more, "100 images a class", **PLAIN),
        "evolution why": lambda: slim_why_table(Results.load(folder, "evolution", "evolution_why")),
        "slim cost": lambda: cost_table(cost),
        "together runs": lambda: all_parts.provenance,
        "together Fashion-MNIST": lambda: together_table(all_parts, "Fashion-MNIST"),
        "together digits": lambda: together_table(all_parts, "digits"),
    }


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


def pages(folder: Path) -> dict[str, str]:
    """Return the pages by file name, as Markdown."""
    available = tables(folder)
    return {
        path.name: re.sub(r"{{(.+?)}}", lambda match: available[match[1]](), path.read_text())
        for path in sorted(PAGES.glob("*.md"))
    }


def main() -> None:
    """Write all pages and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of the CSV files")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "studies", help="folder of the pages")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, text in pages(arguments.results).items():
        (arguments.out / name).write_text(text)
    for name, draw in figures(arguments.results).items():
        draw().savefig(arguments.out / name, dpi=110)


if __name__ == "__main__":
    main()
