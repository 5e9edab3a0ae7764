"""Read a study's rows; means with 95 % intervals, paired differences, and Markdown tables of both."""

import csv
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from scipy import stats

Values = dict[int, float]  # by seed


@dataclass(frozen=True)
class Results:
    """The rows of one or more CSV files with the same settings."""

    rows: tuple[dict[str, str], ...]

    @classmethod
    def load(cls, folder: Path, *names: str) -> "Results":
        """Read the files of some studies, as far as they are complete; one not run yet has no rows."""
        rows: list[dict[str, str]] = []
        for path in (folder / f"{name}.csv" for name in names):
            if path.exists():
                with path.open(newline="") as file:
                    rows.extend(complete(list(csv.DictReader(file))))
        return cls(tuple(rows))

    def values(self, measure: str, where: Mapping[str, Any]) -> Values:
        """Return a measure by seed, of the runs with some settings."""
        wanted = {name: str(value) for name, value in where.items()}
        chosen = (row for row in self.rows if all(row[name] == value for name, value in wanted.items()))
        return {int(row["seed"]): float(row[measure]) for row in chosen if row[measure]}

    @cached_property
    def provenance(self) -> str:
        """The versions, the number of runs and the seeds, as a sentence."""
        if not self.rows:
            return "No runs yet."
        versions = " / ".join(sorted({row["versions"] for row in self.rows}))
        seeds = sorted({int(row["seed"]) for row in self.rows})
        seconds = sum(float(row["seconds"]) for row in self.rows)
        which = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
        return f"{len(self.rows)} runs, {which}, {seconds / 60:.0f} minutes in all; {versions}."


def complete(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows of the settings with as many seeds as any has: of a study that is not through, no half means."""
    settings = [tuple(itertools.takewhile(lambda cell: cell[0] != "seed", row.items())) for row in rows]
    seeds = Counter(settings)
    return [row for row, setting in zip(rows, settings, strict=True) if seeds[setting] == max(seeds.values())]


@dataclass(frozen=True)
class Estimate:
    """A mean, the half width of its 95 % interval by Student's t, and the p-value of a mean of zero."""

    mean: float
    half: float
    p: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Return the estimate from values of independent seeds; one value has no interval."""
        if len(values) < 2:
            return cls(values[0], float("nan"), float("nan"))
        mean = sum(values) / len(values)
        if max(values) == min(values):
            return cls(mean, 0.0, float(mean == 0))
        test = stats.ttest_1samp(values, 0)
        return cls(mean, float(test.confidence_interval(0.95).high) - mean, float(test.pvalue))

    def text(self, sign: bool = False, digits: int = 1) -> str:
        """Return "mean ± half"."""
        mean = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        return mean if math.isnan(self.half) else f"{mean}\u00a0±\u00a0{self.half:.{digits}f}"  # not to be broken


def difference(values: Values, control: Values) -> Estimate | None:
    """Return the mean difference over the seeds that both have: the paired t-test."""
    shared = sorted(values.keys() & control.keys())
    return Estimate.of([values[seed] - control[seed] for seed in shared]) if len(shared) > 1 else None


@dataclass(frozen=True)
class Row:
    """A row of a table: its label, its settings, and the settings of its control, if it has one."""

    label: str
    where: Mapping[str, Any]
    control: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table: its label, a measure, further settings, and perhaps another measure of the same runs.

    Differences are then from that one rather than from the row's control.
    """

    label: str
    measure: str
    where: Mapping[str, Any]
    digits: int = 1
    control: str = ""


@dataclass
class Cell:
    """An entry of a table."""

    estimate: Estimate | None
    digits: int
    difference: Estimate | None = None
    significant: bool = False

    def __str__(self) -> str:
        if self.estimate is None:
            return ""
        text = self.estimate.text(digits=self.digits)
        if self.difference is None:
            return text
        change = self.difference.text(sign=True, digits=self.digits)
        return f"{text} (**{change}**)" if self.significant else f"{text} ({change})"


def cell(results: Results, row: Row, column: Column) -> Cell:
    """Return the mean of a row's runs and its paired difference from the control."""
    values = results.values(column.measure, {**row.where, **column.where})
    if not values:
        return Cell(None, column.digits)
    change = None
    if column.control:
        change = difference(values, results.values(column.control, {**row.where, **column.where}))
    elif row.control is not None:
        change = difference(values, results.values(column.measure, {**column.where, **row.control}))
    return Cell(Estimate.of(list(values.values())), column.digits, change)


def compared(results: Results, rows: Sequence[Row], columns: Sequence[Column]) -> list[list[Cell]]:
    """Return all entries of a table, significant where false discoveries among its differences are held to 5 %."""
    cells = [[cell(results, row, column) for column in columns] for row in rows]
    tested = [c for line in cells for c in line if c.difference and not math.isnan(c.difference.p)]
    if tested:
        adjusted = stats.false_discovery_control([c.difference.p for c in tested if c.difference])
        for c, p in zip(tested, adjusted, strict=True):
            c.significant = bool(p < 0.05)
    return cells


def table(results: Results, title: str, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return a Markdown table, without the rows that have no runs yet."""
    lines = [f"| {title} | {' | '.join(column.label for column in columns)} |", "|---" * (1 + len(columns)) + "|"]
    for row, line in zip(rows, compared(results, rows, columns), strict=True):
        if any(c.estimate for c in line):
            lines.append(f"| {row.label} | {' | '.join(map(str, line))} |")
    if len(lines) == 2:
        return f"({title}: not measured yet.)"
    return "\n".join(lines)


def tally(cells: Sequence[Cell]) -> str:
    """Return how many differences are significant and of which sign."""
    tested = [c for c in cells if c.difference]
    up = sum(c.significant and c.difference.mean > 0 for c in tested if c.difference)
    down = sum(c.significant and c.difference.mean < 0 for c in tested if c.difference)
    return f"{up} up, {down} down of {len(tested)}"
