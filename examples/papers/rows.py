"""The table: this run's rows on disk, and the published ones beside them."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).with_name("published.csv")
Measures = dict[str, float]


class Rows:
    """Measures by the name of a run, in a file that is written whole or not at all.

    Args:
        path: the file.
        settings: what the measures depend on; a file with others is refused.
    """

    def __init__(self, path: Path, settings: Mapping[str, str]) -> None:
        self.path = path
        self.settings = dict(settings)
        self.rows: dict[str, Measures] = {}
        if path.exists():
            held = json.loads(path.read_text())
            check_same(path, held["settings"], settings)
            self.rows = held["rows"]

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def __getitem__(self, name: str) -> Measures:
        return self.rows[name]

    def add(self, name: str, measures: Mapping[str, float], write: bool = True) -> None:
        """Add a run's measures; of several processes one writes."""
        self.rows[name] = dict(measures)
        if write:
            replace_file(self.path, json.dumps({"settings": self.settings, "rows": self.rows}, indent=1).encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole, or leave the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def check_same(path: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise if a file was made with other settings."""
    for name in wanted:
        if held.get(name) != wanted[name]:
            raise ValueError(
                f"{path} was made with {name.replace('_', '-')} {held.get(name)}, not {wanted[name]}; ask for the same "
                "again to go on, or pass another --out"
            )


@dataclass(frozen=True)
class Published:
    """A published figure, where it stands, and how we know it: read in the code, the paper or the abstract."""

    value: float
    source: str
    place: str
    read: str


def published(paper: str, data: str) -> dict[tuple[str, str], Published]:
    """Return a paper's figures on a data set, by run and measure."""
    with PUBLISHED.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["paper"], row["data"]) == (paper, data)]
    return {
        (row["run"], row["measure"]): Published(float(row["value"]), row["source"], row["place"], row["read"])
        for row in rows
    }


def table(rows: Mapping[str, Measures], beside: Mapping[tuple[str, str], Published]) -> str:
    """Return a table of our measures, with the published figure in brackets where there is one, and their sources."""
    measures = list(dict.fromkeys(measure for row in rows.values() for measure in row))
    lines = [["", *measures]]
    shown: list[Published] = []
    for name, row in rows.items():
        line = [name]
        for measure in measures:
            text = f"{row[measure]:.4g}" if measure in row else ""
            if (name, measure) in beside and measure in row:
                shown.append(beside[name, measure])
                text += f" (published {shown[-1].value:g})"
            line.append(text)
        lines.append(line)
    sources = [f"published: {one.source}, {one.place} (read in the {one.read})" for one in shown]
    return "\n".join([*aligned(lines), *dict.fromkeys(sources)])


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, each column as wide as its longest entry."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
