"""Settings of every test."""

import traceback
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

PACKAGE = str(Path(__file__).parents[1] / "pml_extensions")
LACKING = {  # what the lowest versions do not have: words of the error
    "timm 1.0.11": ("Unknown model", "meta tensor"),
    "torch 2.4.0": ("are not supported for dynamo export",),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Skip a test at the point where a host of the lowest version lacks what the test uses of it."""
    try:
        return (yield)
    except Exception as error:
        ours = any(frame.filename.startswith(PACKAGE) for frame in traceback.extract_tb(error.__traceback__))
        for host, words in LACKING.items():
            name, lowest = host.split()
            if version(name).startswith(lowest) and not ours and any(word in str(error) for word in words):
                pytest.skip(f"{host}: {error}"[:200])
        raise
