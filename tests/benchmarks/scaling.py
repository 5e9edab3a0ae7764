"""How the cost of each method grows with batch, width, weights and processes, beside what its cost model predicts.

Run from the root: python tests/benchmarks/scaling.py [--paper]. Prints the tables of docs/scaling.md. Growth is the
ratio of times when one size doubles, all sizes timed in turn; traffic is counted at the collectives, not timed.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from interleaved import interleaved, machine, ratio
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch import nn
from torch.multiprocessing.spawn import spawn

from pml_extensions.attr import L2CAF, LBFGS
from pml_extensions.evolution import WELS, KnowledgeEvolution
from pml_extensions.losses import SemiHardTripletLoss
from pml_extensions.miners import SemiHardMiner
from pml_extensions.regularizers import SVMaxRegularizer

Call = Callable[[], object]
WORLDS = (4, 2, 1)


def svmax(b: int, d: int) -> Call:
    batch, term = torch.randn(b, d, requires_grad=True), SVMaxRegularizer()
    return lambda: torch.autograd.grad(term(batch), batch)


def semi_hard(b: int, d: int) -> Call:
    batch, labels, loss = torch.randn(b, d, requires_grad=True), torch.arange(b) // 4, SemiHardTripletLoss()
    return lambda: torch.autograd.grad(loss(batch, labels), batch)


def reset(weights: int) -> Call:
    width = 512
    ke = KnowledgeEvolution(nn.Sequential(*(nn.Linear(width, width) for _ in range(weights // width**2))), WELS(0.5))
    return ke.reset


def attention(images: int, side: int, solver: LBFGS | None) -> Call:
    model = timm.create_model("resnet10t").eval()
    x, explain = torch.randn(images, 3, side, side), L2CAF(model, model.layer4)
    return lambda: explain.attribute(x, solver=solver)


SWEEPS: dict[str, tuple[Callable[[int], Call], tuple[int, ...], str, float]] = {
    "SVMax, rows (d = 128)": (lambda b: svmax(b, 128), (8192, 16384, 32768), "b d²", 2),
    "SVMax, width (b = 2 d)": (lambda d: svmax(2 * d, d), (128, 256, 512), "b d² + d³", 8),
    "semi-hard, rows (d = 128)": (lambda b: semi_hard(b, 128), (2048, 4096, 8192), "b² (d + k)", 4),
    "semi-hard, width (b = 2048)": (lambda d: semi_hard(2048, d), (256, 512, 1024), "b² (d + k)", 2),
    "reset, weights": (reset, (1 << 20, 1 << 21, 1 << 22), "n", 2),
    "L2-CAF, images": (lambda n: attention(n, 64, None), (4, 8, 16), "images", 2),
    "L2-CAF, steps of a solver": (lambda s: attention(2, 64, LBFGS(steps=s, tolerance=0)), (4, 8, 16), "steps", 2),
}


def growth_table(rounds: int) -> None:
    print(machine() + f"; median of {rounds}\n")
    print("| what grows | sizes | ms at the least | model | predicted for a doubling | measured |")
    print("|---|---|---|---|---|---|")
    for name, (make, sizes, model, predicted) in SWEEPS.items():
        torch.manual_seed(0)
        samples = interleaved({str(size): make(size) for size in sizes}, rounds=rounds, warmup=1)
        steps = [ratio(samples, str(b), str(a)) for a, b in pairwise(sizes)]
        least = 1000 * statistics.median(samples[str(sizes[0])])
        measured = ", ".join(f"{step:.1f}" for step in steps)
        print(f"| {name} | {', '.join(map(str, sizes))} | {least:.1f} | {model} | up to {predicted:g} | {measured} |")


class Traffic:
    """Count the bytes that a process hands to collectives: what a ring sends, (N - 1) / N of it once or twice."""

    def __init__(self) -> None:
        self.bytes = 0.0
        self.all_reduce, self.all_gather = dist.all_reduce, dist.all_gather

    def __enter__(self) -> "Traffic":  # noqa: PYI034 (Self is of Python 3.11)
        share = (dist.get_world_size() - 1) / dist.get_world_size()

        def all_reduce(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
            self.bytes += 2 * share * tensor.nbytes
            return self.all_reduce(tensor, *args, **kwargs)

        def all_gather(tensors: list[torch.Tensor], tensor: torch.Tensor, *args: object) -> object:
            self.bytes += share * sum(one.nbytes for one in tensors)
            return self.all_gather(tensors, tensor, *args)

        dist.all_reduce, dist.all_gather = all_reduce, all_gather
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_reduce, dist.all_gather = self.all_reduce, self.all_gather


def on_rank(rank: int, folder: str, b: int, d: int) -> None:
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank < world:
            dist.init_process_group("gloo", f"file://{folder}/store-{world}", rank=rank, world_size=world)
            found = {}
            for name, use in uses(rank, world, b, d).items():
                dist.barrier()
                with Traffic() as traffic:
                    use()
                found[name] = traffic.bytes
            torch.save(found, f"{folder}/{world}-{rank}.pt")
            dist.destroy_process_group()


def uses(rank: int, world: int, b: int, d: int) -> dict[str, Call]:
    batch, labels = torch.randn(b // world, d), torch.arange(b // world) // 4 + rank * b
    miner = DistributedMinerWrapper(SemiHardMiner(), efficient=True)
    loss = DistributedLossWrapper(SemiHardTripletLoss(), efficient=True)
    whole = DistributedLossWrapper(SemiHardTripletLoss())
    model = KnowledgeEvolution(nn.Linear(d, d), WELS(0.5))
    return {
        "SVMax, distributed=True": lambda: SVMaxRegularizer(distributed=True)(batch),
        "semi-hard, efficient=False": lambda: whole(batch, labels),
        "semi-hard, efficient=True, miner and loss": lambda: loss(batch, labels, miner(batch, labels)),
        "reset of a copied model": model.reset,
    }


def traffic_table(b: int = 4096, d: int = 128) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spawn(on_rank, args=(folder, b, d), nprocs=max(WORLDS))
        found = {world: torch.load(Path(folder) / f"{world}-0.pt", weights_only=True) for world in sorted(WORLDS)}
    print(f"\nKiB that each process sends, {b} rows in all, d = {d}, float32\n")
    print("| what | 1 process | 2 processes | 4 processes |\n|---|---|---|---|")
    for name in found[1]:
        print(f"| {name} | " + " | ".join(f"{found[world][name] / 1024:.0f}" for world in found) + " |")


def paper_table(*, b: int, n: int, d: int, k: int, flops: float, memory: float, network: float) -> None:
    """Print what the cost models predict; time is the largest of its three parts, if they overlap."""
    r = b / n
    block = 2**27 * 4
    rows = {
        "SVMax": (4 * r * d**2 + 10 * d**3, 8 * r * d, 2 * 4 * d**2, 4 * (2 * r * d + 4 * d**2)),
        "SVMax by gathering rows": (4 * b * d**2 + 10 * d**3, 8 * b * d, 4 * b * d, 4 * 2 * b * d),
        "semi-hard, efficient=True": (2 * r * b * d, 4 * r * b * (k + 2), 2 * 4 * b * d, block + 8 * b * d),
        "semi-hard, efficient=False": (2 * b * b * d, 4 * b * b * (k + 2), 4 * b * d, block + 8 * b * d),
        "a matrix of all distances, efficient=True": (2 * r * b * d, 4 * r * b * (k + 2), 2 * 4 * b * d, 4 * r * b),
    }
    print(
        f"\n{b:,} rows of {d} on {n} devices, {k} positives an anchor, float32; each device: {flops / 1e12:g} Tflop/s, "
    )
    print(f"{memory / 1e12:g} TB/s to its memory, {network / 1e9:g} GB/s to the others\n")
    print("| what, per device | Tflop | GB to memory | GB to others | GB held | predicted seconds |")
    print("|---|---|---|---|---|---|")
    for name, (work, moved, sent, held) in rows.items():
        seconds = max(work / flops, moved / memory, sent / network)
        print(
            f"| {name} | {work / 1e12:.3g} | {moved / 1e9:.3g} | {sent / 1e9:.3g} | {held / 1e9:.3g} | {seconds:.2g} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--paper", action="store_true", help="print the predictions alone")
    args = parser.parse_args()
    if not args.paper:
        growth_table(args.rounds)
        traffic_table()
    paper_table(b=1_000_000, n=64, d=512, k=3, flops=50e12, memory=2e12, network=25e9)


if __name__ == "__main__":
    main()
