"""The studies' runner goes on where it stopped; their tables are what scipy says."""

import csv
import re
import sys

import pytest
import torch
from scipy import stats


@pytest.fixture
def toy(load):
    """A study of four settings that counts its runs and can be told to stop."""
    runner = load("runner")
    calls, stops = [], set()

    def run(setting, seed, quick):
        if len(calls) in stops:
            raise KeyboardInterrupt
        calls.append((setting["lr"], setting["name"], seed))
        return {"score": setting["lr"] * 10 + seed, "drawn": torch.rand(()).item()}

    settings = [{"lr": lr, "name": name} for lr in (0.1, 1.0) for name in ("a", 'b, "quoted"')]
    return runner, runner.Study("toy", settings, ("score", "drawn", "not for all"), run, seeds=2), calls, stops


def rows_of(folder):
    with (folder / "toy.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_interrupted_study_goes_on_without_loss_or_repetition(toy, tmp_path):
    runner, study, calls, stops = toy
    stops.add(3)
    with pytest.raises(KeyboardInterrupt):
        runner.complete(study, range(2), tmp_path)
    before = rows_of(tmp_path)
    assert len(before) == 3
    stops.clear()
    runner.complete(study, range(2), tmp_path)
    runner.complete(study, range(2), tmp_path)
    rows = rows_of(tmp_path)
    assert len(calls) == len(set(calls)) == len(rows) == 8
    assert rows[:3] == before
    assert [row["seed"] for row in rows] == ["0"] * 4 + ["1"] * 4
    assert {row["not for all"] for row in rows} == {""}


def test_a_row_holds_what_is_needed_to_compute_it_again(toy, tmp_path):
    runner, study, _, _ = toy
    runner.complete(study, [7], tmp_path)
    row = rows_of(tmp_path)[1]
    assert (row["lr"], row["name"], row["seed"], row["score"]) == ("0.1", 'b, "quoted"', "7", "8")
    assert row["command"].endswith(" toy --seeds 7")
    assert f"torch {torch.__version__.split('+')[0]}" in row["versions"]
    assert float(row["seconds"]) >= 0
    assert len({row["drawn"] for row in rows_of(tmp_path)}) == 1  # every run starts from its seed


def test_a_line_cut_off_is_computed_again(toy, tmp_path):
    runner, study, calls, _ = toy
    runner.complete(study, [0], tmp_path)
    whole = (tmp_path / "toy.csv").read_bytes()
    (tmp_path / "toy.csv").write_bytes(whole[:-9])
    runner.complete(study, [0], tmp_path)
    assert len(rows_of(tmp_path)) == 4
    assert calls[-1] == calls[3]
    (tmp_path / "toy.csv").write_bytes(whole[:5])
    runner.complete(study, [0], tmp_path)
    assert len(rows_of(tmp_path)) == 4


def test_a_file_of_another_study_is_refused(toy, tmp_path):
    runner, study, _, _ = toy
    (tmp_path / "toy.csv").write_text("lr,seed\n0.1,0\n")
    with pytest.raises(ValueError, match="other columns than this study"):
        runner.complete(study, [0], tmp_path)


def test_the_command_line_chooses_study_seeds_and_folder(toy, tmp_path, monkeypatch):
    runner, study, calls, _ = toy
    monkeypatch.setattr(sys, "argv", ["toy.py", "toy", "--seeds", "4", "--out", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        runner.main(study)
    finally:
        torch.set_num_threads(threads)
    assert {call[2] for call in calls} == {4}
    monkeypatch.setattr(sys, "argv", ["toy.py", "other"])
    with pytest.raises(SystemExit):
        runner.main(study)


def test_tables_show_intervals_and_paired_differences(load):
    results = load("results")
    a, b = [70.0, 72.0, 75.0, 71.0], [73.0, 76.1, 78.2, 74.0]
    rows = [
        {"method": method, "seed": str(seed), "score": str(value)}
        for method, values in (("a", a), ("b", b), ("c", [*a[:3], 90.0]))
        for seed, value in enumerate(values)
    ]
    found = results.Results(tuple(rows))
    control = {"method": "a"}
    lines = [results.Row("a", control), *(results.Row(m, {"method": m}, control) for m in "bcd")]
    text = results.table(found, "methods", lines, [results.Column("score", "score", {})]).replace("\u00a0", " ")
    paired = stats.ttest_rel(b, a)
    interval = paired.confidence_interval(0.95)
    half = (interval.high - interval.low) / 2
    assert f"(**{paired.confidence_interval().low + half:+.1f} ± {half:.1f}**)" in text
    one = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    assert f"| a | {sum(a) / 4:.1f} ± {(one.high - one.low) / 2:.1f} |" in text
    assert "| c | 76.8 ± 14.4 (+4.8 ± 15.1) |" in text
    assert "| d |" not in text
    assert results.table(found, "nothing", lines[3:], [results.Column("score", "score", {})]).endswith(
        "not measured yet.)"
    )


def test_a_single_seed_has_no_interval(load):
    results = load("results")
    assert results.Estimate.of([3.0]).text() == "3.0"
    assert results.Estimate.of([3.0, 3.0]).text(sign=True) == "+3.0\u00a0±\u00a00.0"
    assert results.difference({0: 1.0}, {0: 2.0}) is None


def test_settings_with_fewer_seeds_than_others_are_left_out(load, tmp_path):
    results = load("results")
    lines = ["lr,name,seed,score", "0.1,a,0,1", "0.1,b,0,2", "1,a,0,3", "0.1,a,1,4", "1,a,1,5"]
    (tmp_path / "toy.csv").write_text("\n".join(lines))
    found = results.Results.load(tmp_path, "toy", "nothing")
    assert [row["score"] for row in found.rows] == ["1", "3", "4", "5"]
    (tmp_path / "toy.csv").write_text("\n".join(lines[:4]))
    assert len(results.Results.load(tmp_path, "toy").rows) == 3


def test_fashion_mnist_says_how_to_get_it_and_checks_it(load, tmp_path, monkeypatch):
    data = load("data")
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        data.fashion_mnist()
    for name in data.FILES:
        (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match="not the published file"):
        data.fashion_mnist()


def test_images_are_divided_by_class(load):
    data = load("data")
    labels = torch.arange(4).repeat(6)
    images = data.Images(labels[:, None, None, None].float(), labels)
    few, others = images.divide({0: 2, 2: 1}, seed=3)
    assert few.labels.tolist() == [0, 0, 2]
    assert others.labels.bincount().tolist() == [4, 6, 5, 6]
    assert images.classes([3, 1]).images.flatten().tolist() == [3.0] * 6 + [1.0] * 6
    assert torch.equal(images.few(2, 0).labels.bincount(), torch.tensor([2, 2, 2, 2]))
    seen, unseen = data.halves(5)
    assert sorted(seen + unseen) == list(range(10))


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("svmax", "svmax"),
        pytest.param("two_head", "two_head", marks=pytest.mark.slow),
        pytest.param("knowledge_evolution", "evolution", marks=pytest.mark.slow),
        pytest.param("all_together", "all_together", marks=pytest.mark.slow),
        pytest.param("l2_caf", "l2_caf", marks=pytest.mark.slow),
    ],
)
def test_a_study_runs(load, monkeypatch, script, name):
    data = load("data")
    labels = torch.arange(10).repeat(210)
    fake = data.Images(torch.randn(len(labels), 1, 28, 28), labels)
    monkeypatch.setattr(data, "fashion_mnist", lambda: (fake, fake))
    studies = load(script).STUDIES
    study = next(study for study in studies if study.name == name)
    measures = study.run(study.settings[-2], 0, quick=True)
    assert set(measures) <= set(study.measures)
    assert all(0 <= value < float("inf") for value in measures.values())


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("svmax_glyphs", "svmax_glyphs_rate"),
        ("semi_hard", "semi_hard"),
        ("two_head_glyphs", "two_head_glyphs"),
        ("all_together", "all_together_glyphs"),
        ("slim_start", "slim_start"),
        pytest.param("evolution_glyphs", "evolution_glyphs", marks=pytest.mark.slow),
    ],
)
def test_a_study_of_characters_runs(load, monkeypatch, script, name):
    pytest.importorskip("matplotlib")
    glyphs = load("glyphs")
    labels, faces = torch.arange(1010).repeat_interleave(11), torch.arange(11).repeat(1010)
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 1010)))
    fake = glyphs.Glyphs(torch.rand(len(labels), 1, 32, 32) * 2 - 1, labels, faces, characters)
    monkeypatch.setattr(glyphs, "drawn", lambda size: fake)
    study = next(study for study in load(script).STUDIES if study.name == name)
    measures = study.run(study.settings[1], 0, quick=True)
    assert set(measures) <= set(study.measures)
    assert all(0 <= value < float("inf") for value in measures.values())


