"""L2-CAF of a sequence, a video and points, beside the published optimiser and LayerGradCam, as a Markdown table.

python tests/benchmarks/l2_caf_dimensions.py          # about ten minutes
python tests/benchmarks/l2_caf_dimensions.py PointNet # these networks alone
"""

import sys
from typing import Any

import torch
from captum.attr import LayerGradCam
from interleaved import interleaved, machine
from torch import Tensor, nn
from torchvision.models.video import r3d_18

from pml_extensions.attr import L2CAF, PublishedSGD, last_feature_layer


class M5(nn.Module):
    """Raw sound through one-dimensional convolutions, as in Dai et al., arXiv:1610.00087; 35 classes."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for before, after, kernel, stride in ((1, 32, 80, 4), (32, 32, 3, 1), (32, 64, 3, 1), (64, 64, 3, 1)):
            convolution = nn.Conv1d(before, after, kernel, stride)
            blocks.append(nn.Sequential(convolution, nn.BatchNorm1d(after), nn.ReLU(), nn.MaxPool1d(4)))
        self.features, self.head = nn.Sequential(*blocks), nn.Linear(64, 35)

    def forward(self, sound: Tensor) -> Tensor:
        """Return logits for sounds (B, 1, samples)."""
        return self.head(self.features(sound).mean(2))


class PointNet(nn.Module):
    """Every point by itself, the greatest value of each channel, a classifier; as in Qi et al., arXiv:1612.00593."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 64), (64, 128), (128, 256)):
            layers += [nn.Conv1d(before, after, 1), nn.BatchNorm1d(after), nn.ReLU()]
        self.points = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 40))

    def forward(self, points: Tensor) -> Tensor:
        """Return logits for clouds of points (B, 3, N)."""
        return self.head(self.points(points).amax(2))


def row(name: str, model: nn.Module, layer_name: str, x: Tensor, target: Tensor | None) -> str:
    """Return the objectives of the first example, and the seconds that a map of all examples took, once."""
    layer = model.get_submodule(layer_name) if layer_name else last_feature_layer(model, x)
    explain, grad_cam, classes = L2CAF(model, layer), LayerGradCam(model, layer), model(x).argmax(1)
    found: dict[str, Any] = {}
    rivals = {
        "ours": lambda: found.update(ours=explain.attribute(x, target, return_report=True)),
        "published": lambda: found.update(
            published=explain.attribute(x, target, solver=PublishedSGD(), return_report=True)
        ),
        "Grad-CAM": lambda: found.update(grad_cam=grad_cam.attribute(x, classes)),
    }
    samples = interleaved(rivals, rounds=1, warmup=0)
    (maps, ours), (_, published) = found["ours"], found["published"]
    if found["grad_cam"].shape != maps.shape:
        raise AssertionError(f"maps of {name} have shape {tuple(maps.shape)}, not that of LayerGradCam")
    cells = [
        name,
        layer_name or "last",
        " x ".join(map(str, maps.shape[2:])),
        "class" if target is not None else "whole output",
        f"{ours.objective[0]:.6g}",
        f"{published.objective[0]:.6g}",
        "closed form" if ours.exact.all() else int(ours.steps.max()),
        int(published.steps.max()),
        *(f"{taken[0]:.2f}" for taken in samples.values()),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    torch.manual_seed(0)
    time = torch.arange(16000) / 16000
    sound = torch.stack(
        [torch.sin(2 * torch.pi * pitch * time) * (-20 * (time - 0.4).square()).exp() for pitch in (220, 440)]
    )
    networks = {
        "M5, 16,000 samples": (M5(), sound[:, None], ("", "features.2")),
        "r3d_18, 4 frames of 32 x 32": (r3d_18(), torch.randn(2, 3, 4, 32, 32), ("", "layer3")),
        "PointNet, 256 points": (PointNet(), nn.functional.normalize(torch.randn(2, 3, 256), dim=1), ("", "points.5")),
    }
    print(f"{machine()}\n")
    print(
        "| network | layer | places | kept | L2CAF | published | "
        "passes | published's | s | published's | LayerGradCam's |"
    )
    print("| --- " * 11 + "|")
    for name, (model, x, layers) in networks.items():
        if sys.argv[1:] and not any(part in name for part in sys.argv[1:]):
            continue
        settle(model, x)
        for layer in layers:
            for target in (None, model(x).argmax(1)):
                print(row(name, model, layer, x, target), flush=True)


@torch.no_grad()
def settle(model: nn.Module, x: Tensor) -> None:
    """Give batch norms the statistics of some noise like the input, so that no signal dies on its way."""
    torch.manual_seed(0)
    model.train()
    for _ in range(20):
        model(x.repeat(4, *[1] * (x.ndim - 1)) + 0.1 * torch.randn(4 * len(x), *x.shape[1:]))
    model.eval()


if __name__ == "__main__":
    main()
