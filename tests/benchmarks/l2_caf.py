"""L2-CAF against captum's LayerGradCam (time) and the published optimiser (objective, passes), as Markdown tables.

export PYTHONPATH=examples                            # where the photographs are
python tests/benchmarks/l2_caf.py                     # about half an hour on two cores
python tests/benchmarks/l2_caf.py resnet50 vit        # the objectives of these networks alone
python tests/benchmarks/l2_caf.py sizes               # time over the number of places
"""

import sys

import timm
import torch
from attention_maps import photographs
from captum.attr import LayerGradCam
from interleaved import DEVICE, interleaved, machine, ratio, seconds
from studies.imagenet import lite0
from torch import Tensor, nn
from torch.nn import functional as F

from pml_extensions.attr import L2CAF, PublishedSGD, last_feature_layer

SIDES = {8: 64, 16: 64, 32: 64, 64: 16}  # places a side, and the batch
INNER = [
    ("tf_efficientnet_lite0, ImageNet", "blocks.5"),
    ("tf_efficientnet_lite0, ImageNet", "blocks.3"),
    ("resnet50", "layer3"),
    ("densenet121", "features.denseblock3"),
    ("convnext_atto", "stages.3.blocks.0"),
    ("vit_tiny_patch16_224", "blocks.11.norm1"),
    ("vit_tiny_patch16_224", "blocks.6.norm1"),
]


def time_table(batch: int, rounds: int) -> None:
    model = lite0().to(DEVICE)
    layer = last_feature_layer(model)
    photos = torch.stack([*photographs(224).values()]).to(DEVICE)
    x = photos.repeat(-(-batch // len(photos)), 1, 1, 1)[:batch]
    target = model(x).argmax(1)
    explain, grad_cam = L2CAF(model, layer), LayerGradCam(model, layer)
    rivals = {
        "LayerGradCam": lambda: grad_cam.attribute(x, target),
        "L2CAF, class-specific": lambda: explain.attribute(x, target),
        "L2CAF, class-oblivious": lambda: explain.attribute(x),
    }
    samples = interleaved(rivals, rounds=rounds, warmup=2)
    for name in rivals:
        milliseconds = 1000 * min(samples[name]) / batch
        print(f"| {name} | {batch} | {milliseconds:.1f} | {ratio(samples, name, 'LayerGradCam'):.2f} |")


class Pooled(nn.Module):
    """A convolution, global pooling and a linear layer: 64 channels, 100 outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(64, 100)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.features(images).mean((2, 3)))

    def whole_matrix(self, image: Tensor) -> float:
        """Return the least class-oblivious objective of one image from the eigenvectors of places x places."""
        A = self.features(image).flatten(2)[0].double()  # (64, places)
        J = A.T @ self.head.weight.double().T / A.shape[1]
        w, V = torch.linalg.eigh(2 * J @ J.T)
        beta = V.T @ (-2 * J @ J.sum(0))
        low, high = torch.zeros((), dtype=w.dtype), torch.linalg.vector_norm(beta)  # the multiplier lies between
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if torch.linalg.vector_norm(beta / (w + middle)) > 1 else (low, middle)
        f = V @ (-beta / (w + high))
        return float((F.normalize(f, dim=0) @ J - J.sum(0)).square().sum())


@torch.no_grad()
def size_row(side: int, batch: int) -> str:
    """Return the milliseconds an image of a map of side x side places; the whole matrix once, on one image."""
    torch.manual_seed(0)
    model, x = Pooled().to(DEVICE).eval(), torch.randn(batch, 3, side, side, device=DEVICE)
    explain, grad_cam = L2CAF(model, model.features), LayerGradCam(model, model.features)
    rivals = {
        "Grad-CAM": lambda: grad_cam.attribute(x, 0),
        "specific": lambda: explain.attribute(x, 0),
        "oblivious": lambda: explain.attribute(x),
    }
    samples = interleaved(rivals, rounds=5, warmup=1)
    least: list[float] = []
    whole = seconds(lambda: least.append(model.whole_matrix(x[:1])))
    found = explain.attribute(x[:1], return_report=True)[1].objective.item()
    times = [f"{1000 * min(samples[name]) / batch:.2f}" for name in rivals]
    ratios = [f"{ratio(samples, name, 'Grad-CAM'):.1f}" for name in ("specific", "oblivious")]
    difference = f"{abs(found - least[0]) / least[0]:.0e}"
    return " | ".join([f"| {side} x {side}", str(batch), *times, *ratios, f"{1000 * whole:.0f}", f"{difference} |"])


def size_table() -> None:
    print(
        "| places | batch | LayerGradCam | class-specific | class-oblivious | ratio, specific | ratio, oblivious | "
        "whole matrix | difference |\n" + "| --- " * 9 + "|"
    )
    for side, batch in SIDES.items():
        print(size_row(side, batch), flush=True)


def objective_rows(name: str, layer_name: str) -> None:
    torch.manual_seed(0)
    model = lite0() if "ImageNet" in name else timm.create_model(name).eval()
    model.to(DEVICE)
    layer = model.get_submodule(layer_name) if layer_name else last_feature_layer(model)
    x = torch.stack([*photographs(224).values()])[:3].to(DEVICE)
    target = model(x).argmax(1)
    outputs = model(x).shape[1]
    for kind, settings, scales in (("oblivious", {}, (1.0, float(outputs))), ("specific", {"target": target}, (1.0,))):
        explain = L2CAF(model, layer)
        ours = explain.attribute(x, **settings, return_report=True)[1]
        published = [
            explain.attribute(x, **settings, solver=PublishedSGD(scale=scale), return_report=True)[1]
            for scale in scales
        ]
        best = torch.stack([report.objective for report in published]).amin(0)
        slack = 1e-4 * best.abs() + 1e-6
        for i in range(len(x)):
            theirs = " / ".join(f"{report.objective[i]:.6g}" for report in published)
            steps = " / ".join(str(int(report.steps[i])) for report in published)
            verdict = "yes" if ours.objective[i] <= best[i] + slack[i] else "NO"
            passes = "closed form" if ours.exact[i] else int(ours.steps[i])
            cells = [name, layer_name or "last", kind, f"{ours.objective[i]:.6g}", theirs, passes, steps, verdict]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    chosen = sys.argv[1:]
    print(f"{machine()}\n")
    if chosen == ["sizes"]:
        size_table()
        return
    if not chosen:
        print("| method | batch | ms an image (best) | ratio to LayerGradCam (median) |\n| --- | --- | --- | --- |")
        for batch, rounds in ((1, 15), (32, 5)):
            time_table(batch, rounds)
    print(
        "\n| network | layer | objective | L2CAF | published (sum / mean) | passes | published passes | at or below |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, layer in [("tf_efficientnet_lite0, ImageNet", ""), *INNER]:
        if not chosen or any(part in name for part in chosen):
            objective_rows(name, layer)


if __name__ == "__main__":
    main()
