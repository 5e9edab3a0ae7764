"""L2-CAF: attention maps of a real ImageNet network, beside Grad-CAM."""

from collections.abc import Sequence
from pathlib import Path

from attention_maps import figure, panels
from first_runs.runs import Advance, Part, Run


def run(seeds: Sequence[int], folder: Path, advance: Advance) -> list[Run]:  # noqa: ARG001 (nothing is drawn by chance)
    """Draw the figure; there is nothing to train."""
    drawn = panels()
    advance(0.8)
    figure(drawn).savefig(folder / "attention_maps.png", dpi=90)
    advance(0.2)
    return []


ATTENTION = Part("attention", "L2-CAF: attention maps, drawn in attention_maps.png", 6, run)
