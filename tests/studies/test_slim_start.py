"""Channels in another order compute the same, and those that are to lead are what the slim network starts from."""

import pytest
import torch

from pml_extensions.evolution import KELS

IMAGES = torch.zeros(2, 1, 20, 20)


@pytest.fixture(scope="module")
def study(load_once):
    pytest.importorskip("matplotlib")
    return load_once("slim_start")


@pytest.fixture(scope="module")
def dense(study):
    torch.manual_seed(0)
    model = study.untrained(study.OTHERS)
    for _ in range(2):  # its statistics are those of some images, another for every channel
        model(torch.randn(16, 1, 20, 20))
    return model.eval()


@pytest.mark.parametrize(
    ("dense", "slim", "first"), [(8, 4, [0, 2, 4, 6]), (5, 3, [0, 1, 3]), (7, 2, [0, 3]), (3, 3, [0, 1, 2])]
)
def test_evenly_spaced_channels_lead_and_none_is_lost(study, dense, slim, first):
    order = study.even(dense, slim).tolist()
    assert order[:slim] == first
    assert sorted(order) == list(range(dense))


@pytest.mark.parametrize("name", ["even", "shuffled"])
def test_another_order_computes_the_same(study, dense, name):
    order = study.even if name == "even" else study.shuffled(3)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    copy = study.reordered(dense, KELS(0.5, example_input=IMAGES), order)
    images = torch.randn(3, 1, 20, 20)
    assert torch.allclose(copy(images), dense(images), atol=1e-5)
    assert not torch.equal(copy.layer1[0].conv1.weight, dense.layer1[0].conv1.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def test_the_slim_network_holds_the_evenly_spaced_channels(study, dense):
    split = KELS(0.5, example_input=IMAGES)
    slim = split.slim(study.reordered(dense, split, study.even))
    for name, tensor in slim.state_dict().items():
        expected = dense.state_dict()[name]
        for dimension, size in enumerate(tensor.shape):
            if size < expected.shape[dimension]:
                step = torch.arange(0, expected.shape[dimension], expected.shape[dimension] // size)
                expected = expected.index_select(dimension, step)
        assert torch.equal(tensor, expected), name


def test_every_start_has_the_same_classifier_and_other_weights(study, dense, monkeypatch):
    monkeypatch.setattr(study, "pretrained", lambda network, seed, epochs: dense)
    starts = [study.start(study.OTHERS, channels, seed=4, epochs=0) for channels in study.CHANNELS]
    classifiers = [slim.get_classifier().weight for slim in starts]
    assert all(torch.equal(weight, classifiers[0]) for weight in classifiers)
    first = {slim.layer1[0].conv1.weight.sum().item() for slim in starts}
    assert len(first) == len(study.CHANNELS)


def test_the_learning_rates_are_those_that_did_best_apart(study, load_once):
    report, results = load_once("report"), load_once("results")
    rows = results.Results.load(report.ROWS, "slim_start_rate").rows
    for network, rates in study.CHOSEN.items():
        for channels, chosen in rates.items():
            own = [row for row in rows if (row["network"], row["channels"]) == (network, channels)]
            assert [max(own, key=lambda row: float(row["accuracy"]))["learning rate"]] == list(map(str, chosen))