@pytest.mark.slow
@pytest.mark.parametrize("network", ["classifier", "embedder"])
def test_maps_of_a_photograph_are_measured(load, network):
    pytest.importorskip("skimage")
    study = load("l2_caf").STUDIES[0]
    setting = next(setting for setting in study.settings if setting["network"] == network)
    measures = study.run(setting, 7, quick=True)
    assert set(measures) == set(study.measures)
    assert measures["deletion"] < measures["insertion"]


def test_a_diverged_network_retrieves_by_chance(load):
    measures = load("measures")
    diverged = torch.nn.Linear(4, 3)
    torch.nn.init.constant_(diverged.weight, float("nan"))
    labels = torch.arange(5).repeat_interleave(20)
    embeddings = measures.embed(diverged, torch.randn(100, 4))
    assert measures.retrieval(embeddings, labels)["R@1"] == pytest.approx(20, abs=2)
    assert measures.retrieval(torch.eye(5)[labels], labels) == {"R@1": 100, "MAP@R": 100}


def test_the_pages_are_what_the_rows_say(load):
    report = load("report")
    written = {path.name: path.read_text() for path in (report.ROOT / "docs" / "studies").glob("*.md")}
    assert written == report.pages(report.ROWS)


def test_the_figures_are_those_that_the_pages_show(load):
    pytest.importorskip("matplotlib")
    report = load("report")
    texts = report.pages(report.ROWS).values()
    shown = {name for text in texts for name in re.findall(r"\]\((\w+\.png)\)", text)}
    assert shown == set(load("figures").figures(report.ROWS))
    assert all((report.ROOT / "docs" / "studies" / name).exists() for name in shown)
