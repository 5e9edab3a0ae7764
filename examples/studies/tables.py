"""The tables of the studies' pages."""

from collections.abc import Callable, Sequence
from pathlib import Path

import all_together as together
import knowledge_evolution as evolution
import slim_cost
import svmax
import tables_glyphs
import tables_marks
import tables_slim_start
import two_head as heads
from map_measures import FAITHFULNESS, LOCALISATION
from maps import CLASSIFIER, EMBEDDER, GRAD_CAM, METHODS
from results import Column, Estimate, Results, Row, cell, compared, difference, table, tally

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


def svmax_why_table(results: Results) -> str:
    """Return SVMax on other images, and in a longer training, each compared with the loss alone."""
    rows = []
    for setting in svmax.WHY.settings:
        base = {name: setting[name] for name in ("data", "steps", "loss")}
        control = {**base, "regularizer": "none"}
        label = f"{setting['data']}, {setting['steps']} steps: {setting['loss']}, {setting['regularizer']}"
        alone = setting["regularizer"] == "none"
        rows.append(Row(label, {**base, "regularizer": setting["regularizer"]}, None if alone else control))
    return table(results, "rate 1", rows, [Column(name, name, {}) for name in svmax.MEASURES])


def weight_table(results: Results, loss: str, measure: str = "R@1") -> str:
    """Return a measure by the regularizer's weight, compared with the loss alone."""
    alone = {"loss": loss, "regularizer": "none", "learning rate": 0.1, "weight": 0.0}
    columns = [Column(f"weight {weight:g}", measure, {"weight": weight}) for weight in svmax.WEIGHTS]
    names = [name for name in svmax.REGULARIZERS if name != "none"]
    rows = [Row(name, {"loss": loss, "regularizer": name, "learning rate": 0.1}, alone) for name in names]
    return table(results, f"{loss}: {measure}", rows, columns)


def head_rows(classes: str, **where: object) -> list[Row]:
    """Return the methods, compared with cross-entropy on the same batches."""
    base = {"classes": classes, **where}
    control = {**base, "method": heads.P_X_K}
    methods = (heads.SHUFFLED, heads.P_X_K, heads.SEMI_HARD, heads.HARD)
    return [Row(m, {**base, "method": m}, None if m == heads.P_X_K else control) for m in methods]


def head_table(results: Results, classes: str) -> str:
    """Return the measures of one setting; only imbalanced classes have a rare half."""
    shown = [m for m in heads.MEASURES if m != "MAP@R, pooled" and (m != heads.RARE or classes == heads.LONG_TAILED)]
    return table(results, classes, head_rows(classes), [Column(name, name, {}) for name in shown])


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
    """Return the last generation's score of the networks of full size."""
    column = Column("score, %", f"dense {evolution.GENERATIONS}", {})
    return table(results, title, evolution_rows(**base)[:-1], [column])


def slim_columns() -> list[Column]:
    """Return the last generation's scores: of the dense network, and of the slim ones beside it."""
    last = evolution.GENERATIONS
    slim = {"slim": "slim, as published", "anew": "slim, statistics anew", "tuned": "slim, then fine-tuned"}
    control = f"dense {last}"
    columns = [Column(label, f"{size} {last}", {}, control=control) for size, label in slim.items()]
    return [Column("dense", control, {}), *columns]


def slim_table(results: Results) -> str:
    """Return the slim network of KELS beside the dense one of the same run, in every setting on Fashion-MNIST."""
    settings = {
        "20 images a class": ("classification", 20, "plain", "KELS", 20),
        "20, label smoothing and augmentation": ("classification", 20, "strong", "KELS", 20),
        "100 images a class": ("classification", 100, "plain", "KELS", 8),
        "R@1 of new classes": ("retrieval", 20, "plain", "KELS", 20),
        "20, published start": ("classification", 20, "plain", evolution.PUBLISHED, 20),
        "20, generations 3 times as long": ("classification", 20, "plain", evolution.LONGER, 60),
        "20, ten generations of half the length": ("classification", 20, "plain", evolution.MORE_GENERATIONS, 10),
    }
    names = ("task", "images a class", "regularization", "method", "epochs a generation")
    rows = [Row(label, dict(zip(names, values, strict=True))) for label, values in settings.items()]
    return table(results, "score, %", rows, slim_columns())


def alone_table(results: Results) -> str:
    """Return the slim network as published, anew and fine-tuned, and a network of its size trained alone."""
    names = ("task", "images a class", "regularization")
    settings = {
        "20 images a class": ("classification", 20, "plain"),
        "20, label smoothing and augmentation": ("classification", 20, "strong"),
        "100 images a class": ("classification", 100, "plain"),
        "R@1 of new classes": ("retrieval", 20, "plain"),
    }
    lines = [
        "| score, % | slim, statistics anew | slim, then fine-tuned | slim size, alone | fine-tuned beyond alone |",
        "|---" * 5 + "|",
    ]
    last = evolution.GENERATIONS
    for label, values in settings.items():
        where = dict(zip(names, values, strict=True))
        anew, tuned = (results.values(f"{size} {last}", {**where, "method": "KELS"}) for size in ("anew", "tuned"))
        alone = results.values(f"slim {last}", {**where, "method": evolution.ALONE})
        if anew and alone:
            cells = [Estimate.of([*values.values()]).text() for values in (anew, tuned, alone)]
            change = difference(tuned, alone)
            lines.append(f"| {label} | {' | '.join(cells)} | {change.text(sign=True) if change else ''} |")
    return "\n".join(lines)


