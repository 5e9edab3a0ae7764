"""The recipes of examples/loops run, learn, and reset what evolves between the generations."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pml_extensions.evolution import WELS, KnowledgeEvolution
from pml_extensions.models import TwoHead
from pml_extensions.regularizers import SVMaxRegularizer

LOOPS = Path(__file__).parents[1] / "examples" / "loops"
RECIPES = [path for path in sorted(LOOPS.glob("*.py")) if path.name != "digits.py"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
]


@pytest.fixture(autouse=True)
def threads():
    """One thread: more wait for each other on images this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def counted(monkeypatch, owner, name):
    """Count the calls of a method."""
    calls = []
    method = getattr(owner, name)

    def called(self, *args, **kwargs):
        calls.append(name)
        return method(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, called)
    return calls


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains(recipe, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(LOOPS))
    resets = counted(monkeypatch, KnowledgeEvolution, "reset")
    regularized = counted(monkeypatch, SVMaxRegularizer, "compute_loss")
    embedded = counted(monkeypatch, TwoHead, "forward")
    runpy.run_path(str(recipe), run_name="__main__")
    line = capsys.readouterr().out.strip().splitlines()[-1]
    accuracy, recall = re.fullmatch(r".+: accuracy (\d\.\d+), R@1 (\d\.\d+) after 2 generations", line).groups()
    assert float(accuracy) > 0.5
    assert float(recall) > 0.7
    assert len(resets) == 1
    assert len(regularized) == 80  # 2 generations, 4 epochs, 10 batches
    assert len(embedded) == 81


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_marks_what_changed(recipe):
    lines = recipe.read_text().splitlines()
    assert len(lines) < 60
    changed = [line for line in lines if "# <-" in line]
    for part in ("SVMaxRegularizer(", "TwoHead(", "TwoHeadLoss(", "WELS("):
        assert any(part in line for line in changed), part


def test_accelerates_checkpoints_hold_the_generation(tmp_path):
    torch.manual_seed(0)
    models = [torch.nn.Linear(4, 4) for _ in range(2)]
    evolutions = [KnowledgeEvolution(model, WELS(0.5)) for model in models]
    evolutions[0].reset()
    for model, evolution, move in zip(models, evolutions, ("save_state", "load_state"), strict=True):
        accelerator = Accelerator(cpu=True)
        accelerator.prepare(model)
        accelerator.register_for_checkpointing(evolution)
        getattr(accelerator, move)(str(tmp_path))
    assert [generation.index for generation in evolutions[1].generations(3)] == [1, 2]
