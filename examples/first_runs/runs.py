"""What a part of the quickstart finds, and its tables."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev


@dataclass(frozen=True)
class Run:
    """What one training gave."""

    method: str
    seed: int
    measures: dict[str, float]


@dataclass(frozen=True)
class Found:
    """What a part found: the title of its table, and its runs, none where there is nothing to count."""

    title: str
    runs: list[Run]


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each method, in the order of the methods."""
    return {method: [run for run in runs if run.method == method] for method in dict.fromkeys(r.method for r in runs)}


def table(runs: Sequence[Run]) -> str:
    """Return the means and the standard deviations over the seeds, as a Markdown table."""
    names = list(dict.fromkeys(name for run in runs for name in run.measures))
    rows = [["", *names]]
    for method, own in by_method(runs).items():
        cells = ([run.measures[name] for run in own if name in run.measures] for name in names)
        rows.append([method, *map(estimate, cells)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


def estimate(values: Sequence[float]) -> str:
    """Return the mean, and with several values their standard deviation."""
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def save(found: Mapping[str, Found], folder: Path, about: str) -> None:
    """Write the tables as Markdown, and every number as CSV."""
    tables = [f"## {part.title}\n\n{table(part.runs)}\n" for part in found.values() if part.runs]
    (folder / "quickstart.md").write_text("\n".join([f"# Quickstart\n\n{about}\n", *tables]))
    with (folder / "quickstart.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "method", "seed", "measure", "value"])
        for name, part in found.items():
            for run in part.runs:
                for measure, value in run.measures.items():
                    writer.writerow([name, run.method, run.seed, measure, f"{value:.6g}"])
