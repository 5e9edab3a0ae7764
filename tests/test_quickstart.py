"""The first runs of the README: their tables, files and figures, and that they come out the same twice."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
pytest.importorskip("matplotlib")


@pytest.fixture
def first_runs(monkeypatch):
    """Import modules of the first runs, and forget them afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from first_runs import runs, svmax

    yield runs, svmax
    for name in [name for name in sys.modules if name.partition(".")[0] in {"first_runs", "studies"}]:
        del sys.modules[name]


def test_tables_and_files(first_runs, tmp_path):
    runs, _ = first_runs
    found = [runs.Run("a", 0, {"score": 1.0}), runs.Run("a", 1, {"score": 2.0}), runs.Run("b", 0, {"score": 3.25})]
    assert runs.table(found).splitlines() == [
        "|   | score     |",
        "| --|---------- |",
        "| a | 1.5 ± 0.7 |",
        "| b | 3.2       |",
    ]
    parts = {"toy": runs.Found("A toy", found), "none": runs.Found("Nothing to tell", [])}
    runs.save(parts, tmp_path, "About it.")
    assert (tmp_path / "quickstart.md").read_text() == f"# Quickstart\n\nAbout it.\n\n## A toy\n\n{runs.table(found)}\n"
    with (tmp_path / "quickstart.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["part", "method", "seed", "measure", "value"],
        ["toy", "a", "0", "score", "1"],
        ["toy", "a", "1", "score", "2"],
        ["toy", "b", "0", "score", "3.25"],
    ]


def test_the_nearest_of_the_same_class_are_framed(first_runs):
    _, svmax = first_runs
    from matplotlib.colors import to_rgb
    from studies.glyphs import Glyphs

    labels = torch.arange(4).repeat_interleave(6)
    embeddings = torch.nn.functional.normalize(torch.eye(4)[labels] + 0.01 * torch.randn(24, 4))
    embeddings[0] = embeddings[6]  # the first image lies among those of another class
    images = Glyphs(torch.zeros(24, 1, 8, 8), labels, torch.zeros(24, dtype=torch.long), "abcd")
    picture = svmax.nearest(embeddings, images, torch.tensor([0, 13]))
    side = 8 + 2 * svmax.FRAME + 1  # and a line between
    assert picture.shape == (3, 2 * side + 1, 6 * side + 1)
    corners = picture[:, 1::side, 1::side]

    def framed(row):
        return [torch.equal(corner, torch.tensor(to_rgb(svmax.RIGHT))) for corner in corners[:, row].T]

    assert framed(0) == [False] * 6
    assert framed(1) == [False] + [True] * 5


@pytest.mark.slow
def test_a_part_comes_out_the_same_twice(tmp_path):
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "svmax", "--seeds", "1", "--out"]
    for name, processes in (("once", "1"), ("again", "2")):
        own = [*command, str(tmp_path / name), "--processes", processes]
        done = subprocess.run(own, capture_output=True, text=True, check=True)
        bars = done.stderr.replace("\r", "\n").split("\n")
        assert all("left" in line for line in bars if line.strip())  # no host's warnings
        assert "100%" in bars[-2]
        assert "| N-pairs + SVMax |" in done.stdout
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert files == {"quickstart.md", "quickstart.csv", "singular_values_0.csv", "svmax_0.png"}
    for name in ("quickstart.csv", "singular_values_0.csv"):
        assert (tmp_path / "once" / name).read_text() == (tmp_path / "again" / name).read_text()


@pytest.mark.slow
def test_all_parts_run(tmp_path):
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--seeds", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "attention_maps.png" in done.stdout
    assert all("left" in line for line in done.stderr.replace("\r", "\n").split("\n") if line.strip())
    with (tmp_path / "quickstart.csv").open(newline="") as file:
        assert {row["part"] for row in csv.DictReader(file)} == {"svmax", "two_head", "knowledge_evolution"}


def test_an_unknown_part_is_refused():
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "quickstart.py"), "nothing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "unknown part: nothing" in done.stderr
