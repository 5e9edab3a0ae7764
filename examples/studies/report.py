"""Make docs/studies from docs/results: every table, figure and number on those pages comes from the rows there.

    python examples/studies/report.py

The pages' words are in examples/studies/pages. There, {{name}} stands for a table of tables.py,
{{mean | file | measure | settings}} for a mean with its interval, and
{{change | file | measure | settings | control's settings}} for a paired difference. Settings are written a=b; c=d; a
control has all those of the method that it does not name itself.
"""

import argparse
import re
from pathlib import Path

from figures import figures
from results import Estimate, Results, difference
from tables import tables

ROOT = Path(__file__).parents[2]
PAGES = Path(__file__).parent / "pages"


def settings(text: str) -> dict[str, str]:
    """Return the settings written as a=b; c=d."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def number(folder: Path, kind: str, file: str, measure: str, *sides: str) -> str:
    """Return a mean, or a paired difference from a control, with its 95 % interval."""
    results, chosen, *control = Results.load(folder, file), *map(settings, sides)
    values = results.values(measure, chosen)
    if kind == "mean" and values:
        return Estimate.of(list(values.values())).text()
    change = difference(values, results.values(measure, {**chosen, **control[0]})) if control else None
    if change is None:
        raise ValueError(f"{file}.csv has no runs for the {kind} of {measure!r}: {' against '.join(sides)}")
    return change.text(sign=True)


def pages(folder: Path) -> dict[str, str]:
    """Return the pages by file name, as Markdown."""
    available = tables(folder)

    def filled(match: re.Match[str]) -> str:
        kind, *rest = (part.strip() for part in match[1].split("|"))
        return number(folder, kind, *rest) if rest else available[kind]()

    return {path.name: re.sub(r"{{(.+?)}}", filled, path.read_text()) for path in sorted(PAGES.glob("*.md"))}


def main() -> None:
    """Write all pages and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of the CSV files")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "studies", help="folder of the pages")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, text in pages(arguments.results).items():
        (arguments.out / name).write_text(text)
    for name, draw in figures(arguments.results).items():
        draw().savefig(arguments.out / name, dpi=110)


if __name__ == "__main__":
    main()
