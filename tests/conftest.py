"""Settings of every test."""

import sys
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version

import pytest
import timm
import torch
from packaging.requirements import Requirement


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def imported_from():
    """A context in which modules that lie beside a folder's scripts are imported, and forgotten after it."""

    @contextmanager
    def imported(folder):
        own = {path.stem for path in folder.glob("*.py")}
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            for name in own & sys.modules.keys():
                patch.delitem(sys.modules, name)
            yield import_module
            for name in own & sys.modules.keys():
                del sys.modules[name]

    return imported


def pytest_configure(config):
    config.addinivalue_line("markers", "requires(requirement, ...): hosts of these versions, such as 'timm>=1.0.22'")
    config.addinivalue_line("markers", "timm_model(argument): a timm that has the model which this argument names")
    if hasattr(config, "workerinput"):  # a worker beside others, which has a core of its own
        torch.set_num_threads(1)


def pytest_runtest_setup(item):
    """Skip a test where a host lacks what its markers name."""
    for marker in item.iter_markers("requires"):
        for requirement in map(Requirement, marker.args):
            if version(requirement.name) not in requirement.specifier:
                pytest.skip(f"requires {requirement}")
    for marker in item.iter_markers("timm_model"):
        name = item.callspec.params[marker.args[0]]
        if not timm.is_model(name):
            pytest.skip(f"requires a timm that has {name}")
