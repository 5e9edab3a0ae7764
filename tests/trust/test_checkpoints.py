"""Nothing is lost when a job dies, and no file does harm."""

import multiprocessing
import os
import pickle
import random
import signal
import time
from pathlib import Path

import pytest
import timm
import torch
from evolve import begin, train_in, write
from safetensors.torch import save_file
from torch import nn
from watching import assert_untouched, fingerprint

from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution, Magnitude, load_slim, save_slim

PROCESSES = multiprocessing.get_context("forkserver")  # starts one with the package imported


def kill_after_a_while(folder, seconds):
    """Start the training, wait until it trains and then so long again, and kill it; return whether it was running."""
    process = PROCESSES.Process(target=train_in, args=(folder, 0.02))
    process.start()
    while not (folder / "started").exists():
        assert process.is_alive()
        time.sleep(0.005)
    process.join(seconds)
    running = process.is_alive()
    process.kill()
    process.join()
    assert process.exitcode == (-signal.SIGKILL if running else 0)
    (folder / "started").unlink()
    return running


def trained_to_the_end(folder):
    """Return the final weights of the training, in a process of its own: other tests may have changed settings here."""
    folder.mkdir(exist_ok=True)
    process = PROCESSES.Process(target=train_in, args=(folder, 0.0))
    process.start()
    process.join()
    return torch.load(folder / "final.pt", weights_only=True)


@pytest.mark.parametrize("kills", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, kills):
    PROCESSES.set_forkserver_preload(["pml_extensions.evolution"])
    expected = trained_to_the_end(tmp_path / "undisturbed")
    moments = random.Random(0)  # noqa: S311 (when to kill)
    killed = sum(kill_after_a_while(tmp_path, moments.uniform(0, 0.8 / kills)) for _ in range(kills))
    assert killed > kills / 2
    final = trained_to_the_end(tmp_path)
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
        assert not isinstance(raised.value, AssertionError), name
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
