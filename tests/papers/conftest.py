"""The papers' modules lie beside their scripts; tests import them from there and forget them afterwards."""

from pathlib import Path

import pytest

PAPERS = Path(__file__).parents[2] / "examples" / "papers"


@pytest.fixture(scope="module")
def load(imported_from):
    with imported_from(PAPERS) as load:
        yield load


@pytest.fixture(scope="module")
def readers(load):
    return load("readers")
