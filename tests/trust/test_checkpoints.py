"""Nothing is lost when a job dies, and no file does harm."""

import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from evolve import begin, evolve, write
from safetensors.torch import save_file
from torch import nn
from watching import assert_untouched, fingerprint

from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution, Magnitude, load_slim, save_slim

ROOT = Path(__file__).parents[2]


def start(folder, pause):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "evolve.py"), str(folder), str(pause)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )


def kill_after_a_while(folder, seconds):
    """Start the training, wait until it trains and then so long again, and kill it; return whether it was running."""
    process = start(folder, pause=0.01)
    while not (folder / "started").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)
    running = process.poll() is None
    process.kill()
    process.wait()
    (folder / "started").unlink()
    return running


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, kills):
    expected = evolve(tmp_path / "undisturbed.pt")
    moments = random.Random(0)  # noqa: S311 (when to kill)
    killed = sum(kill_after_a_while(tmp_path, moments.uniform(0, 0.6 / (1 + kills / 10))) for _ in range(kills))
    assert killed >= min(kills, 2)
    assert start(tmp_path, pause=0).wait() == 0
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    assert final.keys() == expected.keys()
    assert all(final[name].equal(weight) for name, weight in expected.items())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    write({"step": 1}, path)

    def save(_, file):
        Path(file).write_bytes(b"half a file")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="no space left"):
        write({"step": 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"step": 1}


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["MALICIOUS"],)


def spoilt_files(folder, good):
    whole = good.read_bytes()
    files = {
        "empty": b"",
        "truncated early": whole[:100],
        "truncated late": whole[:-20],
        "text": b"not a checkpoint",
        "pickle": pickle.dumps({"state": Malicious()}),
        "another network": None,
    }
    for name, content in files.items():
        path = folder / name
        if content is None:
            torch.save(nn.Linear(2, 2).state_dict(), path)
        else:
            path.write_bytes(content)
        yield name, path
    torch.save({"masks": Malicious()}, folder / "malicious")
    yield "malicious", folder / "malicious"


def test_spoilt_states_are_refused_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MALICIOUS", str(tmp_path / "harm"))
    model, _, ke = begin()
    good = tmp_path / "good.pt"
    torch.save(ke.state_dict(), good)
    before, masks = fingerprint(model), ke.masks
    for name, path in spoilt_files(tmp_path, good):
        with pytest.raises(Exception) as raised:  # noqa: PT011 (torch.load's own errors are of many kinds)
            ke.load_state_dict(torch.load(path, weights_only=True))
        assert str(raised.value), name
        assert_untouched(model, before)
        assert ke.masks is masks
    assert not (tmp_path / "harm").exists()
    ke.load_state_dict(torch.load(good, weights_only=True))


@pytest.mark.parametrize(
    ("model", "split"),
    [(nn.Linear(6, 16), WELS(0.5)), (begin()[0], WELS(0.4)), (begin()[0], Magnitude(0.5))],
    ids=["another network", "another rate", "another split"],
)
def test_states_of_something_else_are_refused(model, split):
    ke = KnowledgeEvolution(model, split)
    before, masks = fingerprint(model), ke.masks
    with pytest.raises(ValueError, match="state was saved for another"):
        ke.load_state_dict(begin()[2].state_dict())
    assert_untouched(model, before)
    assert ke.masks is masks


def test_spoilt_slim_files_are_refused_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MALICIOUS", str(tmp_path / "harm"))
    dense = timm.create_model("test_resnet", num_classes=3)
    good = tmp_path / "slim.safetensors"
    save_slim(KELS(0.5).slim(dense), good)
    for _, path in spoilt_files(tmp_path, good):
        with pytest.raises(ValueError, match="no complete safetensors file"):
            load_slim(path)
    save_file(dense.state_dict(), tmp_path / "dense")
    with pytest.raises(ValueError, match="was not written by save_slim"):
        load_slim(tmp_path / "dense")
    assert not (tmp_path / "harm").exists()
    load_slim(good)
