"""What the README and the guides say of the studies is what their rows say: the figures, and the words up or down."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SVMAX = "regularizer=SVMax, exponential | regularizer=none; weight=0.0"
LONG = "method=KELS | method=one long training"
HEADS = "classes=balanced; method=two heads, semi-hard | method=cross-entropy"
SEEN = {  # the difference that a claim is of, by the claim's name for it
    "N-pairs 0.01": f"up | svmax_glyphs_rate | R@1 | loss=N-pairs; learning rate=0.01; {SVMAX}",
    "N-pairs 0.1": f"up | svmax_glyphs | R@1 | loss=N-pairs; {SVMAX}",
    "N-pairs 1": f"up | svmax_glyphs_rate | R@1 | loss=N-pairs; learning rate=1.0; {SVMAX}",
    "contrastive 0.1": f"down | svmax_glyphs | R@1 | loss=contrastive; {SVMAX}",
    "contrastive 1": f"down | svmax_glyphs_rate | R@1 | loss=contrastive; learning rate=1.0; {SVMAX}",
    "triplet, hard": f"level | svmax_glyphs | R@1 | loss=triplet, hard; {SVMAX}",
    "KELS": f"up | evolution_glyphs | dense 5 | {LONG}",
    "restarts": "down | evolution_glyphs | dense 5 | method=restarts, no reset | method=one long training",
    "heads, accuracy": f"up | two_head_glyphs | accuracy | {HEADS}, P x K",
    "heads, R@1": f"up | two_head_glyphs | R@1, pooled | {HEADS}, P x K",
    "heads, shuffled": f"down | two_head_glyphs | accuracy | {HEADS}, shuffled",
    "triplets": "up | semi_hard | R@1 | triplets=published, in PML's loss | triplets=PML's semihard",
}
CLAIMS = {
    "docs/svmax.md": (
        "N-pairs gain [N-pairs 0.01] at learning rate 0.01, [N-pairs 0.1] at 0.1 and [N-pairs 1] at 1",
        "Contrastive loses [contrastive 0.1] at 0.1 and [contrastive 1] at 1",
        "Hard triplets gain [triplet, hard], which is not clear",
    ),
    "docs/choosing.md": (
        "accuracy rises by [heads, accuracy] points and R@1 of new ones by [heads, R@1] beside cross-entropy",
        "by [triplets] points of R@1",
        "KELS is [KELS] points ahead of it",
    ),
    "docs/knowledge_evolution.md": ("ends [KELS] points above", "restarts without a reset end [restarts] below"),
    "docs/two_head.md": (
        "rises by [heads, accuracy] points and R@1 of new characters by [heads, R@1]",
        "classifies better still by [heads, shuffled]",
    ),
    "README.md": ("KELS is [KELS] points ahead of one long training",),
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
