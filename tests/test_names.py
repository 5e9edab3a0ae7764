"""Names of other libraries in the documentation: those that are installed have them, spelt in this way."""

import builtins
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import pml_extensions

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LIBRARIES = ("pytorch_metric_learning", "timm", "captum", "torch", "torchvision", "nn")
ROOMS = [
    *(f"pml_extensions.{name}" for name in pml_extensions.__all__),
    *(f"pytorch_metric_learning.{name}" for name in ("distances", "losses", "miners", "reducers", "regularizers")),
    *(f"pytorch_metric_learning.{name}" for name in ("samplers", "testers", "trainers", "utils.accuracy_calculator")),
    *(f"pytorch_metric_learning.utils.{name}" for name in ("distributed", "inference")),
    *("captum.attr", "torch", "torch.nn", "torch.nn.parallel", "torch.utils.data", "timm.utils", "torchvision.models"),
]
WITH_EXTRAS = ("lightning.pytorch.callbacks", "pml_extensions.evolution.lightning", "pml_extensions.monitors.lightning")
OF_NO_LIBRARY = {"Split_ResNet18", "SplitConv", "SplitLinear"}  # layers in the code of a paper


def dotted_names(text):
    """Return names such as ``captum.attr.LayerGradCam``."""
    return set(re.findall(rf"(?<![\w./-])((?:{'|'.join(LIBRARIES)})(?:\.\w+)+)(?![\w/-])", text))


def class_names(text):
    """Return names in code that look like those of classes."""
    code = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return {name for one in code for name in re.findall(r"(?<![\w.\"'/-])[A-Z]+[a-z]\w*[A-Z]\w*(?=[(`.,)]|$)", one)}


def exists(name):
    """Return whether a dotted name leads to something, importing what is on the way."""
    first, *rest = name.split(".")
    found = importlib.import_module("torch.nn" if first == "nn" else first)
    for part in rest:
        if not hasattr(found, part):
            try:
                importlib.import_module(f"{found.__name__}.{part}")
            except (ImportError, AttributeError):
                return False
        found = getattr(found, part)
    return True


@pytest.fixture(scope="module")
def known():
    """Return the names of all classes and functions that pages speak of."""
    modules = [builtins, *map(importlib.import_module, ROOMS)]
    for room in WITH_EXTRAS:
        modules += [importlib.import_module(room)] if importlib.util.find_spec("lightning") else []
    return {name for module in modules for name in dir(module)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_exist(page, known):
    text = page.read_text()
    assert [name for name in sorted(dotted_names(text)) if not exists(name)] == []
    assert class_names(text) - known - OF_NO_LIBRARY == set()


def test_a_wrong_spelling_is_seen():
    assert dotted_names("see `captum.attr.GradCamLayer` and torch.nn.Linear.") == {
        "captum.attr.GradCamLayer",
        "torch.nn.Linear",
    }
    assert not exists("captum.attr.GradCamLayer")
    assert not exists("pytorch_metric_learning.losses.TripletLoss")
    assert exists("pytorch_metric_learning.utils.inference.InferenceModel")
    assert class_names("`TripletLoss(margin=1)`, `model.layer4`") == {"TripletLoss"}