def generations_table(results: Results, title: str) -> str:
    """Return the scores by generation, of the slim network with the difference from the dense one."""
    generations = range(1, evolution.GENERATIONS + 1)
    lines = [f"| {title} | {' | '.join(map(str, generations))} |", "|---" * (1 + len(generations)) + "|"]
    labels = {"dense": "dense", "slim": "slim, as published", "anew": "slim, statistics anew"}
    for size, label in labels.items():
        controls = {g: "" if size == "dense" else f"dense {g}" for g in generations}
        columns = [Column("", f"{size} {g}", {}, control=controls[g]) for g in generations]
        lines.append(f"| {label} | {' | '.join(str(cell(results, Row('', {}), column)) for column in columns)} |")
    return "\n".join(lines)


def batches_table(results: Results) -> str:
    """Return the score by the number of batches that the statistics come from, beside that of the most batches."""
    rows = [Row(f"{n} images a class", {"images a class": n}) for n in (20, 100)]
    most = evolution.COUNTS[-1]
    columns = [Column(name, name, {}) for name in ("dense", "as published")]
    columns += [Column(str(n), f"batches: {n}", {}, control=f"batches: {most}") for n in evolution.COUNTS[:-1]]
    return table(results, "score, %", rows, [*columns, Column(str(most), f"batches: {most}", {})])


def together_table(results: Results, data: str) -> str:
    """Return all measures, compared with the plain metric loss."""
    base = {"data": data}
    control = {**base, "method": "triplet, semi-hard"}
    rows = [Row(m, {**base, "method": m}, None if m == "triplet, semi-hard" else control) for m in together.METHODS]
    return table(results, data, rows, [Column(name, name, {}) for name in together.MEASURES])


def cost_table(results: Results) -> str:
    """Return sizes and times of the dense and the slim networks."""
    rows = [Row(f"{m}, {pixels} px", {"model": m}) for m, pixels in slim_cost.MODELS.items()]
    return table(results, "8 images", rows, [Column(name, name, {}, digits=2) for name in slim_cost.MEASURES])


def map_rows(network: str) -> list[Row]:
    """Return the methods for a network, compared with Grad-CAM."""
    control = {"network": network, "method": GRAD_CAM}
    return [Row(m, {"network": network, "method": m}, None if m == GRAD_CAM else control) for m in METHODS[network]]


def map_table(results: Results, network: str, images: str, measures: Sequence[str]) -> str:
    """Return the measures of a network's maps."""
    return table(results, f"{network}, {images}", map_rows(network), [Column(name, name, {}) for name in measures])


def suite_cost(folder: Path) -> str:
    """Return how many rows there are and how long they took together."""
    seconds = [float(row["seconds"]) for path in folder.glob("*.csv") for row in Results.load(folder, path.stem).rows]
    return f"{len(seconds):,} runs, {sum(seconds) / 3600:.1f} core-hours"


def tables(folder: Path) -> dict[str, Callable[[], str]]:
    """Return what the pages' placeholders stand for."""
    grid, weights = Results.load(folder, "svmax"), Results.load(folder, "svmax", "svmax_weight")
    head, why = Results.load(folder, "two_head"), Results.load(folder, "two_head", "two_head_why")
    few = Results.load(folder, "evolution", "evolution_strong")
    new, more = (Results.load(folder, f"evolution_{name}") for name in ("retrieval", "more_images"))
    slim = Results.load(folder, *(f"evolution{name}" for name in ("", "_strong", "_more_images", "_retrieval", "_why")))
    cost, published = Results.load(folder, "slim_cost"), Results.load(folder, "evolution_published")
    all_parts = Results.load(folder, "all_together_glyphs", "all_together", "all_together_digits")
    photographs, clutter = Results.load(folder, "l2_caf_photographs"), Results.load(folder, "l2_caf")
    return {
        **tables_glyphs.tables(folder),
        **tables_marks.tables(folder),
        **tables_slim_start.tables(folder),
        "suite cost": lambda: suite_cost(folder),
        "svmax runs": lambda: grid.provenance,
        "svmax tally": lambda: svmax_tally(grid),
        "svmax recall": lambda: svmax_table(grid, "R@1"),
        "svmax map": lambda: svmax_table(grid, "MAP@R"),
        "svmax rank": lambda: svmax_table(grid, "effective rank"),
        "svmax why": lambda: svmax_why_table(Results.load(folder, "svmax_why")),
        "weight runs": lambda: weights.provenance,
        "weight contrastive": lambda: weight_table(weights, "contrastive"),
        "weight rank": lambda: weight_table(weights, "contrastive", "effective rank"),
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
        "slim": lambda: slim_table(slim),
        "slim alone": lambda: alone_table(slim),
        "slim published": lambda: generations_table(published, "digits, accuracy in %"),
        "slim published runs": lambda: published.provenance,
        "slim batches": lambda: batches_table(Results.load(folder, "evolution_batches")),
        "slim cost": lambda: cost_table(cost),
        "together characters runs": lambda: Results.load(folder, "all_together_glyphs").provenance,
        "together few runs": lambda: Results.load(folder, "all_together", "all_together_digits").provenance,
        "together characters": lambda: together_table(all_parts, together.GLYPHS),
        "together Fashion-MNIST": lambda: together_table(all_parts, "Fashion-MNIST"),
        "together digits": lambda: together_table(all_parts, "digits"),
        "photograph runs": lambda: photographs.provenance,
        "photographs classifier": lambda: map_table(photographs, CLASSIFIER, "photographs", FAITHFULNESS),
        "photographs embedder": lambda: map_table(photographs, EMBEDDER, "photographs", FAITHFULNESS),
        "clutter runs": lambda: clutter.provenance,
        "clutter classifier": lambda: map_table(clutter, CLASSIFIER, "digits on clutter", LOCALISATION + FAITHFULNESS),
        "clutter embedder": lambda: map_table(clutter, EMBEDDER, "digits on clutter", LOCALISATION + FAITHFULNESS),
    }
