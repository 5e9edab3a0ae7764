"""Going on after a crash, from what torch.load reads with weights_only=True."""

import copy
import io

import pytest
import torch
from torch import nn

from pml_extensions.evolution import WELS, KnowledgeEvolution, LaterLayers, Magnitude


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(model, optimizer, epochs):
    data = torch.linspace(-1, 1, 60).reshape(10, 6)
    for _ in epochs:
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("split", [WELS(0.5), Magnitude(0.3), LaterLayers("3")], ids=lambda split: type(split).__name__)
@pytest.mark.parametrize("crash", [(0, 0), (1, 0), (1, 2), (1, 4), (2, 4)])
def test_goes_on_after_a_crash_at_any_point(split, crash):
    def run(model, ke, optimizer, start=0, saved=None):
        for generation in ke.generations(3, optimizer=optimizer):
            for epoch in range(start, 4):
                if saved is not None and (generation.index, epoch) == crash:
                    saved.update(through_a_file(state(model, ke, optimizer)))
                train(model, optimizer, range(1))
            if saved is not None and (generation.index, 4) == crash:
                saved.update(through_a_file(state(model, ke, optimizer)))
            start = 0

    def state(model, ke, optimizer):
        return {"model": model.state_dict(), "ke": ke.state_dict(), "optimizer": optimizer.state_dict()}

    def begin():
        model = make_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, KnowledgeEvolution(model, split, seed=5), optimizer

    model, ke, optimizer = begin()
    saved = {}
    run(model, ke, optimizer, saved=saved)

    resumed, ke, optimizer = begin()
    torch.rand(10)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    ke.load_state_dict(saved["ke"])
    run(resumed, ke, optimizer, start=crash[1])
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_masks_and_seed_come_from_the_state():
    first = make_net()
    ke = KnowledgeEvolution(first, Magnitude(0.5), seed=7)
    ke.reset()
    second = copy.deepcopy(first)
    other = KnowledgeEvolution(second, Magnitude(0.5))  # other magnitudes after the reset
    assert any(not torch.equal(other.masks[name], mask) for name, mask in ke.masks.items())
    other.load_state_dict(through_a_file(ke.state_dict()))
    assert all(torch.equal(other.masks[name], mask) for name, mask in ke.masks.items())
    assert (other.seed, other.generation) == (7, 1)
    ke.reset()
    other.reset()
    assert torch.equal(first[3].weight, second[3].weight)


def test_the_state_holds_one_bit_a_weight():
    ke = KnowledgeEvolution(nn.Linear(100, 80), WELS(0.5))
    assert ke.state_dict()["masks"]["weight"].untyped_storage().nbytes() == 1000


def test_a_state_of_a_gpu_or_a_view_still_loads():
    ke = KnowledgeEvolution(nn.Linear(3, 3), WELS(0.5))
    state = ke.state_dict()
    state["masks"] = {name: torch.stack([bits, bits]).T[:, 0] for name, bits in state["masks"].items()}
    mask = ke.masks["weight"].clone()
    ke.load_state_dict(state)
    assert torch.equal(ke.masks["weight"], mask)


@pytest.mark.parametrize(
    ("model", "split", "message"),
    [
        (
            nn.Linear(6, 4),
            WELS(0.5),
            (
                r"saved for another architecture: got 'Linear-\w+', expected 'Linear-\w+'; 2 parameters differ: weight "
                r"of \(3, 6\) for \(4, 6\), bias of \(3,\) for \(4,\)$"
            ),
        ),
        (nn.Sequential(nn.Linear(6, 3)), WELS(0.5), r"another architecture: got 'Linear-\w+', expected 'Sequential-"),
        (
            nn.Linear(6, 3),
            WELS(0.4),
            r"another split: got 'WELS\(rate=0.5, seed=0\)', expected 'WELS\(rate=0.4, seed=0\)'",
        ),
        (nn.Linear(6, 3), WELS(0.5, seed=1), "saved for another split"),
        (nn.Linear(6, 3), Magnitude(0.5), "saved for another split"),
    ],
)
def test_a_state_of_something_else(model, split, message):
    state = KnowledgeEvolution(nn.Linear(6, 3), WELS(0.5)).state_dict()
    ke = KnowledgeEvolution(model, split)
    masks, seed = ke.masks, ke.seed
    with pytest.raises(ValueError, match=message):
        ke.load_state_dict(state)
    assert ke.masks is masks
    assert (ke.seed, ke.generation) == (seed, 0)


def test_a_state_of_another_version_and_a_foreign_one():
    ke = KnowledgeEvolution(nn.Linear(6, 3), WELS(0.5))
    with pytest.raises(ValueError, match="saved for another version: got 99, expected 1"):
        ke.load_state_dict({**ke.state_dict(), "version": 99})
    with pytest.raises(
        ValueError, match=r"must come from KnowledgeEvolution.state_dict\(\), but it lacks \['architecture'"
    ):
        ke.load_state_dict(nn.Linear(6, 3).state_dict())


def test_a_function_as_a_split_is_told_by_its_name():
    def first_row(model):
        return {"weight": torch.arange(3)[:, None].expand(3, 6) < 1}

    class Rows:
        def __call__(self, model):
            return first_row(model)

    for split in (first_row, Rows()):
        state = KnowledgeEvolution(nn.Linear(6, 3), split).state_dict()
        assert "0x" not in state["split"]
        KnowledgeEvolution(nn.Linear(6, 3), split).load_state_dict(state)


def test_whether_a_generation_was_trained_is_remembered():
    first, second = (KnowledgeEvolution(nn.Linear(6, 3), WELS(0.5)) for _ in range(2))
    for _ in first.generations(2):
        within = first.state_dict()
    second.load_state_dict(within)
    assert [generation.index for generation in second.generations(3)] == [1, 2]
    second.load_state_dict(first.state_dict())
    assert [generation.index for generation in second.generations(3)] == [2]


def test_a_state_without_shapes_and_trained_is_read_as_before():
    ke = KnowledgeEvolution(nn.Linear(6, 3), WELS(0.5))
    state = {key: value for key, value in ke.state_dict().items() if key not in {"shapes", "trained"}}
    ke.load_state_dict(state)
    with pytest.raises(ValueError, match=r"another architecture: got 'Linear-\w+', expected 'Linear-\w+'$"):
        KnowledgeEvolution(nn.Linear(6, 4), WELS(0.5)).load_state_dict(state)
