"""The tables of the studies on characters."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import semi_hard
import svmax_glyphs as svmax
import two_head as heads
import two_head_glyphs as two_head
from knowledge_evolution import ALONE, LONG, RESTARTS
from results import Cell, Column, Results, Row, compared, table
from scipy import stats
from spread import NONE, SVMAX

RATES = (0.01, 0.1, 1.0)
LENGTHS = (svmax.STEPS, 4 * svmax.STEPS)
RESETS = (RESTARTS, "WELS", "later layers", "KELS")
SVMAX_FILES, RIVAL_FILES, WEIGHT_FILES, LENGTH_FILES = (
    ("svmax_glyphs", f"svmax_glyphs_{part}") for part in ("rate", "rivals", "weight", "longer")
)


def arrows(results: Results, title: str, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return a table of the means without and with something, in bold where the paired difference is significant."""
    lines = [f"| {title} | {' | '.join(column.label for column in columns)} |", "|---" * (1 + len(columns)) + "|"]
    for row, cells in zip(rows, compared(results, rows, columns), strict=True):
        if any(cell.estimate for cell in cells):
            shown = [arrow(results, row, column, cell) for column, cell in zip(columns, cells, strict=True)]
            lines.append(f"| {row.label} | {' | '.join(shown)} |")
    return "\n".join(lines) if len(lines) > 2 else f"({title}: not measured yet.)"


def arrow(results: Results, row: Row, column: Column, cell: Cell) -> str:
    """Return "without → with", the means over the seeds that both have."""
    own = results.values(column.measure, {**row.where, **column.where})
    control = results.values(column.measure, {**column.where, **(row.control or {})})
    shared = own.keys() & control.keys()
    if not shared:
        return ""
    without, with_it = (sum(values[seed] for seed in shared) / len(shared) for values in (control, own))
    text = f"{without:.1f}\u00a0→\u00a0{with_it:.1f}"
    return f"**{text}**" if cell.significant else text


def beside_alone(loss: str, name: str, **where: Any) -> Row:
    """Return the row of a regularizer, compared with the loss alone."""
    alone = {"loss": loss, "regularizer": NONE, "weight": 0.0}
    return Row(name, {"loss": loss, "regularizer": name, **where}, {**where, **alone})


def by_loss(results: Results) -> str:
    """Return what SVMax at its published weight does to every loss."""
    where = {"steps": svmax.STEPS, "learning rate": svmax.RATE}
    rows = [beside_alone(loss, SVMAX, **where, weight=svmax.WEIGHT[loss]) for loss in svmax.LOSSES]
    rows = [Row(loss, row.where, row.control) for loss, row in zip(svmax.LOSSES, rows, strict=True)]
    return arrows(results, "without → with", rows, [Column(m, m, {}) for m in ("R@1", "MAP@R", "effective rank")])


def by_rate(results: Results, measure: str) -> str:
    """Return a measure by learning rate, without and with SVMax at its published weight."""
    rows = []
    for loss in svmax.SWEPT:
        row = beside_alone(loss, SVMAX, steps=svmax.STEPS, weight=svmax.WEIGHT[loss])
        rows += [Row(f"{loss} alone", row.control or {}), Row(f"{loss}, SVMax", row.where, row.control)]
    return table(results, measure, rows, [Column(f"rate {r:g}", measure, {"learning rate": r}) for r in RATES])


def loss_columns(measure: str) -> list[Column]:
    """Return a column for each of the two losses, at the one rate."""
    where = {"learning rate": svmax.RATE, "steps": svmax.STEPS}
    return [Column(f"{loss}: {measure}", measure, {"loss": loss, **where}) for loss in svmax.SWEPT]


def rival_rows() -> dict[str, Row]:
    """Return the terms by name, compared with the loss alone; every one has one weight for each loss."""
    return {name: Row(name, {"regularizer": name}, {"regularizer": NONE}) for name in (SVMAX, *svmax.RIVALS)}


