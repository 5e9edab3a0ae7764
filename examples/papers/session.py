"""One call of a paper's script: its command line, its processes, its data, and the rows that it fills in."""

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from readers import Data, Reader, read
from rows import Measures, Published, Rows, published, table

Run = tuple[str, ...]  # its name, in parts
LAUNCH = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # what torchrun sets


def command_line(description: str, readers: Iterable[str]) -> argparse.ArgumentParser:
    """Return the options that every script has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(readers), required=True, help="the data set; csv for one's own")
    parser.add_argument("--root", type=Path, required=True, help="the folder that holds it; for csv the file")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("out/papers"), help="for rows and checkpoints (%(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="run only the lines with these names")
    parser.add_argument("--model", help="another network than the published one, by its name in timm")
    parser.add_argument("--batch-size", type=int, help="another than the published one")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="pretrained weights, where there is no network")
    parser.add_argument("--workers", type=int, default=4, help="processes that load images (%(default)s)")
    parser.add_argument("--other-counts", action="store_true", help="go on with a part of the data set")
    parser.add_argument("--dry-run", action="store_true", help="check every file and predict memory and time, no more")
    return parser


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of scripts that train."""
    parser.add_argument("--precision", choices=["bf16", "float32"], default="bf16", help="of the passes (%(default)s)")
    parser.add_argument("--checkpoint-every", type=int, default=500, metavar="STEPS", help="(%(default)s)")


@dataclass(frozen=True)
class Machine:
    """This process: its device, its number, and how many there are."""

    device: torch.device
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Session:
    """What was asked for, where it runs, on what data, and the rows that are there.

    Attributes:
        options: the command line; what was not given is as published.
        machine: this process.
        data: the data set.
        folder: for rows and checkpoints.
        rows: those of this call and of former ones.
        settings: what the rows depend on.
        differs: what is not as published, in words; empty if all is.
    """

    options: argparse.Namespace
    machine: Machine
    data: Data
    folder: Path
    rows: Rows
    settings: dict[str, str]
    differs: list[str]

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.machine.rank == 0

    def say(self, text: str) -> None:
        """Print, once."""
        if self.is_first:
            print(text, flush=True)

    def record(self, name: str, measure: Callable[[], Measures]) -> None:
        """Measure, once, and keep the row."""
        if self.is_first:
            self.rows.add(name, measure())

    def show(self, rows: Mapping[str, Measures], beside: Mapping[tuple[str, str], Published] | None = None) -> None:
        """Print rows, once, with published figures in brackets: by default those of the very same experiment."""
        if beside is None:
            beside = {} if self.differs else published(self.folder.name.split("-")[0], self.options.data)
            for difference in self.differs:
                self.say(f"no published figure is shown: {difference}")
        self.say(table(rows, beside))


@contextmanager
def session(
    parser: argparse.ArgumentParser,
    readers: Mapping[str, Reader],
    as_published: Callable[[argparse.Namespace], dict[str, Any]],
) -> Iterator[Session]:
    """Read the command line and the data, and open the rows.

    Args:
        parser: the script's.
        readers: of its data sets.
        as_published: returns, of the options, those on which rows depend, with their published values.
    """
    options = parser.parse_args()
    differs = []
    for name, value in as_published(options).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
        elif getattr(options, name) != value:
            differs.append(f"--{name.replace('_', '-')} is {getattr(options, name)}, published is {value}")
    with processes() as machine:
        try:
            check(options, machine)
            data = read(readers[options.data], options.root, options.other_counts)
            settings = {name: str(getattr(options, name)) for name in as_published(options)}
            settings |= {"weights": str(options.weights), "counts": str(data.counts)}
            settings |= {"precision": options.precision} if hasattr(options, "precision") else {}
            folder = options.out / f"{Path(parser.prog).stem}-{options.data}-seed{options.seed}"
            rows = Rows(folder / "rows.json", settings)
            agree(machine, list(rows.rows), rows.path)
        except (OSError, ValueError) as error:
            raise SystemExit(f"{parser.prog}: {error}") from error
        if data.published is None:
            differs.append("the data are one's own")
        elif not data.is_published:
            differs.append(f"{data.name} has {data.counts}, published is {data.published}")
        yield Session(options, machine, data, folder, rows, settings, differs)


@contextmanager
def processes() -> Iterator[Machine]:
    """Join the processes that torchrun started, if it did."""
    rank, local, world = (int(os.environ.get(name, default)) for name, default in LAUNCH.items())
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise SystemExit(f"torchrun started more processes than this machine has GPUs, {torch.cuda.device_count()}")
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world > 1:  # the others wait while the first clusters the test images
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=4))
    try:
        yield Machine(device, rank, world)
    finally:
        if world > 1:
            dist.destroy_process_group()


def agree(machine: Machine, found: object, path: Path) -> None:
    """Raise unless all processes found the same in a file; with different beginnings they would wait for each other."""
    if machine.world > 1:
        everyone: list[object] = [None] * machine.world
        dist.all_gather_object(everyone, found)
        if any(one != found for one in everyone):
            raise ValueError(f"the processes see different files {path}; give them one --out on a disk that they share")


def check(options: argparse.Namespace, machine: Machine) -> None:
    """Raise if a number cannot be, or a file is not there."""
    least = {"seed": 0, "workers": 0, "batch_size": 1, "checkpoint_every": 1, "steps": 1, "epochs": 1}
    for name, low in least.items():
        value = getattr(options, name, low)
        if value < low:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
    trains = hasattr(options, "precision")
    if trains and options.batch_size % machine.world:
        raise ValueError(f"--batch-size must be a multiple of the {machine.world} processes, got {options.batch_size}")
    if options.weights and not options.weights.is_file():
        raise FileNotFoundError(f"--weights {options.weights} is not there")


def chosen(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """Return the runs with these names: in each column of names one of those given, or any where none is given."""
    known = dict.fromkeys(name for run in runs for name in run)
    for name in names:
        if name not in known:
            raise SystemExit(f"--only {name!r} names no run; the names are {', '.join(map(repr, known))}")
    columns = [set(column) & set(names) or set(column) for column in zip(*runs, strict=True)]
    return [run for run in runs if all(name in column for name, column in zip(run, columns, strict=True))]
