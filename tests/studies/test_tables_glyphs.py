"""The tables on characters say what hand-made rows say, and stay in their folds."""

import pytest

pytest.importorskip("scipy")


def row(loss, name, rate, seed, recall, *, rank="40"):
    weight = "0.0" if name == "none" else "1.0"
    setting = {"loss": loss, "regularizer": name, "learning rate": rate, "weight": weight, "steps": "100"}
    others = {"MAP@R": "", "effective rank": "", "effective rank, training": rank}
    return {**setting, "seed": str(seed), "R@1": str(recall), **others}


@pytest.fixture
def grid(load):
    rows = []
    for seed in range(3):
        rows += [
            row("N-pairs", "none", "0.1", seed, 50 + seed, rank="20"),
            row("contrastive", "none", "0.1", seed, 70, rank="50"),
        ]
        rows += [row("N-pairs", "SVMax, exponential", "0.1", seed, 60 + seed + 0.1 * seed)]
        rows += [row("contrastive", "SVMax, exponential", "0.1", seed, 69 + seed)]
    rows.append(row("N-pairs", "none", "1.0", 0, 40, rank="30"))
    rows.append(row("N-pairs", "SVMax, exponential", "1.0", 1, 80))  # no seed in common
    return load("results").Results(tuple(rows))


def test_without_and_with_over_the_seeds_of_both(load, grid):
    text = load("tables_glyphs").by_loss(grid).replace("\u00a0", " ")
    assert "| N-pairs | **51.0 → 61.1** |  |  |" in text
    assert "| contrastive | 70.0 → 70.0 |  |  |" in text
    assert "multi-similarity" not in text


def test_the_rank_is_held_against_the_gain(load, grid):
    tables = load("tables_glyphs")
    assert sorted(tables.gains(grid)) == [
        ("N-pairs", 20.0, pytest.approx(10.1)),
        ("contrastive", 50.0, pytest.approx(0.0)),
    ]
    assert tables.foretold(grid) == "not measured yet"
    more = [
        row(loss, name, rate, 0, recall, rank=str(rank))
        for rate, recall_with, rank in (("0.01", 60, 10), ("0.1", 55, 20), ("1.0", 40, 60))
        for loss in ("contrastive", "N-pairs")
        for name, recall in (("none", 50), ("SVMax, exponential", recall_with))
    ]
    text = tables.foretold(load("results").Results(tuple(more)))
    assert text.startswith("rank correlation -1.00 over 6 settings; recall rises in 4 of the 4 whose rank is below 32")
    assert text.endswith("in 0 of the 2 others")


def test_a_table_in_a_fold_stays_there(load, monkeypatch, tmp_path):
    report = load("report")
    monkeypatch.setattr(report, "PAGES", tmp_path)
    monkeypatch.setattr(report, "tables", lambda folder: {"toy": lambda: "| a |\n|---|\n| 1 |"})
    (tmp_path / "page.md").write_text('??? note "Fold"\n\n    {{toy}}\n\nThe table {{toy}}\n')
    text = report.pages(tmp_path)["page.md"]
    assert text == '??? note "Fold"\n\n    | a |\n    |---|\n    | 1 |\n\nThe table | a |\n|---|\n| 1 |\n'


def test_a_verdict_says_how_many_seeds_it_rests_on(load, grid):
    report = load("report")
    where = "loss={}; regularizer=SVMax, exponential; learning rate=0.1; weight=1.0"
    alone = "regularizer=none; weight=0.0"
    said = report.verdict(grid, "R@1", where.format("N-pairs"), alone).replace("\u00a0", " ")
    assert said == "higher (+10.1 ± 0.2)"
    assert report.verdict(grid, "R@1", where.format("contrastive"), alone).startswith("no clear difference (+0.0")
    assert report.verdict(grid, "R@1", where.format("multi-similarity"), alone) == "not measured yet"
    up, down, level = (report.NUMBERS[words] for words in ("up", "down", "level"))
    assert up(grid, "R@1", where.format("N-pairs"), alone).replace("\u00a0", " ") == "+10.1 ± 0.2"
    assert level(grid, "R@1", where.format("contrastive"), alone).startswith("+0.0")
    assert up(grid, "R@1", where.format("multi-similarity"), alone) == "not measured yet"
    for wrong in (down, level):
        with pytest.raises(ValueError, match="but it is 'up'"):
            wrong(grid, "R@1", where.format("N-pairs"), alone)
    with pytest.raises(ValueError, match="but it is 'level'"):
        up(grid, "R@1", where.format("contrastive"), alone)
    one = load("results").Results(tuple(r for r in grid.rows if r["seed"] == "0" and r["learning rate"] == "0.1"))
    assert report.verdict(one, "R@1", where.format("N-pairs"), alone) == "+10.0 with the one seed so far"
