"""The training step of two heads over that of the classifier alone, on the same batches.

    python tests/benchmarks/two_head.py [--model resnet18] [--size 224] [--batch 32] [--bf16]

Prints the median and the quartiles of the ratio over pairs of steps taken in turn.
"""

import argparse
import statistics

import timm
import torch
import torch.nn.functional as F
from interleaved import DEVICE, interleaved, machine

from pml_extensions.losses import TwoHeadLoss
from pml_extensions.models import TwoHead


def stepper(model, loss, images, labels, bf16):
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step():
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            value = loss(model(images), labels)
        value.backward()
        optimizer.step()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=arguments.device)
    labels = torch.arange(arguments.batch, device=arguments.device) // 4
    alone, trunk = (timm.create_model(arguments.model, num_classes=100).to(arguments.device) for _ in range(2))
    steps = {
        "cross-entropy": stepper(alone, F.cross_entropy, images, labels, arguments.bf16),
        "two heads": stepper(TwoHead(trunk), TwoHeadLoss(), images, labels, arguments.bf16),
    }
    samples = interleaved(steps, rounds=arguments.rounds)
    ratios = [b / a for a, b in zip(samples["cross-entropy"], samples["two heads"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    base = 1000 * statistics.median(samples["cross-entropy"])
    print(f"{machine()}\n")
    print("| model | pixels | batch | cross-entropy, ms a step | two heads / cross-entropy | quartiles |")
    print("|---|---|---|---|---|---|")
    row = (arguments.model, arguments.size, arguments.batch, f"{base:.0f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}")
    print(f"| {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main()
