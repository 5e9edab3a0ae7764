"""Train small networks on real images, with and without the parts of pml_extensions.

    python examples/quickstart.py            # from the root: all parts, about two minutes of one core
    python examples/quickstart.py svmax      # one part

The images come with installed packages: characters in matplotlib's typefaces, and photographs.
Tables are printed, and stand in FOLDER with every number and the figures. On one machine with the same number of
threads, all comes out the same to the digit.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from first_runs.attention import ATTENTION
from first_runs.knowledge_evolution import EVOLUTION
from first_runs.runs import save, table
from first_runs.svmax import SVMAX
from first_runs.two_head import TWO_HEADS
from tqdm import tqdm

PARTS = {part.name: part for part in (SVMAX, TWO_HEADS, EVOLUTION, ATTENTION)}


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="default: out")
    parser.add_argument("--seeds", type=int, default=2, help="how many, from 0 (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="more do not make networks so small faster (default: 1)")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")
    return arguments


def advance(progress: tqdm, seconds: float, share: float) -> None:
    """Move the bar by a share of a part that takes so many seconds."""
    progress.update(min(seconds * share, progress.total - progress.n))  # rounding must not lead it past its end


def main() -> None:
    """Run the parts, under one progress bar."""
    arguments = options()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    parts = [PARTS[name] for name in arguments.parts or PARTS]
    about = f"Mean ± standard deviation of {arguments.seeds} seeds on {arguments.threads} thread(s)."
    found = {}
    total = sum(part.seconds for part in parts)
    with tqdm(total=total, bar_format="{desc:<10} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left") as progress:
        for part in parts:
            progress.set_description(part.name)
            found[part] = part.run(range(arguments.seeds), arguments.out, partial(advance, progress, part.seconds))
            progress.write(f"\n{part.title}")
            if found[part]:
                progress.write(f"\n{table(found[part])}")
    save(found, arguments.out, about)
    print(f"\n{about} In {arguments.out}: {', '.join(sorted(path.name for path in arguments.out.iterdir()))}")


if __name__ == "__main__":
    main()