def beside_rivals(results: Results, measure: str) -> str:
    """Return a measure without a term, with SVMax at its published weight, and with every rival at its chosen one."""
    rows = [Row("no term", {"regularizer": NONE})]
    for name, row in rival_rows().items():
        weights = [svmax.WEIGHT[loss] if name == SVMAX else svmax.CHOSEN[loss][name] for loss in svmax.SWEPT]
        rows.append(Row(f"{name}, {' and '.join(f'{weight:g}' for weight in weights)}", row.where, row.control))
    return table(results, "term, its weights", rows, loss_columns(measure))


def by_candidate(results: Results, loss: str) -> str:
    """Return the recall on the sixth seed, of which each rival's weight is chosen."""
    rows = [Row(name, {"loss": loss, "regularizer": name}) for name in svmax.RIVALS]
    return table(results, f"{loss}: R@1", rows, [Column(f"{w:g}", "R@1", {"weight": w}) for w in svmax.CANDIDATES])


def by_weight(results: Results, measure: str) -> str:
    """Return a measure by SVMax's weight, compared with the loss alone."""
    control = {"regularizer": NONE, "weight": 0.0}
    weights = [Row(f"weight {w:g}", {"regularizer": SVMAX, "weight": w}, control) for w in svmax.WEIGHTS]
    return table(results, "SVMax", [Row("none", control), *weights], loss_columns(measure))


def by_length(results: Results, measure: str) -> str:
    """Return a measure of short and long trainings, without and with SVMax at its published weight."""
    rows = []
    for loss in svmax.LENGTHENED:
        row = beside_alone(loss, SVMAX, weight=svmax.WEIGHT[loss], **{"learning rate": svmax.RATE})
        rows += [Row(f"{loss} alone", row.control or {}), Row(f"{loss}, SVMax", row.where, row.control)]
    return table(results, measure, rows, [Column(f"{n} steps", measure, {"steps": n}) for n in LENGTHS])


def gains(results: Results) -> list[tuple[str, float, float]]:
    """Return the loss, the rank without SVMax and the gain in R@1 of every setting at the published weight."""
    found = []
    for loss, rate in itertools.product(svmax.LOSSES, RATES):
        where = {"loss": loss, "learning rate": rate, "steps": svmax.STEPS}
        alone, own = {**where, "regularizer": NONE}, {**where, "regularizer": SVMAX, "weight": svmax.WEIGHT[loss]}
        without, with_it = results.values("R@1", alone), results.values("R@1", own)
        shared = without.keys() & with_it.keys()
        if shared:
            ranks = results.values(svmax.TRAINING_RANK, alone)
            gain = sum(with_it[seed] - without[seed] for seed in shared) / len(shared)
            found.append((loss, sum(ranks[seed] for seed in shared) / len(shared), gain))
    return found


def foretold(results: Results) -> str:
    """Return how well the rank without the regularizer foretells the gain."""
    found = gains(results)
    if len(found) < 5:
        return "not measured yet"
    low, high = ([gain for _, rank, gain in found if (rank < 32) == below] for below in (True, False))
    correlation = stats.spearmanr([rank for _, rank, _ in found], [gain for _, _, gain in found]).statistic
    return (
        f"rank correlation {correlation:.2f} over {len(found)} settings; recall rises in "
        f"{sum(gain > 0 for gain in low)} of the {len(low)} whose rank is below 32, half of the dimensions, and in "
        f"{sum(gain > 0 for gain in high)} of the {len(high)} others"
    )


def triplets(results: Results) -> str:
    """Return all measures of the ways to choose triplets, compared with the published one."""
    where = {"learning rate": semi_hard.RATE}
    control = {**where, "triplets": semi_hard.PUBLISHED}
    rows = [Row(m, {**where, "triplets": m}, None if m == semi_hard.PUBLISHED else control) for m in semi_hard.METHODS]
    return table(results, "triplets", rows, [Column(m, m, {}) for m in ("R@1", "MAP@R", semi_hard.MEASURES[-1])])


