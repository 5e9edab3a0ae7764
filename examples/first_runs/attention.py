"""L2-CAF: attention maps of a real ImageNet network, beside Grad-CAM."""

from pathlib import Path

from attention_maps import figure, panels
from first_runs.runs import Run

TITLE = "L2-CAF: attention maps, drawn in attention_maps.png"


def run(seed: int, folder: Path) -> list[Run]:  # noqa: ARG001 (nothing is drawn by chance)
    """Draw the figure; there is nothing to train."""
    figure(panels()).savefig(folder / "attention_maps.png", dpi=90)
    return []
