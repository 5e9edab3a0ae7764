"""L2-CAF against captum's LayerGradCam (time) and the published optimiser (objective, passes), as Markdown tables.

python tests/benchmarks/l2_caf.py                     # about half an hour on two cores
python tests/benchmarks/l2_caf.py resnet50 vit        # the objectives of these networks alone
"""

import sys
from pathlib import Path

import timm
import torch
from captum.attr import LayerGradCam
from interleaved import DEVICE, interleaved, machine, ratio

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from attention_maps import photographs
from studies.imagenet import lite0

from pml_extensions.attr import L2CAF, PublishedSGD, last_feature_layer

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
