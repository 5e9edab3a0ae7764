"""Slim against dense: parameters, operations and measured time of a pass, for some of timm's architectures.

    python examples/studies/slim_cost.py            # go on with the study: rows/slim_cost.csv
    python examples/studies/slim_cost.py --quick    # seconds

Passes of the two networks alternate, so that whatever else the machine does falls on both.
"""

import statistics
import time

import timm
import torch
from runner import Measures, Setting, Study, main
from torch import Tensor, nn

from pml_extensions.evolution import KELS

MODELS = {
    "test_resnet": 28,
    "resnet18": 64,
    "densenet121": 64,
    "mobilenetv3_small_100": 64,
    "vit_tiny_patch16_224": 224,
}
MEASURES = (
    *(f"{quantity}, {size}" for quantity in ("M parameters", "M operations", "CPU ms") for size in ("dense", "slim")),
    "time, slim / dense",
)


@torch.no_grad()
def times(models: list[nn.Module], images: Tensor, repeats: int) -> list[list[float]]:
    """Return the processor's milliseconds of every pass, alternating between the models, after a first one each."""
    found: list[list[float]] = [[] for _ in models]
    for _ in range(1 + repeats):
        for model, own in zip(models, found, strict=True):
            start = time.process_time()
            model(images)
            own.append(1000 * (time.process_time() - start))
    return [own[1:] for own in found]


def run(setting: Setting, seed: int, quick: bool) -> Measures:  # noqa: ARG001 (the seed is set already)
    """Return sizes and times of one architecture."""
    images = torch.randn(2, 3, setting["pixels"], setting["pixels"])
    size = {"img_size": setting["pixels"]} if setting["model"].startswith("vit") else {}
    model = timm.create_model(setting["model"], num_classes=10, **size).eval()
    split = KELS(0.5, example_input=images)
    sizes, slim = split.compare(model), split.slim(model).eval()
    batch = torch.randn(setting["images"], *images.shape[1:])
    dense_times, slim_times = times([model, slim], batch, repeats=2 if quick else 15)
    ratios = [s / d for s, d in zip(slim_times, dense_times, strict=True)]
    values = (
        sizes.dense_parameters / 1e6,
        sizes.slim_parameters / 1e6,
        sizes.dense_operations / 1e6,
        sizes.slim_operations / 1e6,
        statistics.median(dense_times),
        statistics.median(slim_times),
        statistics.median(ratios),
    )
    return dict(zip(MEASURES, values, strict=True))


SETTINGS = [{"model": model, "pixels": pixels, "images": 8} for model, pixels in MODELS.items()]
STUDIES = (Study("slim_cost", SETTINGS, MEASURES, run),)

if __name__ == "__main__":
    main(*STUDIES)