def head_rows(classes: str) -> list[Row]:
    """Return the methods, compared with cross-entropy on the same batches."""
    control = {"classes": classes, "method": heads.P_X_K}
    rows = [Row(method, {"classes": classes, "method": method}, control) for method in two_head.METHODS]
    return [Row(heads.P_X_K, control), *rows[1:]]


def heads_in_full(results: Results, classes: str, measures: Sequence[str]) -> str:
    """Return some measures of a setting."""
    return table(results, classes, head_rows(classes), [Column(m, m, {}) for m in measures])


def generations(results: Results) -> str:
    """Return the accuracy at the end, compared with one long training."""
    control = {"method": LONG}
    rows = [Row(LONG, control), *(Row(method, {"method": method}, control) for method in RESETS)]
    return table(results, "accuracy in new typefaces", rows, [Column("%", "dense 5", {})])


def slim_sizes(results: Results) -> str:
    """Return the slim network as copied and with statistics anew, compared with its size trained alone."""
    level = Results(tuple({**row, "anew 5": row["anew 5"] or row["slim 5"]} for row in results.rows))
    rows = [Row(ALONE, {"method": ALONE}), Row("KELS's slim network", {"method": "KELS"}, {"method": ALONE})]
    return table(level, "slim size", rows, [Column("as copied", "slim 5", {}), Column("statistics anew", "anew 5", {})])


def tables(folder: Path) -> dict[str, Callable[[], str]]:
    """Return what the pages' placeholders stand for."""
    grid, three = Results.load(folder, *SVMAX_FILES), Results.load(folder, "semi_hard")
    two, ke = Results.load(folder, "two_head_glyphs"), Results.load(folder, "evolution_glyphs")
    rivals, weights, longer = (Results.load(folder, *names) for names in (RIVAL_FILES, WEIGHT_FILES, LENGTH_FILES))
    everything = Results.load(folder, *dict.fromkeys((*SVMAX_FILES, *RIVAL_FILES, *WEIGHT_FILES, *LENGTH_FILES)))
    choice = Results.load(folder, svmax.CHOICE.name)
    found: dict[str, Callable[[], str]] = {
        "glyphs runs": lambda: everything.provenance,
        "glyphs choice runs": lambda: choice.provenance,
        **{f"glyphs {loss} by candidate": partial(by_candidate, choice, loss) for loss in svmax.SWEPT},
        "glyphs foretold": lambda: foretold(grid),
        "glyphs losses": partial(by_loss, grid),
        "semi_hard runs": lambda: three.provenance,
        "semi_hard": partial(triplets, three),
        "two_head_glyphs runs": lambda: two.provenance,
        "evolution_glyphs runs": lambda: ke.provenance,
        "evolution_glyphs dense": lambda: generations(ke),
        "evolution_glyphs slim": lambda: slim_sizes(ke),
    }
    for measure in ("R@1", "MAP@R", "effective rank"):
        found[f"glyphs {measure} by weight"] = partial(by_weight, weights, measure)
        found[f"glyphs {measure} by length"] = partial(by_length, longer, measure)
        found[f"glyphs {measure} beside rivals"] = partial(beside_rivals, rivals, measure)
        found[f"glyphs {measure} by rate"] = partial(by_rate, grid, measure)
    for classes in (heads.BALANCED, heads.LONG_TAILED):
        rare = [heads.RARE] if classes == heads.LONG_TAILED else []
        shown = ("accuracy", *rare, "R@1, pooled", "R@1, embedding")
        found[f"two_head_glyphs {classes}"] = partial(heads_in_full, two, classes, shown)
        more = ("MAP@R, pooled", "MAP@R, embedding", "CPU ms a step")
        found[f"two_head_glyphs {classes}, more"] = partial(heads_in_full, two, classes, more)
    return found
