"""Run a study: a grid of settings x seeds, one CSV row a run, resumable at any point.

A script calls ``main``; every row holds its settings, seed, measures, seconds, and the command and versions that
reproduce it. Start it again after an interruption and it goes on: rows that are there are not computed again.
"""

import argparse
import csv
import io
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pml_extensions import __version__

RESULTS = Path(__file__).parent / "rows"
QUICK_RESULTS = Path("out") / "studies"
PROVENANCE = ("seconds", "command", "versions")

Setting = dict[str, Any]
Measures = dict[str, float]


@dataclass(frozen=True)
class Study:
    """A grid of settings, and what one run of a setting with a seed measures.

    Attributes:
        name: of the CSV file.
        settings: dictionaries with the same keys, the first columns.
        measures: names of the columns that ``run`` returns; a run may leave some out.
        run: called with a setting, a seed, and whether a quick run is enough.
        seeds: which, the first five unless said otherwise.
    """

    name: str
    settings: Sequence[Setting]
    measures: Sequence[str]
    run: Callable[[Setting, int, bool], Measures]
    seeds: Sequence[int] = range(5)

    @property
    def fields(self) -> list[str]:
        """The CSV's columns."""
        return [*self.settings[0], "seed", *self.measures, *PROVENANCE]


def main(*studies: Study) -> None:
    """Run what is missing of some studies, seed by seed."""
    parser = argparse.ArgumentParser(description="Run what is missing of this study; start again to go on.")
    parser.add_argument(
        "names", nargs="*", metavar="STUDY", help=f"of {', '.join(s.name for s in studies)}; default: all"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds to run (default: those of the study)")
    parser.add_argument("--quick", action="store_true", help="a sanity run: one seed, few steps, into out/studies")
    parser.add_argument("--out", type=Path, help="folder of the CSV files (default: examples/studies/rows)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {study.name for study in studies}:
        parser.error(f"unknown study: {', '.join(sorted(unknown))}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for study in studies:
        if arguments.names and study.name not in arguments.names:
            continue
        seeds = arguments.seeds or study.seeds[: 1 if arguments.quick else None]
        complete(study, seeds, arguments.out or (QUICK_RESULTS if arguments.quick else RESULTS), arguments.quick)


def complete(study: Study, seeds: Sequence[int], folder: Path, quick: bool = False) -> None:
    """Run all settings of a study with all seeds, other than those whose rows are in the CSV already."""
    path = folder / f"{study.name}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    repair(path)
    done = {key(row, study) for row in read(path, study)}
    jobs = [{**setting, "seed": seed} for seed in seeds for setting in study.settings]
    missing = [job for job in jobs if key(job, study) not in done]
    progress = tqdm(missing, desc=study.name, total=len(jobs), initial=len(jobs) - len(missing))
    for job in progress:
        progress.set_postfix({name: job[name] for name in (*study.settings[0], "seed")})
        append(path, study.fields, measured(study, job, quick))


def measured(study: Study, job: Setting, quick: bool) -> Setting:
    """Return the row of one run."""
    setting = {name: job[name] for name in study.settings[0]}
    np.random.seed(job["seed"])  # noqa: NPY002 (pytorch-metric-learning's sampler draws from it)
    torch.manual_seed(job["seed"])
    start = time.process_time()
    measures = study.run(setting, job["seed"], quick)
    rounded = {name: f"{value:.6g}" for name, value in measures.items()}
    provenance = (f"{time.process_time() - start:.1f}", command(study, job["seed"], quick), versions())
    return {**job, **rounded, **dict(zip(PROVENANCE, provenance, strict=True))}


def command(study: Study, seed: int, quick: bool) -> str:
    """Return what computes a row of this study and seed again."""
    script = Path(sys.argv[0]).name
    return f"python examples/studies/{script} {study.name} --seeds {seed}" + " --quick" * quick


def versions() -> str:
    """Return what the row was computed with."""
    packages = ("torch", "timm", "pytorch-metric-learning")
    found = [f"{name} {version(name)}" for name in packages]
    return "; ".join([f"pml_extensions {__version__}", *found, f"Python {platform.python_version()}"])


def read(path: Path, study: Study | None = None) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none if it is not there yet."""
    if not path.exists() or not path.stat().st_size:
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if study and list(reader.fieldnames or ()) != study.fields:
            raise ValueError(f"{path} has other columns than this study: {reader.fieldnames}, expected {study.fields}")
        return list(reader)


def key(row: Setting, study: Study) -> tuple[str, ...]:
    """Return what tells a run from all others of its study."""
    return tuple(str(row[name]) for name in (*study.settings[0], "seed"))


def append(path: Path, fields: Sequence[str], row: Setting) -> None:
    """Add a row by one write to the file's end, which the file system keeps whole, and wait for the disk."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    if not path.exists() or not path.stat().st_size:
        writer.writeheader()
    writer.writerow(row)
    with path.open("ab", buffering=0) as file:
        file.write(text.getvalue().encode())
        os.fsync(file.fileno())


def repair(path: Path) -> None:
    """Drop a last line that was cut off by a power failure or a full disk."""
    if path.exists():
        whole, newline, _ = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole + newline))
