"""Run every check of ``ranks.py`` in four processes and in two, under torchrun, and collect what they found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """What each check returned: runs[world_size][name] is a list over the ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    path = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [*torchrun, str(HERE / "ranks.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return {world: collect([load(folder / f"{world}-{rank}.pt") for rank in range(world)]) for world in (2, 4)}


def load(path):
    return torch.load(path, weights_only=True)


def collect(ranks):
    return {name: [found[name] for found in ranks] for name in ranks[0]}


@pytest.fixture(scope="session", params=[2, 4], ids=["2 processes", "4 processes"])
def found(request, runs):
    return runs[request.param]
