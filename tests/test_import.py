"""What an import takes with it, seen from a fresh process."""

import json
import subprocess
import sys

import pytest

import pml_extensions

HOSTS = ("torch", "pytorch_metric_learning", "timm", "captum", "lightning", "transformers", "accelerate")
HOSTS_OF = {
    "pml_extensions.losses": {"torch", "pytorch_metric_learning"},
    "pml_extensions.miners": {"torch", "pytorch_metric_learning"},
    "pml_extensions.models": {"torch"},
    "pml_extensions.monitors": {"torch"},
    "pml_extensions.trainers": {"torch", "pytorch_metric_learning"},
    "pml_extensions": set(),
    "pml_extensions.evolution": {"torch"},
    "pml_extensions.attr": {"torch", "captum"},
    "pml_extensions.regularizers": {"torch", "pytorch_metric_learning"},
}


def hosts_loaded_by(statement: str) -> set[str]:
    code = f"import json, sys; {statement}; print(json.dumps([h for h in {HOSTS!r} if h in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


@pytest.mark.parametrize("module", HOSTS_OF)
def test_import_takes_only_the_hosts_it_needs(module):
    assert hosts_loaded_by(f"import {module}") == HOSTS_OF[module]


def test_every_subpackage_is_an_attribute_and_has_its_row_here():
    assert {f"pml_extensions.{name}" for name in pml_extensions.__all__} | {"pml_extensions"} == set(HOSTS_OF)
    for name in pml_extensions.__all__:
        module = getattr(pml_extensions, name)
        assert set(module.__all__) <= set(dir(module))
    assert set(pml_extensions.__all__) <= set(dir(pml_extensions))


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        pml_extensions.nonsense  # noqa: B018
