"""Generations in Lightning's trainer over two processes, against one."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import lightning_ranks
import pytest
import torch

from pml_extensions.evolution import KELS

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("lightning")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [*torchrun, str(HERE / "lightning_ranks.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return lightning_ranks.fit(tmp_path_factory.mktemp("alone"), lightning_ranks.Module())[0]


def assert_close(found, expected, **tolerance):
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance)


def test_two_processes_end_as_one(ranks, alone):
    for found in ranks:
        assert found["generation"] == 2
        assert_close(found["weights"], alone, rtol=1e-5, atol=1e-6)
        assert_close(found["weights"], ranks[0]["weights"], rtol=0, atol=0)


@pytest.mark.parametrize("epoch", [1, 2], ids=["after a generation", "within a generation"])
def test_two_processes_go_on_as_without_a_break(ranks, epoch):
    for found in ranks:
        assert_close(found["resumed"][epoch], found["weights"], rtol=0, atol=0)


def test_the_slim_network_has_statistics_of_the_data_of_both(ranks):
    module = lightning_ranks.Module(norm=True)
    module.load_state_dict(ranks[0]["normed"])
    images, batch = lightning_ranks.examples().tensors[0], lightning_ranks.BATCH // 2
    parts = [part for rank in range(2) for part in images[rank::2].split(batch)]
    expected = KELS(0.5, example_input=torch.zeros(2, 6)).slim(module.net, parts).state_dict()
    for found in ranks:
        assert_close(found["slim"], expected)
