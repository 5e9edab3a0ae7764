"""Training that was killed ends as one that was not; batches, augmentations and schedules are what they say."""

import argparse
import dataclasses
import itertools
import random
import sys
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trees
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchvision import transforms

LABELS = [c for c in range(6) for _ in range(5)]


@pytest.fixture(scope="module")
def training(load):
    return load("training")


@pytest.fixture
def session(load, tmp_path):
    """A session in one process, of images that are files."""
    readers, rows, sessions = load("readers"), load("rows"), load("session")
    paths = [trees.draw(tmp_path / f"{i}.png", i, (12, 9)) for i in range(len(LABELS))]
    images = readers.Images(paths, LABELS)
    options = argparse.Namespace(workers=0, precision="float32", checkpoint_every=1, batch_size=6, data="csv")
    settings = {"batch_size": "6"}
    return sessions.Session(
        options,
        sessions.Machine(torch.device("cpu")),
        readers.Data("own", images, images),
        tmp_path / "out",
        rows.Rows(tmp_path / "out" / "rows.json", settings),
        settings,
        [],
    )


class Network(nn.Module):
    """With batch norm and dropout: statistics and draws that a resumed run must have right."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 6),
        )

    def forward(self, images):
        return self.layers(images)


def made(training, session, steps=7):
    training.seed_everything(0, "network")
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    transform = transforms.Compose([transforms.RandomCrop(8), transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    return training.Training(
        model=model,
        loss=nn.functional.cross_entropy,
        optimizer=optimizer,
        schedule=LambdaLR(optimizer, lambda step: 1 - step / steps),
        images=session.data.train,
        transform=transform,
        test_transform=transforms.ToTensor(),
        batches=training.p_by_k(LABELS, 6, 2, 0),
        steps=steps,
        seed=0,
    )


class Killed(BaseException):
    pass


def run(training, session, kill_after=None):
    """Train as a script does; die in the middle of a step, after some whole ones."""
    this, checkpoint = made(training, session), training.Checkpoint(session, "a run, 0.1")
    checkpoint.restore(model=this.model)
    checkpoint.resume(this)
    calls = itertools.count()

    def loss(outputs, labels):
        if next(calls) == kill_after:
            raise Killed
        return nn.functional.cross_entropy(outputs, labels)

    this.loss = loss
    training.train(session, this, checkpoint, "run")
    return this


def test_a_run_that_is_killed_again_and_again_ends_to_the_digit_as_one_that_is_not(training, session):
    whole = run(training, session)
    (session.folder / "a_run_0.1.pt").unlink()
    for kill_after in (3, 0, 1, 2):
        random.seed(kill_after)
        np.random.seed(kill_after)  # noqa: NPY002
        torch.manual_seed(kill_after)
        with pytest.raises(Killed):
            run(training, session, kill_after)
    resumed = run(training, session)
    assert resumed.step == 7
    states = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in states)
    assert whole.schedule.get_last_lr() == resumed.schedule.get_last_lr() == [0]


def test_how_often_it_is_saved_and_how_many_processes_load_change_nothing(training, session):
    whole = run(training, session).model.state_dict()
    (session.folder / "a_run_0.1.pt").unlink()
    session.options.checkpoint_every, session.options.workers = 3, 2
    with pytest.raises(Killed):
        run(training, session, 5)
    assert torch.load(session.folder / "a_run_0.1.pt", weights_only=True)["step"] == 3
    resumed = run(training, session).model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_is_written_whole_or_not_at_all(load, training, session, monkeypatch):
    run(training, session)
    path = session.folder / "a_run_0.1.pt"
    before = path.read_bytes()

    def dies(*_):
        raise Killed

    monkeypatch.setattr(load("rows").os, "fsync", dies)
    this, checkpoint = made(training, session), training.Checkpoint(session, "a run, 0.1")
    with pytest.raises(Killed):
        checkpoint.save(this, 0)
    assert path.read_bytes() == before


def test_a_checkpoint_of_other_settings_is_refused(training, session):
    run(training, session)
    session.settings["batch_size"] = "12"
    with pytest.raises(ValueError, match=r"a_run_0.1.pt was made with batch-size 6, not 12; .* pass another --out"):
        training.Checkpoint(session, "a run, 0.1")


def test_a_run_that_is_past_a_step_cannot_be_tested_there(training, session):
    this = run(training, session)
    with pytest.raises(ValueError, match="is past step 3 already, at 7"):
        training.train(session, this, training.Checkpoint(session, "a run, 0.1"), "run", until=3)


def test_a_stage_does_not_resume_another(training, session):
    run(training, session)
    checkpoint, this = training.Checkpoint(session, "a run, 0.1"), made(training, session)
    checkpoint.resume(this, stage=1)
    assert this.step == 0
    checkpoint.resume(this, stage=0)
    assert this.step == 7


class TestBatches:
    def test_p_classes_by_k_images(self, training):
        batches = training.p_by_k(LABELS, 8, 2, 0)
        for step in (0, 99, 100, 250):
            assert set(Counter(LABELS[place] for place in batches(step)).values()) == {2}
            assert len(set(batches(step))) == 8

    def test_a_batch_depends_on_seed_and_step_alone(self, training):
        forward, backward = (
            [training.p_by_k(LABELS, 8, 2, 3)(step) for step in order] for order in ([5, 205], [205, 5])
        )
        assert forward == backward[::-1]
        assert forward != [training.p_by_k(LABELS, 8, 2, 4)(step) for step in (5, 205)]
        assert training.shuffled(30, 8, 3)(7) == training.shuffled(30, 8, 3)(7) != training.shuffled(30, 8, 4)(7)

    def test_an_epoch_takes_no_image_twice(self, training):
        batches = training.shuffled(30, 8, 0)
        for epoch in range(3):
            places = [place for step in range(3 * epoch, 3 * epoch + 3) for place in batches(step)]
            assert len(places) == len(set(places)) == 24
        assert batches(0) != batches(3)

    @pytest.mark.parametrize(
        ("size", "per_class", "message"),
        [(7, 2, "a multiple of 2 images a class"), (14, 2, "at most 2 of each of the 6 classes, got 14")],
    )
    def test_batches_that_cannot_be(self, training, size, per_class, message):
        with pytest.raises(ValueError, match=message):
            training.p_by_k(LABELS, size, per_class, 0)

    def test_no_images(self, training):
        with pytest.raises(ValueError, match="there are no images to train on"):
            training.p_by_k([], 8, 2, 0)
        with pytest.raises(ValueError, match="at most the 3 training images, got 8"):
            training.shuffled(3, 8, 0)

    def test_processes_share_a_batch_out(self, load, training, session):
        this, machine = made(training, session), load("session").Machine
        whole = list(this.draws(machine(torch.device("cpu")), 0, 3))
        parts = [list(this.draws(machine(torch.device("cpu"), rank, 2), 0, 3)) for rank in (0, 1)]
        assert [one + other for one, other in zip(*parts, strict=True)] == whole


def test_an_augmentation_depends_on_its_seed_alone(training, session):
    drawn = training.Drawn(session.data.train, transforms.Compose([transforms.RandomCrop(4), transforms.ToTensor()]))
    state = torch.get_rng_state()
    one, other = drawn[3, 1][0], drawn[3, 2][0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(drawn[3, 1][0], one)
    assert not torch.equal(one, other)
    assert drawn[3, 1][1] == LABELS[3]


def test_seeds_do_not_change_from_call_to_call(training):
    assert training.seed_of(0, "image", 5, 1) == training.seed_of(0, "image", 5, 1)
    seeds = [training.seed_of(a, "image", b, c) for a in range(3) for b in range(10) for c in range(10)]
    assert len(set(seeds)) == 300
    assert 0 <= min(seeds) <= max(seeds) < 2**63


class TestSchedules:
    def test_svmax(self, load):
        factor = load("svmax").schedule(5000, 0.01)
        assert [factor(step) for step in (0, 1250, 2500)] == [1, 1, 1]
        assert factor(3750) * 0.01 == pytest.approx((0.01 + 1e-7) / 2)
        assert factor(5000) * 0.01 == pytest.approx(1e-7)

    @pytest.mark.parametrize("epochs", [1, 5, 6, 200])
    def test_knowledge_evolution(self, load, epochs):
        factor = load("knowledge_evolution").schedule(epochs, 10)
        for epoch in range(epochs):  # the published rule
            if epoch < 5:
                expected = 0.256 * (epoch + 1) / 5
            else:
                expected = 0.5 * (1 + np.cos(np.pi * (epoch - 5) / (epochs - 5))) * 0.256
            assert [factor(10 * epoch + step) * 0.256 for step in range(10)] == pytest.approx([expected] * 10)
        assert factor(10 * epochs) >= 0  # asked for after the last step

    def test_tests_of_two_heads(self, load):
        marks = load("two_head").marks
        assert marks(40000, 40000) == [40000]
        assert marks(4000, 1000) == [1000, 2000, 3000, 4000]
        assert marks(2500, 1000) == [1000, 2000, 2500]


class TestLosses:
    @pytest.fixture
    def batch(self):
        return (torch.randn(12, 8) + 1).requires_grad_(), torch.arange(12) // 2

    def test_spread_out_is_the_published_formula(self, load, batch):
        embeddings, labels = batch
        unit = nn.functional.normalize(embeddings.double())
        inner = [unit[i] @ unit[j] for i in range(12) for j in range(12) if labels[i] != labels[j]]
        m1, m2 = sum(inner) / len(inner), sum(x * x for x in inner) / len(inner)
        expected = m1**2 + max(0, m2 - 1 / 8)
        assert load("svmax").SpreadOut()(embeddings, labels).item() == pytest.approx(expected.item(), rel=1e-5)

    @pytest.mark.parametrize(
        ("name", "weight"), [("contrastive", 1), ("N-pairs", 1), ("hard triplets", 0.1), ("angular", 2)]
    )
    def test_terms_are_added_with_the_papers_weights(self, load, training, batch, name, weight):
        svmax = load("svmax")
        embeddings, labels = batch
        vanilla, spread, svm = (
            (training.seed_everything(0), svmax.criterion(name, method)(embeddings, labels).item())[1]
            for method in ("vanilla", "spread-out", "SVMax")
        )
        term = svmax.SVMaxRegularizer()(embeddings).item()
        assert svm - vanilla == pytest.approx(weight * term, rel=1e-4)
        assert spread - vanilla == pytest.approx(weight * svmax.SpreadOut()(embeddings, labels).item(), abs=1e-5)

    def test_hard_triplets_are_squared_and_all_count(self, load, batch):
        embeddings, labels = batch
        unit = nn.functional.normalize(embeddings.double())
        square = torch.cdist(unit, unit) ** 2
        same = labels[:, None] == labels
        hard = (square * same).amax(1) - square.masked_fill(same, 9).amin(1)
        expected = (hard + 0.2).relu().mean().item()
        assert load("svmax").criterion("hard triplets", "vanilla")(embeddings, labels).item() == pytest.approx(expected)

    def test_two_heads(self, load, batch):
        two_head = load("two_head")
        embeddings, labels = nn.functional.normalize(batch[0]), batch[1]
        logits = torch.randn(12, 6)
        outputs = two_head.TwoHeadOutput(logits, embeddings)
        alone = two_head.criterion(two_head.CONTROL)(logits, labels)
        for name, loss in ((two_head.HARD, load("svmax").criterion("hard triplets", "vanilla")),):
            assert two_head.criterion(name)(outputs, labels).item() == pytest.approx(
                (alone + loss(embeddings, labels)).item(), rel=1e-5
            )
        semi_hard = two_head.SemiHardTripletLoss(0.2)(embeddings, labels)
        assert two_head.criterion(two_head.SEMI_HARD)(outputs, labels).item() == pytest.approx(
            (alone + semi_hard).item()
        )


class TestMeasures:
    def test_retrieval(self, load):
        measures, readers = load("measures"), load("readers")
        torch.manual_seed(1)
        labels, embeddings = [0, 0, 1, 1, 2, 2, 2], torch.randn(7, 3)
        images = readers.Images([None] * 7, labels)
        unit = nn.functional.normalize(embeddings)
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1).tolist()
        expected = 100 * sum(labels[i] == labels[j] for i, j in enumerate(nearest)) / 7
        found = measures.retrieval(embeddings, images, 0)
        assert found["R@1"] == pytest.approx(expected)
        assert 0 <= found["NMI"] <= 100
        assert measures.retrieval(torch.eye(3)[labels], images, 0) == {"R@1": 100, "NMI": pytest.approx(100)}

    @pytest.mark.parametrize(
        ("query", "gallery", "expected"),
        [
            ([1, 0, 0], [0, 1, 1], 0),  # of those in the gallery the third, of another class, is nearest
            ([1, 0, 0], [0, 1, 0], 100),
            ([1, 1, 0], [1, 1, 0], 100),  # each finds the other, not itself
            ([1, 1, 0], [1, 1, 1], 50),
        ],
    )
    def test_queries_and_gallery(self, load, query, gallery, expected):
        embeddings = torch.tensor([[1.0, 0], [1, 0.1], [1, -0.05]])
        query, gallery = list(map(bool, query)), list(map(bool, gallery))
        images = load("readers").Images([None] * 3, [0, 0, 1], query=query, gallery=gallery)
        assert load("measures").retrieval(embeddings, images, 0)["R@1"] == pytest.approx(expected)

    def test_a_network_that_diverged_does_not_end_the_table(self, load):
        images = load("readers").Images([None] * 6, [0, 0, 1, 1, 2, 2])
        found = load("measures").retrieval(torch.full((6, 3), torch.nan), images, 0)
        assert 0 <= found["R@1"] < 100

    def test_accuracy(self, load):
        assert load("measures").accuracy(torch.eye(3), [0, 1, 1]) == pytest.approx(200 / 3)


class TestLocalisation:
    def test_a_box_follows_the_crop(self, load):
        box_in_crop = load("l2_caf").box_in_crop
        assert box_in_crop((16, 16, 240, 240), (256, 256)).tolist() == [0, 0, 224, 224]
        assert box_in_crop((0, 0, 512, 256), (512, 256)).tolist() == [0, 0, 224, 224]
        assert box_in_crop((128, 64, 192, 128), (256, 512)).tolist() == [112, 0, 176, 0]
        image = transforms.ToPILImage()(torch.zeros(3, 300, 400))
        image.paste((255, 255, 255), (150, 100, 250, 200))
        crop = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])(image)
        y, x = (crop[0] > 0.5).nonzero().T
        expected = [int(side) for side in (x.min(), y.min(), x.max() + 1, y.max() + 1)]
        assert box_in_crop((150, 100, 250, 200), (400, 300)).tolist() == pytest.approx(expected, abs=1)

    def test_a_map_is_scored_by_its_largest_part(self, load):
        heat = torch.zeros(10, 10)
        heat[2:6, 3:8] = 0.5
        heat[8, 8] = 1  # the highest place, in a smaller part
        assert load("l2_caf").localised(heat, torch.tensor([3.0, 2, 8, 6])) == (0, 1)
        assert load("l2_caf").localised(heat, torch.tensor([8.0, 8, 9, 9])) == (1, 0)
        assert load("l2_caf").localised(heat, torch.tensor([3.0, 2, 8, 13])) == (0, 0)  # overlaps by 20 / 55
        assert all(map(np.isnan, load("l2_caf").localised(heat, torch.tensor([0.0, 0, 0, 4]))))


class TestRows:
    RUNS = (("contrastive", "SVMax", "0.01"), ("contrastive", "vanilla", "0.01"), ("N-pairs", "SVMax", "0.1"))

    @pytest.mark.parametrize(
        ("names", "places"),
        [([], [0, 1, 2]), (["SVMax"], [0, 2]), (["contrastive", "SVMax"], [0]), (["0.01", "0.1"], [0, 1, 2])],
    )
    def test_runs_are_chosen_by_name(self, load, names, places):
        assert load("session").chosen(self.RUNS, names) == [self.RUNS[place] for place in places]

    def test_a_name_that_is_none(self, load):
        with pytest.raises(SystemExit, match="--only 'svmax' names no run; the names are 'contrastive', 'SVMax'"):
            load("session").chosen(self.RUNS, ["svmax"])

    def test_every_published_row_belongs_to_a_run(self, load):
        rows = load("rows")
        scripts = {name: load(name) for name in ("svmax", "two_head", "knowledge_evolution", "l2_caf")}
        known = {
            "svmax": {", ".join(run) for run in scripts["svmax"].RUNS},
            "two_head": {name for (name,) in scripts["two_head"].RUNS},
            "knowledge_evolution": {
                line
                for (run,) in scripts["knowledge_evolution"].RUNS
                for line in scripts["knowledge_evolution"].rows_of(run)
            },
            "l2_caf": {", ".join(run) for run in scripts["l2_caf"].runs_of(list(scripts["l2_caf"].LAYERS))},
        }
        measures = {"R@1", "accuracy", "dense", "slim, as published", "seconds a map"}
        readers = {"svmax": scripts["svmax"].RETRIEVAL, "two_head": scripts["two_head"].READERS}
        with rows.PUBLISHED.open(newline="") as file:
            found = list(rows.csv.DictReader(file))
        assert len(found) == 18 + 15 + 20 + 1
        for row in found:
            assert row["run"] in known[row["paper"]]
            assert row["measure"] in measures
            assert row["read"] in {"code", "paper", "abstract"}
            assert row["source"]
            assert row["place"]
            assert row["data"] in readers.get(row["paper"], {**load("readers").CLASSIFICATION, "any": None})
            assert float(row["value"]) > 0

    def test_the_table_has_published_figures_in_brackets_and_their_source(self, load):
        rows = load("rows")
        beside = rows.published("two_head", "cars")
        text = rows.table({"two heads, hard": {"accuracy": 88.0}, "cross-entropy, P x K": {"accuracy": 87.5}}, beside)
        assert text.splitlines() == [
            "                      accuracy",
            "two heads, hard       88 (published 89.44)",
            "cross-entropy, P x K  87.5",
            "published: github.com/ahmdtaha/softmax_triplet_loss, README.md, table of ResNet-50 (read in the code)",
        ]

    def test_published_figures_are_shown_of_the_same_experiment_alone(self, session, capsys):
        session.options.data = "cars"
        now = dataclasses.replace(session, folder=session.folder / "two_head-cars-seed0")
        now.show({"two heads, hard": {"accuracy": 88.0}})
        assert "88 (published 89.44)" in capsys.readouterr().out
        changed = dataclasses.replace(now, differs=["--steps is 6, published is 40000"])
        changed.show({"two heads, hard": {"accuracy": 88.0}})
        printed = capsys.readouterr().out
        assert "no published figure is shown: --steps is 6, published is 40000" in printed
        assert "89.44" not in printed

    def test_rows_go_on_and_keep_their_settings(self, load, tmp_path):
        rows, path = load("rows"), tmp_path / "out" / "rows.json"
        rows.Rows(path, {"steps": "5"}).add("a", {"R@1": 1.0})
        again = rows.Rows(path, {"steps": "5"})
        assert "a" in again
        assert again["a"] == {"R@1": 1.0}
        with pytest.raises(ValueError, match="was made with steps 5, not 6; ask for the same again to go on"):
            rows.Rows(path, {"steps": "6"})


@pytest.mark.parametrize(
    ("changed", "world", "message"),
    [
        ({"batch_size": 5}, 2, "--batch-size must be a multiple of the 2 processes, got 5"),
        ({"seed": -1}, 1, "--seed must be at least 0, got -1"),
        ({"checkpoint_every": 0}, 1, "--checkpoint-every must be at least 1, got 0"),
    ],
)
def test_options_that_cannot_be(load, changed, world, message):
    given = {"seed": 0, "workers": 0, "batch_size": 4, "precision": "bf16", "checkpoint_every": 1, "weights": None}
    with pytest.raises(ValueError, match=message):
        load("session").check(SimpleNamespace(**{**given, **changed}), load("session").Machine(None, 0, world))


def test_processes_that_see_different_files_are_refused(load, monkeypatch, tmp_path):
    sessions = load("session")
    machine = sessions.Machine(torch.device("cpu"), 0, 2)
    for other, refused in (((0, 5), False), ((None, None), True)):

        def gathered(everyone, found, other=other):
            everyone[:] = [found, other]

        monkeypatch.setattr(sessions.dist, "all_gather_object", gathered)
        with pytest.raises(ValueError, match="one --out on a disk that they share") if refused else nullcontext():
            sessions.agree(machine, (0, 5), tmp_path / "run.pt")


@pytest.mark.parametrize("name", ["svmax", "two_head", "knowledge_evolution", "l2_caf"])
def test_a_wrong_folder_ends_a_script_in_one_line(load, tmp_path, monkeypatch, name):
    data = "cub" if name in {"svmax", "l2_caf"} else "flowers"
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--data", data, "--root", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=rf"^{name}.py: .* holds no folder .*; unpack it there from http"):
        load(name).main()


def test_weights_that_are_not_there(load, tmp_path):
    given = {"seed": 0, "workers": 0, "batch_size": 4, "weights": tmp_path / "none.pt"}
    with pytest.raises(FileNotFoundError, match=r"--weights .*none.pt is not there"):
        load("session").check(SimpleNamespace(**given), load("session").Machine(None))
    (tmp_path / "other.pt").write_bytes(b"no weights")
    with pytest.raises(RuntimeError, match=r"no weights of googlenet could be had in .*other.pt"):
        load("networks").pretrained("googlenet", tmp_path / "other.pt")
