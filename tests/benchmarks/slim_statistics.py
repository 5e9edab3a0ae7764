"""Statistics estimated anew over 50 batches, against 50 plain passes of the slim network and torch's update_bn.

    python tests/benchmarks/slim_statistics.py [--quick]

Prints the table of docs/benchmarks.md. The rivals take turns within one run.
"""

import argparse
import statistics

import timm
import torch
from interleaved import interleaved, machine, ratio
from torch.optim.swa_utils import update_bn

from pml_extensions.evolution import KELS, reestimate_statistics

CASES = {"test_resnet": (16, 64), "resnet18": (8, 64), "efficientnet_b0": (4, 64), "densenet121": (4, 64)}


def rivals(name, batch, pixels, batches):
    """Return the three by name, on a slim network and the same batches."""
    torch.manual_seed(0)
    slim = KELS(0.5, example_input=torch.randn(2, 3, pixels, pixels)).slim(timm.create_model(name))
    data = [torch.randn(batch, 3, pixels, pixels)] * batches

    @torch.no_grad()
    def passes(train):
        slim.train(train)
        for images in data:
            slim(images)

    return {
        "anew": lambda: reestimate_statistics(slim, data, batches=batches),
        "passes, training mode": lambda: passes(train=True),
        "passes, evaluation mode": lambda: passes(train=False),
        "update_bn": lambda: torch.no_grad()(update_bn)(data, slim),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 batches of the first model, 2 rounds")
    arguments = parser.parse_args()
    batches, rounds, names = (5, 2, list(CASES)[:1]) if arguments.quick else (50, 7, list(CASES))
    print(f"{machine()}\n")
    head = ("slim network", "images a batch", f"{batches} batches anew, ms", "/ passes in training mode")
    print(f"| {' | '.join((*head, '/ passes in evaluation mode', '/ update_bn'))} |\n{'|---' * 6}|")
    for name in names:
        batch, pixels = CASES[name]
        samples = interleaved(rivals(name, batch, pixels, batches), rounds=rounds, warmup=1)
        ratios = [f"{ratio(samples, 'anew', base):.2f}" for base in list(samples)[1:]]
        cells = [f"{name}, {pixels} px", batch, f"{1e3 * statistics.median(samples['anew']):.0f}", *ratios]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
