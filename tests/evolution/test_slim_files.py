"""Slim models in files: saved, made again, and what is refused."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pml_extensions.evolution import KELS, load_slim, reestimate_statistics, save_slim

KEY = "pml_extensions_slim"


@pytest.fixture
def slim():
    torch.manual_seed(0)
    return KELS(0.3, multiple=2).slim(timm.create_model("test_resnet", num_classes=5, in_chans=1)).eval()


@pytest.fixture
def path(slim, tmp_path):
    save_slim(slim, tmp_path / "slim.safetensors")
    return tmp_path / "slim.safetensors"


def rewritten(path, **changes):
    """Write the file again with other metadata; a value of None leaves a key out."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()[KEY])
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    save_file(load_file(path), path, metadata={KEY: json.dumps(metadata)})


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_loaded_model_is_the_saved_one(name, tmp_path):
    torch.manual_seed(0)
    slim = KELS(0.5).slim(timm.create_model(name, num_classes=5)).eval()
    save_slim(slim, tmp_path / "a")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = load_slim(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(2, *slim.pretrained_cfg["input_size"])
    assert type(again) is type(slim)
    assert torch.equal(again(x), slim(x))
    assert again.state_dict().keys() == slim.state_dict().keys()


def test_rate_multiple_input_channels_and_a_new_classifier(slim, path):
    x = torch.randn(2, 1, 64, 64)
    assert torch.equal(load_slim(path)(x), slim(x))
    slim.reset_classifier(2)
    save_slim(slim, str(path))
    assert load_slim(path)(x).shape == (2, 2)
    assert list(path.parent.iterdir()) == [path]


def test_statistics_anew_are_saved_and_a_loaded_model_can_estimate_them(path, tmp_path):
    torch.manual_seed(0)
    dense = timm.create_model("test_resnet", num_classes=5, in_chans=1)
    data = list((torch.randn(12, 1, 64, 64) + 1).split(4))
    slim = KELS(0.3, multiple=2).slim(dense, data).eval()
    save_slim(slim, tmp_path / "anew.safetensors")
    again, published = load_slim(tmp_path / "anew.safetensors"), load_slim(path)
    assert torch.equal(again(data[0]), slim(data[0]))
    assert not torch.equal(published(data[0]), slim(data[0]))
    reestimate_statistics(published, data)
    assert torch.equal(published(data[0]), slim(data[0]))
    assert not any(module.training for module in published.modules())


def test_half_precision_stays(slim, path):
    save_slim(slim.half(), path)
    assert {p.dtype for p in load_slim(path).parameters()} == {torch.float16}


def test_a_model_made_with_other_arguments_needs_them(tmp_path):
    slim = KELS(0.5).slim(timm.create_model("test_vit", img_size=96)).eval()
    with pytest.raises(ValueError, match=r"other tensors.*model_args must name"):
        save_slim(slim, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    save_slim(slim, tmp_path / "a", model_args={"img_size": 96})
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(load_slim(tmp_path / "a")(x), slim(x))


def test_nothing_is_unpickled(path):
    assert b"pickle" not in path.read_bytes()
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()[KEY])["architecture"] == "test_resnet"


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_a_truncated_file(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="no complete safetensors"):
        load_slim(path)


def test_foreign_files(path, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a")
    with pytest.raises(ValueError, match="not written by save_slim"):
        load_slim(tmp_path / "a")
    torch.save({"a": torch.zeros(1)}, tmp_path / "b")
    with pytest.raises(ValueError, match="no complete safetensors"):
        load_slim(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="save_slim"):
        load_slim(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 99}, "has format 99, this version reads format 1"),
        ({"format": None}, "has format None"),
        ({"architecture": "no_such_net"}, "has no architecture 'no_such_net'"),
        ({"architecture": "test_efficientnet"}, "other tensors.*another version of timm"),
        ({"rate": 0.5}, "other tensors"),
    ],
)
def test_a_file_that_does_not_fit(path, changes, match):
    rewritten(path, **changes)
    with pytest.raises(ValueError, match=match):
        load_slim(path)


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError, match="must come from"):
        save_slim(timm.create_model("test_resnet"), tmp_path / "a")
    slim = KELS(0.5, example_input=torch.zeros(2, 3)).slim(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match=r"timm architecture.*state_dict\(\).*fresh dense model"):
        save_slim(slim, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_module_that_is_not_timms_is_made_again_by_its_state_dict():
    slim, again = (
        KELS(0.5, example_input=torch.zeros(2, 3)).slim(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
        for _ in range(2)
    )
    again.load_state_dict(slim.state_dict())
    images = torch.randn(5, 3)
    torch.testing.assert_close(again(images), slim(images), rtol=0, atol=0)


def test_a_write_that_fails_leaves_the_old_file(slim, path, monkeypatch):
    before = path.read_bytes()

    def broken(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save_slim(slim, path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
