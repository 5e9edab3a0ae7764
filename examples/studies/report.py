"""Make docs/studies from rows/: every table, figure and number on those pages comes from the rows there.

    python examples/studies/report.py

The pages' words are in examples/studies/pages. There, {{name}} stands for a table of tables.py,
{{mean | file | measure | settings}} for a mean with its interval,
{{change | file | measure | settings | control's settings}} for a paired difference, and {{verdict | ...}} for the same
in words. {{up | ...}}, {{down | ...}} and {{level | ...}} are such differences for a page's own words: there is no page
if the 95 % interval does not lie above zero, below it or around it. {{gap | file | measure | other measure | settings}}
is the paired difference of two measures of the same runs. Several files are joined by +. Settings are written
a=b; c=d; a control has all those of the method that it does not name itself.
"""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from results import Estimate, Results, difference
from tables import tables

ROOT = Path(__file__).parents[2]
PAGES = Path(__file__).parent / "pages"
ROWS = Path(__file__).parent / "rows"
MISSING = "not measured yet"


def settings(text: str) -> dict[str, str]:
    """Return the settings written as a=b; c=d."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def mean(results: Results, measure: str, where: str) -> str:
    """Return a mean with its 95 % interval."""
    values = results.values(measure, settings(where))
    return Estimate.of([*values.values()]).text() if values else MISSING


def paired(results: Results, measure: str, where: str, control: str) -> Estimate | None:
    """Return the paired difference of two settings."""
    chosen = settings(where)
    own, level = results.values(measure, chosen), results.values(measure, {**chosen, **settings(control)})
    each = [own[seed] - level[seed] for seed in own.keys() & level.keys()]
    return Estimate.of(each) if len(each) == 1 else difference(own, level)


def change(results: Results, measure: str, where: str, control: str) -> str:
    """Return the paired difference with its 95 % interval."""
    found = paired(results, measure, where, control)
    return found.text(sign=True) if found else MISSING


def verdict(results: Results, measure: str, where: str, control: str) -> str:
    """Return the paired difference in words; it is clear if its 95 % interval is on one side of zero."""
    found = paired(results, measure, where, control)
    if found is None:
        return MISSING
    if math.isnan(found.p):
        return f"{found.text(sign=True)} with the one seed so far"
    if not found.p < 0.05:
        return f"no clear difference ({found.text(sign=True)})"
    return f"{'higher' if found.mean > 0 else 'lower'} ({found.text(sign=True)})"


def claimed(words: str) -> Callable[[Results, str, str, str], str]:
    """Return a paired difference like ``change`` that must be what a page says of it: up, down or level."""

    def checked(results: Results, measure: str, where: str, control: str) -> str:
        found = paired(results, measure, where, control)
        if found is None:
            return MISSING
        clear = found.p < 0.05
        seen = ("up" if found.mean > 0 else "down") if clear else "level"
        if seen != words:
            raise ValueError(
                f"a page says {words!r} of {measure}, {where}, but it is {seen!r}: {found.text(sign=True)}"
            )
        return found.text(sign=True)

    return checked


def gap(results: Results, measure: str, other: str, where: str) -> str:
    """Return the paired difference of two measures of the same runs, with its 95 % interval."""
    chosen = settings(where)
    found = difference(results.values(measure, chosen), results.values(other, chosen))
    return found.text(sign=True) if found else MISSING


NUMBERS = {"mean": mean, "change": change, "verdict": verdict, "gap": gap}
NUMBERS |= {words: claimed(words) for words in ("up", "down", "level")}


def fill(text: str, folder: Path) -> str:
    """Return a text with the tables and numbers that its placeholders stand for."""
    available = tables(folder)

    def filled(match: re.Match[str]) -> str:
        kind, *rest = (part.strip() for part in " ".join(match[1].split()).split("|"))
        if not rest:
            before = match.string[: match.start()].rpartition("\n")[2]
            return available[kind]().replace("\n", "\n" + before if before.isspace() else "\n")  # as far in, in a fold
        return NUMBERS[kind](Results.load(folder, *rest[0].split("+")), *rest[1:])

    return re.sub(r"(?s){{(.+?)}}", filled, text)


def pages(folder: Path) -> dict[str, str]:
    """Return the pages by file name, as Markdown."""
    return {path.name: fill(path.read_text(), folder) for path in sorted(PAGES.glob("*.md"))}


def main() -> None:
    """Write all pages and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROWS, help="folder of the CSV files")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "studies", help="folder of the pages")
    arguments = parser.parse_args()
    from figures import figures  # the texts alone need no matplotlib

    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, text in pages(arguments.results).items():
        (arguments.out / name).write_text(text)
    for name, draw in figures(arguments.results).items():
        draw().savefig(arguments.out / name, dpi=110)


if __name__ == "__main__":
    main()
