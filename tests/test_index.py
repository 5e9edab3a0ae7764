"""What others read of the project: the README for a package index, and CITATION.cff."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "site" / "index_readme.py"
BASE, IMAGES = "https://example.org/files", "https://example.org/raw/"


def index_readme(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def targets(text, *, pictures):
    return re.findall(rf"{'' if pictures else '(?<!!)'}{'!' * pictures}\[[^\]]*\]\(([^)\s]+)\)", text)


def test_links_and_pictures_of_the_index_readme_have_addresses():
    readme = (ROOT / "README.md").read_text()
    printed = index_readme("--base-url", BASE, "--image-url", IMAGES).stdout
    assert len(printed.splitlines()) == len(readme.splitlines())
    for pictures, address in ((True, IMAGES), (False, f"{BASE}/")):
        before, after = targets(readme, pictures=pictures), targets(printed, pictures=pictures)
        assert before
        assert after == [one if one.startswith("http") else address + one for one in before]


def test_pictures_lie_at_the_base_by_default():
    printed = index_readme("--base-url", BASE).stdout
    assert all(one.startswith(f"{BASE}/docs/") for one in targets(printed, pictures=True))


@pytest.mark.parametrize("arguments", [[], ["--base-url", "example.org"]])
def test_an_address_is_needed(arguments):
    done = index_readme(*arguments)
    assert done.returncode == 2
    assert "--base-url" in done.stderr


def test_the_papers_to_cite_are_those_of_the_readme():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors"} <= citation.keys()
    cited = " ".join((ROOT / "README.md").read_text().partition("## How to cite")[2].split())
    assert citation["references"]
    for reference in citation["references"]:
        assert f"*{reference['title']}*" in cited
        assert {"type", "authors", "year"} <= reference.keys()
        assert str(reference["year"]) in cited
