"""L2-CAF on pretrained networks: objective and time by layer, localisation where there are boxes (arXiv:2007.09748).

    python examples/papers/l2_caf.py --data images --root DIR --dry-run
    python examples/papers/l2_caf.py --data csv --root FILE --only googlenet
    torchrun --nproc-per-node=4 examples/papers/l2_caf.py --data cub --root DIR

GoogLeNet and ResNet-50 with ImageNet weights, their last layer and two inner ones; what the whole output rests on, and
what its likeliest class does; as the package finds it, and with the published optimiser. One image at a time in each
process, as the paper counts time. With boxes: whether the map's highest place is in the box, and whether the box around
the largest part of the map above a fifth of its maximum overlaps it by half, the rule of class activation maps.
"""

import argparse
import io
import math
import time
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from captum.attr import LayerAttribution
from measures import interleaved
from networks import pretrained, to_input
from PIL import Image
from readers import LOOKING, Box, load_image
from rows import check_same, published, replace_file
from scipy import ndimage
from session import Session, agree, chosen, command_line, session
from torch import Tensor, nn
from torchvision import transforms
from torchvision.ops import box_iou, masks_to_boxes
from tqdm import tqdm
from training import check_images, memory, span, synchronize

from pml_extensions.attr import L2CAF, PublishedSGD, last_feature_layer

SHORT, CROP = 256, 224
LAYERS = {
    "googlenet": ("inception5b", "inception4e", "inception3b"),
    "resnet50.tv_in1k": ("layer4", "layer3", "layer2"),
}
LAST = "last layer"  # of any other network
WHOLE, LIKELIEST = "whole output", "likeliest class"
OURS, PUBLISHED = "as here", "published optimiser"
MEASURED, FOUND = ("objective", "seconds a map", "converged, %"), ("points into the box, %", "box found, %")
SAVE_EVERY = 10  # batches


def as_published(_: argparse.Namespace) -> dict[str, Any]:
    """Return the published settings."""
    return {"model": " ".join(LAYERS), "batch_size": 1}


def runs_of(networks: list[str]) -> list[tuple[str, ...]]:
    """Return network, layer, question and solver of every run."""
    layers = [(name, layer) for name in networks for layer in LAYERS.get(name, (LAST,))]
    return [(*layer, *how) for layer, how in product(layers, product((WHOLE, LIKELIEST), (OURS, PUBLISHED)))]


