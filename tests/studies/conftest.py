"""The studies' modules lie beside their scripts; tests import them from there and forget them afterwards."""

from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "examples" / "studies"


@pytest.fixture
def load(imported_from):
    with imported_from(STUDIES) as load:
        yield load


@pytest.fixture(scope="module")
def load_once(imported_from):
    """As ``load``, for what takes long to make."""
    with imported_from(STUDIES) as load:
        yield load
