"""Quality of attention maps: do they name the object, and does the output follow the places that they name?

    python tests/benchmarks/l2_caf_quality.py --out docs/results --seeds 0 1 2    # resumable
    python tests/benchmarks/l2_caf_quality.py --out docs/results --table          # the tables of docs/l2_caf.md

Two parts. (1) Objects with known boxes: a handwritten digit (scikit-learn) on clutter cut from others; a classifier
and an embedder are trained here. (2) Photographs of packages with a real ImageNet network. Every method explains the
same images at the same layer; input methods are pooled to its grid. A random map is the floor.
"""

import argparse
import csv
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from captum.attr import LayerActivation, LayerAttribution, LayerGradCam, Occlusion, Saliency
from captum.metrics import infidelity, sensitivity_max
from pytorch_metric_learning.losses import SupConLoss
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "examples")]
from attention_maps import Embedder, lite0, photographs  # noqa: E402

from pml_extensions.attr import L2CAF, last_feature_layer  # noqa: E402

CANVAS, DIGIT = 96, 32
FIELDS = ("task", "seed", "method", "measure", "value")


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (count, 1, 96, 96) of a digit on clutter, its class, and its box as a mask (count, 96, 96)."""
    digits = load_digits()
    images = F.interpolate(torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], size=DIGIT, mode="bilinear")
    labels = torch.tensor(digits.target)
    canvas, box = torch.zeros(count, 1, CANVAS, CANVAS), torch.zeros(count, CANVAS, CANVAS, dtype=torch.bool)
    chosen = torch.randint(len(images), (count,), generator=generator)
    for i in range(count):
        for scrap in torch.randint(len(images), (24,), generator=generator):
            y, x, row, column = (int(v) for v in torch.randint(CANVAS - 12, (4,), generator=generator))
            row, column = row % (DIGIT - 12), column % (DIGIT - 12)
            canvas[i, :, y : y + 12, x : x + 12] += images[scrap, :, row : row + 12, column : column + 12]
        y, x = (int(v) for v in torch.randint(CANVAS - DIGIT, (2,), generator=generator))
        canvas[i, :, y : y + DIGIT, x : x + DIGIT] = images[chosen[i]]
        box[i, y : y + DIGIT, x : x + DIGIT] = True
    return canvas.clamp(0, 1) * 2 - 1, labels[chosen], box


def trained(task: str, seed: int, steps: int = 300) -> nn.Module:
    """Return a small network trained to name the digit, or to embed it near others of its class."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = timm.create_model("resnet10t", in_chans=1, num_classes=10 if task == "classifier" else 32, output_stride=16)
    loss = nn.CrossEntropyLoss() if task == "classifier" else SupConLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc=f"{task}, seed {seed}"):
        images, labels, _ = scenes(40, generator)
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def score_of(
    model: nn.Module, targets: Tensor | None, likeness: Callable[[Tensor, Tensor], Tensor] = F.cosine_similarity
) -> Callable[[Tensor], Tensor]:
    """Return the scalar that a map should explain: a class's logit, or the likeness to the image's own embedding."""
    originals: list[Tensor] = []

    def score(images: Tensor) -> Tensor:
        output = model(images)
        if targets is not None:
            return output.gather(1, targets.repeat(len(images) // len(targets))[:, None])[:, 0]
        if not originals:
            originals.append(output.detach())
        return likeness(output, originals[0].repeat(len(images) // len(originals[0]), 1))

    return score


def inner_product(output: Tensor, original: Tensor) -> Tensor:
    """Return what gradients can see: the cosine to itself is at its maximum, where its gradient is zero."""
    return (output * original).sum(1)


def methods(model: nn.Module, targets: Tensor | None, images: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return name -> function from images to maps (N, 1, H, W), all at the last feature map's grid."""
    layer = last_feature_layer(model, images[:1])
    score = score_of(model, targets, inner_product)
    with torch.no_grad():
        score(images)
    grid = tuple(LayerActivation(model, layer).attribute(images[:1]).shape[2:])
    per_image = images.shape[0] if targets is None else len(targets)

    @torch.enable_grad()
    def gradient_times_activation(x: Tensor) -> Tensor:
        found: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _m, _i, out: found.append(out))
        try:
            total = score(x.clone().requires_grad_()).sum()
        finally:
            handle.remove()
        (gradient,) = torch.autograd.grad(total, found[0])
        return (gradient.relu() * found[0]).sum(1, keepdim=True).relu().detach()

    def eigen(x: Tensor) -> Tensor:
        activation = LayerActivation(model, layer).attribute(x).flatten(2)
        first = torch.linalg.svd(activation - activation.mean(2, keepdim=True), full_matrices=False)[2][:, :1]
        sign = (first * activation.mean(1, keepdim=True)).sum(2, keepdim=True).sign()
        return (first * sign).relu().unflatten(2, grid)

    def pooled(attribution: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(attribution.abs().sum(1, keepdim=True), grid)

    window = images.shape[-1] // 8
    random = torch.Generator().manual_seed(0)
    explain = L2CAF(model, layer)
    found = {
        "L2-CAF, oblivious": explain.attribute,
        "LayerGradCam": lambda x: LayerGradCam(score, layer).attribute(x).relu().detach(),
        "LayerCAM": gradient_times_activation,
        "EigenCAM": eigen,
        "Saliency": lambda x: pooled(Saliency(score).attribute(x)),
        "Occlusion": lambda x: pooled(
            Occlusion(score).attribute(
                x, sliding_window_shapes=(x.shape[1], window, window), strides=(x.shape[1], window, window)
            )
        ),
        "random": lambda x: torch.rand(len(x), 1, *grid, generator=random),
    }
    if targets is not None:
        own = lambda x: targets.repeat(len(x) // per_image)  # noqa: E731
        found["L2-CAF, class"] = lambda x: explain.attribute(x, own(x))
        found["L2-CAF, class, positive part"] = lambda x: explain.attribute(x, own(x), signed=True).relu()
    return found


def insertion_deletion(score: Callable[[Tensor], Tensor], images: Tensor, maps: Tensor, steps: int = 16):
    """Return the mean score while places are put in, best first, into a blurred image, and while they are taken out."""
    blurred = F.avg_pool2d(F.pad(images, [24] * 4, mode="reflect"), 49, stride=1)
    order = (
        LayerAttribution.interpolate(maps, tuple(images.shape[2:]), "bilinear").flatten(1).argsort(1, descending=True)
    )
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    rank = rank.view(len(images), 1, *images.shape[2:]) / order.shape[1]
    inserted, deleted = torch.zeros(len(images)), torch.zeros(len(images))
    with torch.no_grad():
        for step in range(steps + 1):
            shown = rank < step / steps
            inserted += score(torch.where(shown, images, blurred)) / (steps + 1)
            deleted += score(torch.where(shown, blurred, images)) / (steps + 1)
    return inserted, deleted


def measured(model: nn.Module, targets: Tensor | None, images: Tensor, box: Tensor | None):
    """Yield (method, measure, value) for every method on one batch of images."""
    score = score_of(model, targets)
    with torch.no_grad():
        score(images)
    for name, method in methods(model, targets, images).items():
        maps = method(images.clone())
        upsampled = LayerAttribution.interpolate(maps, tuple(images.shape[2:]), "bilinear")[:, 0]
        if box is not None:
            top = upsampled.flatten(1).argmax(1)
            yield name, "points into the box", box.flatten(1).gather(1, top[:, None]).float().mean().item()
            inside = (upsampled * box).sum((1, 2)) / upsampled.sum((1, 2)).clamp_min(1e-12)
            yield name, "mass in the box", inside.mean().item()
        inserted, deleted = insertion_deletion(score, images, maps)
        yield name, "insertion", inserted.mean().item()
        yield name, "deletion", deleted.mean().item()
        expanded = upsampled[:, None].expand_as(images)
        noise = torch.Generator().manual_seed(1)

        def perturb(x: Tensor, noise: torch.Generator = noise) -> tuple[Tensor, Tensor]:
            change = 0.1 * torch.randn(x.shape, generator=noise)
            return change, x - change

        value = infidelity(
            score, perturb, images, expanded, n_perturb_samples=8, max_examples_per_batch=len(images), normalize=True
        )
        yield name, "infidelity", value.mean().item()
        if name not in {"random", "Occlusion"}:
            torch.manual_seed(2)
            moved = sensitivity_max(
                lambda x, method=method: (method(x[0].clone()),),
                images,
                n_perturb_samples=4,
                max_examples_per_batch=len(images),
            )
            yield name, "sensitivity", moved.mean().item()


def run(task: str, seed: int):
    """Yield (method, measure, value) of one task and seed."""
    if task.startswith("ImageNet"):
        photos = torch.stack([*photographs(224).values()])
        model = lite0()
        if task == "ImageNet classifier":
            yield from measured(model, model(photos).argmax(1), photos, None)
        else:
            yield from measured(Embedder(model).eval(), None, photos, None)
        return
    model = trained(task, seed)
    images, labels, box = scenes(64, torch.Generator().manual_seed(1000 + seed))
    if task == "classifier":
        yield "(network)", "accuracy", (model(images).argmax(1) == labels).float().mean().item()
    yield from measured(model, labels if task == "classifier" else None, images, box)


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows so far."""
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, str]]) -> None:
    """Print a Markdown table a task: mean and standard deviation over the seeds."""
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task and row["method"] != "(network)"]
        names = list(dict.fromkeys(row["measure"] for row in own))
        seeds = len({row["seed"] for row in own})
        print(f"\n| {task}, {seeds} seed{'s' if seeds > 1 else ''} | " + " | ".join(names) + " |")
        print("|---" * (len(names) + 1) + "|")
        for method in dict.fromkeys(row["method"] for row in own):
            cells = []
            for name in names:
                values = [float(r["value"]) for r in own if r["method"] == method and r["measure"] == name]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "")
            print(f"| {method} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    path = arguments.out / "l2_caf_quality.csv"
    rows = read(path)
    if arguments.table:
        table(rows)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    done = {(row["task"], int(row["seed"])) for row in rows}
    jobs = [("ImageNet classifier", 0), ("ImageNet embedder", 0)]
    jobs += [(task, seed) for seed in arguments.seeds for task in ("classifier", "embedder")]
    for task, seed in jobs:
        if (task, seed) in done:
            continue
        found = list(run(task, seed))
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(FIELDS)
            writer.writerows((task, seed, *row) for row in found)


if __name__ == "__main__":
    main()
