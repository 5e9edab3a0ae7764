"""Time of one call of the semi-hard loss and its gradient, beside the host's and the bare matrix product.

    python tests/benchmarks/semi_hard.py [--sizes 32 128 512 2048 4096 8192]
    python tests/benchmarks/semi_hard.py --memory 8192   # classes; then 2
    python tests/benchmarks/semi_hard.py --memory 8192 --rows 8192   # as one of four processes, efficient=True

Embeddings have 128 dimensions, batches 4 samples a class. The floor is the product of the embeddings with themselves;
PML is TripletMarginMiner("semihard") with TripletMarginLoss.
"""

import argparse
import resource

import torch
import torch.nn.functional as F
from interleaved import DEVICE, interleaved, machine, ratio
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner

from pml_extensions.losses import SemiHardTripletLoss
from pml_extensions.miners import SemiHardMiner

HOST_LIMIT = 512  # beyond, the host's B x B x B masks take seconds and tens of gigabytes


def step(loss, embeddings, labels, miner=None):
    def call():
        leaf = embeddings.detach().requires_grad_()
        loss(leaf, labels, miner(leaf, labels) if miner else None).backward()

    return call


def rivals(size, device):
    embeddings = F.normalize(torch.randn(size, 128, device=device))
    classes = torch.arange(size, device=device) // 4
    found = {
        "product": lambda: embeddings @ embeddings.T,
        "ours": step(SemiHardTripletLoss(), embeddings, classes),
    }
    if size <= HOST_LIMIT:
        miner = TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
        found["host"] = step(TripletMarginLoss(margin=0.2), embeddings, classes, miner)
    else:
        found["ours, two classes"] = step(SemiHardTripletLoss(), embeddings, classes % 2)
    return found


def milliseconds(samples, name):
    return f"{1000 * min(samples[name]):.2f}" if name in samples else ""


def over(samples, name, base):
    return f"{ratio(samples, name, base):.2f}" if name in samples and base in samples else ""


def main(sizes, device):
    print(f"{machine()}; milliseconds are the best call's, ratios the median of calls in turn\n")
    print("| B | product | ours | PML | two classes | ours / product | ours / PML | two classes / ours |")
    print("|---|---|---|---|---|---|---|---|")
    for size in sizes:
        samples = interleaved(rivals(size, device), rounds=41 if size <= HOST_LIMIT else 7, warmup=1)
        times = [milliseconds(samples, name) for name in ("product", "ours", "host", "ours, two classes")]
        pairs = (("ours", "product"), ("ours", "host"), ("ours, two classes", "ours"))
        print(f"| {size} | {' | '.join(times + [over(samples, *pair) for pair in pairs])} |", flush=True)


def rows_of_one_process(embeddings, labels, rows):
    """Return the call that the host's two distributed wrappers, efficient, make in one of the processes."""

    def call():
        leaf = embeddings[:rows].detach().requires_grad_()
        triplets = SemiHardMiner()(leaf, labels[:rows], embeddings, labels)
        SemiHardTripletLoss()(leaf, labels[:rows], triplets, embeddings, labels).backward()

    return call


def memory(classes, rows):
    """Print how much the peak of the process's memory grows by one call at B = 32768, on a CPU."""
    embeddings, labels = F.normalize(torch.randn(32768, 128)), torch.arange(32768) % classes
    step(SemiHardTripletLoss(), embeddings[:512], labels[:512] % 128)()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (rows_of_one_process(embeddings, labels, rows) if rows else step(SemiHardTripletLoss(), embeddings, labels))()
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    of_one = f", {rows} rows of one process" if rows else ""
    print(f"B = 32768, {classes} classes{of_one}: {extra / 2**20:.2f} GiB more at the peak")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 128, 512, 2048, 4096, 8192])
    parser.add_argument("--memory", type=int, metavar="CLASSES")
    parser.add_argument("--rows", type=int, help="with --memory: those of one of several processes")
    parser.add_argument("--device", default=DEVICE)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.memory:
        memory(arguments.memory, arguments.rows)
    else:
        main(arguments.sizes, arguments.device)
