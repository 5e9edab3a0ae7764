"""Time, memory and accuracy of SVMax's value and gradient against torch.linalg.svdvals and the matrix-product floor.

Run from the root: python tests/benchmarks/svmax.py. Prints the table of docs/benchmarks.md.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from interleaved import DEVICE, interleaved, machine
from torch import Tensor

from pml_extensions.regularizers import mean_singular_value

SIZES = ("144x128", "512x512", "1024x512", "4096x128", "512x2048")
BATCHES: dict[str, Callable[[int, int], Tensor]] = {
    "spread": torch.randn,
    "around one point": lambda b, d: torch.randn(1, d) + 0.1 * torch.randn(b, d),
    "close to one point": lambda b, d: torch.randn(1, d) + 0.01 * torch.randn(b, d),
    "16 a class": lambda b, d: torch.randn(b // 16, d).repeat_interleave(16, 0) + 0.3 * torch.randn(b, d),
}


def gradient(function: Callable[[Tensor], Tensor], embeddings: Tensor) -> Tensor:
    embeddings = embeddings.detach().requires_grad_()
    function(embeddings).backward()
    return embeddings.grad


def by_svdvals(embeddings: Tensor) -> Tensor:
    return torch.linalg.svdvals(embeddings).sum() / embeddings.shape[1]


def two_products(embeddings: Tensor) -> Tensor:
    tall = embeddings if embeddings.shape[0] >= embeddings.shape[1] else embeddings.T
    return tall @ (tall.T @ tall)


def polar_factor_of_plain_gram(embeddings: Tensor) -> Tensor:
    tall = embeddings if embeddings.shape[0] >= embeddings.shape[1] else embeddings.T
    eigenvalues, vectors = torch.linalg.eigh(tall.T @ tall)
    polar = tall @ (vectors / eigenvalues.clamp_min(1e-12).sqrt()) @ vectors.T
    return polar if tall is embeddings else polar.T


def polar_factor(embeddings: Tensor) -> Tensor:
    u, s, vt = torch.linalg.svd(embeddings.double(), full_matrices=False)
    return u * (s > 1e-12 * s[0]) @ vt


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


def peak_memory(function: Callable[[], object]) -> int:
    """Return the most bytes that lived at once on the CPU during a call, by the profiler's record of allocations."""
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        function()
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    live = most = 0
    for _, change in events:
        live += change
        most = max(most, live)
    return most


def row(name: str, b: int, d: int, rounds: int, device: str) -> str:
    torch.manual_seed(0)
    embeddings = F.normalize(BATCHES[name](b, d)).to(device)
    samples = interleaved(
        {
            "ours": lambda: gradient(mean_singular_value, embeddings),
            "svdvals": lambda: gradient(by_svdvals, embeddings),
            "floor": lambda: two_products(embeddings),
        },
        rounds,
    )
    best = {rival: min(seconds) for rival, seconds in samples.items()}
    expected = polar_factor(embeddings) / d
    unit = 4 * (b * d + min(b, d) ** 2)
    memory = "" if device != "cpu" else f"{peak_memory(lambda: gradient(mean_singular_value, embeddings)) / unit:.1f}"
    return " | ".join(
        [
            f"| {b} x {d}, {name}",
            f"{1e3 * best['ours']:.2f}",
            f"{best['svdvals'] / best['ours']:.2f}",
            f"{best['ours'] / best['floor']:.1f}",
            f"{relative_error(gradient(mean_singular_value, embeddings), expected):.0e}",
            f"{relative_error(gradient(by_svdvals, embeddings), expected):.0e}",
            f"{relative_error(polar_factor_of_plain_gram(embeddings) / d, expected):.0e}",
            f"{memory} |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="such as 144x128 8192x2048")
    arguments = parser.parse_args()
    print(f"{machine()}; float32, value and gradient, best of {arguments.rounds} calls in turn\n")
    print(
        "| batch | ms | svdvals / ours | ours / two products | gradient error, ours | svdvals | plain Gram | memory |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in BATCHES:
        for size in arguments.sizes:
            b, d = map(int, size.split("x"))
            print(row(name, b, d, arguments.rounds, DEVICE), flush=True)


if __name__ == "__main__":
    main()
