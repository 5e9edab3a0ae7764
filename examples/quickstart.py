"""Train small networks on real images, with and without the parts of pml_extensions.

    python examples/quickstart.py            # from the root: all parts, about two minutes on two cores
    python examples/quickstart.py svmax      # one part

The images come with installed packages: characters in matplotlib's typefaces, and photographs.
Tables are printed, and stand in FOLDER with every number and the figures. On one machine with the same number of
threads, all comes out the same to the digit, however many processes share the work.
"""

import argparse
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from first_runs.runs import Found, save, table
from joblib import Parallel, delayed
from tqdm import tqdm

PARTS = ("attention", "svmax", "knowledge_evolution", "two_head")
SEEDLESS = ("attention",)
BAR = "parts and seeds: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="default: out")
    parser.add_argument("--seeds", type=int, default=2, help="how many, from 0 (default: 2)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at a time (default: one a core)")
    parser.add_argument("--threads", type=int, default=1, help="of each; small networks gain nothing (default: 1)")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")
    return arguments


def work(part: str, seed: int, folder: Path, threads: int) -> Found:
    """Run a part for a seed."""
    import torch  # the process that only waits for others is spared it

    module = import_module(f"first_runs.{part}")
    torch.set_num_threads(threads)
    return Found(module.TITLE, module.run(seed, folder))


def run_all(parts: Sequence[str], seeds: int, folder: Path, processes: int, threads: int) -> dict[str, Found]:
    """Run every part for every seed, some at a time, under one progress bar; return what each part found."""
    jobs = [(part, seed) for part in parts for seed in range(1 if part in SEEDLESS else seeds)]
    running = Parallel(processes, return_as="generator")(delayed(work)(*job, folder, threads) for job in jobs)
    done = list(tqdm(running, total=len(jobs), bar_format=BAR))
    found: dict[str, Found] = {}
    for (part, _), one in zip(jobs, done, strict=True):
        found.setdefault(part, Found(one.title, [])).runs.extend(one.runs)
    return found


def main() -> None:
    """Run the parts, print their tables and write their files."""
    arguments = options()
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = arguments.out.resolve()
    found = run_all(arguments.parts or PARTS, arguments.seeds, folder, arguments.processes, arguments.threads)
    for part in found.values():
        print(f"\n{part.title}")
        if part.runs:
            print(f"\n{table(part.runs)}")
    about = f"Mean ± standard deviation of {arguments.seeds} seeds, {arguments.threads} thread(s) each."
    save(found, arguments.out, about)
    print(f"\n{about} In {arguments.out}: {', '.join(sorted(path.name for path in arguments.out.iterdir()))}")


if __name__ == "__main__":
    main()
