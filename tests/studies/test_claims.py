"""What the README and the guides say of the studies is what their rows say: the figures, and the words up or down."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALONE = "regularizer=none; weight=0.0"
SVMAX = f"regularizer=SVMax, exponential | {ALONE}"
BESIDE = "svmax_glyphs+svmax_glyphs_rivals | R@1 | loss=N-pairs;"
LONG = "method=KELS | method=one long training"
WEIGHT = "svmax_glyphs+svmax_glyphs_weight | R@1 |"
HEADS = "classes=balanced; method=two heads, semi-hard | method=cross-entropy"
SEEN = {  # the difference that a claim is of, by the claim's name for it
    "N-pairs 0.01": f"up | svmax_glyphs_rate | R@1 | loss=N-pairs; learning rate=0.01; {SVMAX}",
    "N-pairs 0.1": f"up | svmax_glyphs | R@1 | loss=N-pairs; {SVMAX}",
    "N-pairs 1": f"up | svmax_glyphs_rate | R@1 | loss=N-pairs; learning rate=1.0; {SVMAX}",
    "contrastive 0.1": f"down | svmax_glyphs | R@1 | loss=contrastive; {SVMAX}",
    "contrastive 1": f"down | svmax_glyphs_rate | R@1 | loss=contrastive; learning rate=1.0; {SVMAX}",
    "triplet, hard": f"level | svmax_glyphs | R@1 | loss=triplet, hard; {SVMAX}",
    "N-pairs, longer": f"up | svmax_glyphs_longer | R@1 | loss=N-pairs; {SVMAX}",
    "N-pairs, weight 0.1": f"up | {WEIGHT} loss=N-pairs; weight=0.1; {SVMAX}",
    "N-pairs, weight 10": f"down | {WEIGHT} loss=N-pairs; weight=10.0; {SVMAX}",
    "contrastive, weight 0.1": f"level | {WEIGHT} loss=contrastive; weight=0.1; {SVMAX}",
    "contrastive, weight 10": f"down | {WEIGHT} loss=contrastive; weight=10.0; {SVMAX}",
    "linear": f"up | {BESIDE} regularizer=SVMax, linear; weight=1.0 | {ALONE}",
    "orthogonality": f"up | {BESIDE} regularizer=orthogonality; weight=1.0 | {ALONE}",
    "VISReg": f"up | {BESIDE} regularizer=VISReg; weight=1.0 | {ALONE}",
    "VICReg": f"level | {BESIDE} regularizer=VICReg's terms; weight=1.0 | {ALONE}",
    "WELS": "up | evolution_glyphs | dense 5 | method=WELS | method=one long training",
    "later layers": "up | evolution_glyphs | dense 5 | method=later layers | method=one long training",
    "KELS": f"up | evolution_glyphs | dense 5 | {LONG}",
    "restarts": "down | evolution_glyphs | dense 5 | method=restarts, no reset | method=one long training",
    "heads, accuracy": f"up | two_head_glyphs | accuracy | {HEADS}, P x K",
    "heads, R@1": f"up | two_head_glyphs | R@1, pooled | {HEADS}, P x K",
    "heads, shuffled": f"down | two_head_glyphs | accuracy | {HEADS}, shuffled",
    "slim, pretrained": "up | slim_start | accuracy | channels=leading | channels=none, untrained",
    "slim, even": "level | slim_start | accuracy | channels=evenly spaced | channels=leading",
    "slim, random": "up | slim_start | accuracy | channels=random | channels=leading",
    "triplets": "up | semi_hard | R@1 | triplets=published, in PML's loss | triplets=PML's semihard",
}
CLAIMS = {
    "docs/svmax.md": (
        "N-pairs gain [N-pairs 0.01] at learning rate 0.01, [N-pairs 0.1] at 0.1 and [N-pairs 1] at 1",
        "Contrastive loses [contrastive 0.1] at 0.1 and [contrastive 1] at 1",
        "Hard triplets gain [triplet, hard], which is not clear",
        "after four times the steps N-pairs are still [N-pairs, longer] points behind",
        "a tenth of the weight gains [N-pairs, weight 0.1], ten times the weight loses [N-pairs, weight 10]",
        "0.1 changes nothing clearly ([contrastive, weight 0.1]), and 10 loses [contrastive, weight 10]",
        "as well for N-pairs ([linear])",
        "gains [orthogonality] and VISReg [VISReg]; VICReg's terms gain [VICReg], which is not clear",
    ),
    "docs/choosing.md": (
        "gains [orthogonality] points of R@1, SVMax [N-pairs 0.1]",
        "accuracy rises by [heads, accuracy] points and R@1 of new ones by [heads, R@1] beside cross-entropy",
        "by [triplets] points of R@1",
        "it ends [KELS] points ahead if half of the channels are reset (KELS)",
        "[WELS] with half of the weights (WELS) and [later layers] with the later layers",
    ),
    "docs/knowledge_evolution.md": (
        "ends [KELS] points above",
        "WELS [WELS] and later layers [later layers]. It is",
        "restarts without a reset end [restarts] below",
    ),
    "docs/kels.md": (
        "it ends [slim, pretrained] points above untrained weights",
        "end [slim, even] points below the leading ones, which is not clear, and random ones [slim, random] above",
    ),
    "docs/two_head.md": (
        "rises by [heads, accuracy] points and R@1 of new characters by [heads, R@1]",
        "classifies better still by [heads, shuffled]",
    ),
    "README.md": (
        "[N-pairs 0.01] points of R@1 at learning rate 0.01, [N-pairs 0.1] at 0.1, [N-pairs 1] at 1",
        "gains [orthogonality] at 0.1",
        "KELS is [KELS] points ahead of one long training",
    ),
}


@pytest.fixture(scope="module")
def report(load_once):
    return load_once("report")


@pytest.mark.parametrize(("page", "claim"), [(page, claim) for page, claims in CLAIMS.items() for claim in claims])
def test_a_guide_says_what_the_rows_say(report, page, claim):
    filled = claim
    for name, difference in SEEN.items():
        filled = filled.replace(f"[{name}]", report.fill(f"{{{{{difference}}}}}", report.ROWS).lstrip("+-"))
    assert "[" not in filled
    assert filled.replace("\u00a0", " ") in " ".join((ROOT / page).read_text().split())


def test_every_rival_has_the_weight_that_is_best_on_the_sixth_seed(load):
    study, runner = load("svmax_glyphs"), load("runner")
    rows = runner.read(runner.RESULTS / f"{study.CHOICE.name}.csv", study.CHOICE)
    assert {row["seed"] for row in rows} == {"5"}
    recall = {(row["loss"], row["regularizer"], float(row["weight"])): float(row["R@1"]) for row in rows}
    best = {
        loss: {name: max(study.CANDIDATES, key=lambda weight: recall[loss, name, weight]) for name in study.RIVALS}
        for loss in study.SWEPT
    }
    assert best == study.CHOSEN
