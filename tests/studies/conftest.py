"""The studies' modules lie beside their scripts; tests import them from there and forget them afterwards."""

import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "examples" / "studies"
OWN = {path.stem for path in STUDIES.glob("*.py")}


@contextmanager
def imported():
    """Import modules that lie beside the studies' scripts, and forget them afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDIES))
        for name in OWN & sys.modules.keys():
            patch.delitem(sys.modules, name)
        yield import_module
        for name in OWN & sys.modules.keys():
            del sys.modules[name]


@pytest.fixture
def load():
    with imported() as load:
        yield load


@pytest.fixture(scope="module")
def load_once():
    """As ``load``, for what takes long to make."""
    with imported() as load:
        yield load