def explained(
    model: nn.Module, layer: str, question: str, solver: str, images: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps (B, 1, H, W) of a layer, their objectives (B,) and whether each converged (B,)."""
    with torch.no_grad():
        logits = model(images)
    module = last_feature_layer(model, images[:1]) if layer == LAST else model.get_submodule(layer)
    target = logits.argmax(1) if question == LIKELIEST else None
    scale = 1.0 if question == LIKELIEST else float(logits.shape[1])  # the published losses are a sum, and a mean
    how = None if solver == OURS else PublishedSGD(scale=scale)
    maps, report = L2CAF(model, module).attribute(images, target, solver=how, return_report=True)
    return maps, report.objective, report.converged


def box_in_crop(box: Box, size: tuple[int, int]) -> Tensor:
    """Return a box of an image of that size (width, height) in its crop (4,)."""
    corner = torch.tensor([round((int(SHORT * side / min(size)) - CROP) / 2) for side in size] * 2)
    return (torch.tensor(box) * SHORT / min(size) - corner).clamp(0, CROP)


def localised(heat: Tensor, box: Tensor) -> tuple[float, float]:
    """Return whether a map (H, W) points into a box (4,), and whether its own box overlaps that by half."""
    left, top, right, bottom = box.tolist()
    if right <= left or bottom <= top:
        return math.nan, math.nan  # cropped away
    y, x = divmod(int(heat.argmax()), heat.shape[1])
    parts, count = ndimage.label((heat >= 0.2 * heat.max()).numpy())
    masks = torch.stack([torch.from_numpy(parts == number) for number in range(1, count + 1)])
    found = masks_to_boxes(masks[masks.sum((1, 2)).argmax()][None]) + torch.tensor([0, 0, 1, 1])
    return float(left <= x < right and top <= y < bottom), float(box_iou(found, box[None]).item() >= 0.5)


def measured(now: Session, model: nn.Module, run: tuple[str, ...], places: list[int]) -> Tensor:
    """Return the measures (B, M) of some images."""
    images, device = now.data.test, now.machine.device
    crop = transforms.Compose([transforms.Resize(SHORT), transforms.CenterCrop(CROP), to_input(model)])
    loaded: list[Image.Image] = [load_image(images.paths[place]) for place in places]
    inputs = torch.stack([crop(image) for image in loaded]).to(device)
    synchronize(now.machine)
    begin = time.perf_counter()
    maps, objective, converged = explained(model, *run[1:], inputs)
    synchronize(now.machine)
    seconds = torch.full((len(places),), (time.perf_counter() - begin) / len(places))
    columns = [objective.cpu().float(), seconds, 100 * converged.cpu().float()]
    if images.boxes:
        large = LayerAttribution.interpolate(maps, (CROP, CROP), "bilinear").cpu()
        boxes = [box_in_crop(images.boxes[place], image.size) for place, image in zip(places, loaded, strict=True)]
        columns += 100 * torch.tensor([localised(heat[0], box) for heat, box in zip(large, boxes, strict=True)]).T
    return torch.stack(columns, 1)


def complete(now: Session, model: nn.Module, run: tuple[str, ...]) -> None:
    """Measure the images that are missing of a run, in all processes, and record the means."""
    machine, size, name = now.machine, now.options.batch_size * now.machine.world, ", ".join(run)
    path, images = now.folder / f"{name.replace(', ', '_').replace(' ', '_')}.pt", now.data.test
    done = torch.empty(0)
    if path.exists():
        state = torch.load(path, weights_only=True)
        check_same(path, state["settings"], now.settings)
        done = state["measures"]
    agree(machine, len(done), path)
    starts = range(len(done), len(images), size)
    hidden = None if now.is_first else True
    for batch, first in enumerate(tqdm(starts, name, disable=hidden), 1):
        places = list(range(first, min(first + size, len(images))))[machine.rank :: machine.world]
        done = torch.cat([done, interleaved(measured(now, model, run, places) if places else None, machine)])
        if now.is_first and (batch % SAVE_EVERY == 0 or len(done) == len(images)):
            buffer = io.BytesIO()
            torch.save({"settings": now.settings, "measures": done}, buffer)
            replace_file(path, buffer.getbuffer())
    now.record(name, lambda: dict(zip((*MEASURED, *FOUND), done.nanmean(0).tolist(), strict=False)))


def networks(now: Session, runs: list[tuple[str, ...]]) -> Iterator[tuple[nn.Module, list[tuple[str, ...]]]]:
    """Yield each network that runs need, with its runs."""
    for name in dict.fromkeys(run[0] for run in runs):
        model = pretrained(name, now.options.weights).eval().to(now.machine.device)
        yield model, [run for run in runs if run[0] == name]


def dry_run(now: Session, runs: list[tuple[str, ...]]) -> None:
    """Check the images, explain the first ones once for each run, and say what memory and time all will take."""
    check_images(now)
    total, size = 0.0, now.options.batch_size
    batches = -(-len(now.data.test) // (size * now.machine.world))
    for model, own in networks(now, runs):
        for run in own:
            begin = time.perf_counter()
            measured(now, model, run, list(range(min(size, len(now.data.test)))))
            total += (time.perf_counter() - begin) * batches
    now.say(f"memory: {memory(now.machine)}")
    now.say(f"what is not done yet, {len(runs)} runs over {len(now.data.test):,} images: {span(total)}")


def main() -> None:
    """Measure what is missing of the table, and print it."""
    parser = command_line(__doc__, LOOKING)
    with session(parser, LOOKING, as_published) as now:
        runs = {", ".join(run): run for run in chosen(runs_of(now.options.model.split()), now.options.only)}
        names = {run[0] for run in runs.values()}
        if now.options.weights and len(names) > 1:
            raise SystemExit(f"--weights are those of one network; pass --only with one of {', '.join(names)}, too")
        missing = [run for name, run in runs.items() if name not in now.rows]
        if now.options.dry_run:
            dry_run(now, missing)
            return
        for model, own in networks(now, missing):
            for run in own:
                complete(now, model, run)
        beside = published("l2_caf", "any") if now.options.batch_size == 1 else {}
        now.show({name: now.rows[name] for name in runs if now.is_first}, beside)


if __name__ == "__main__":
    main()
