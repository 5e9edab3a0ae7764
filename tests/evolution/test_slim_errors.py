"""What has no slim network: a clear error or a line of the summary, and the model bit for bit as before."""

import ast
import copy
import inspect
import pickle
from functools import lru_cache
from pathlib import Path

import pytest
import timm
import timm.layers
import torch
from timm.models._registry import _model_to_module
from torch import nn

import pml_extensions
from pml_extensions._slimming import analysis, cutting
from pml_extensions._slimming.solving.solver import Solution
from pml_extensions._slimming.tracing import size_rules
from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution, TracingError


class DependsOnData(nn.Linear):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class ReadsValues(nn.Linear):
    def forward(self, x):
        return super().forward(x * float(x.detach().abs().max()))


class PicksByValue(nn.Linear):
    def forward(self, x):
        return super().forward(x[x[:, 0] > 0])


class OwnError(nn.Linear):
    def forward(self, x):
        raise KeyError("mine")


class Reshaped(nn.Linear):
    def forward(self, x):
        return super().forward(x.view(-1, self.in_features))


class Repeats(nn.Linear):
    def forward(self, x):
        for _ in range(x.shape[1] // 4):
            x = x + 1
        return super().forward(x)


class AsksForLength(nn.Linear):
    def forward(self, x):
        return super().forward(x) if len(x[0]) == 8 else super().forward(x) * 2


class LooksUp(nn.Linear):
    def forward(self, x):
        return [None, super().forward, lambda y: super(LooksUp, self).forward(y.relu())][x.shape[1] // 8 + 1](x)


def small(inner=nn.Linear):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), inner(8, 6), nn.ReLU(), nn.Linear(6, 2))


def state_of(model):
    """Everything of a model that a failed call might disturb."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "wanted": [p.requires_grad for p in model.parameters()],
        "identity": [id(p) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "attributes": [{k: copy.copy(v) for k, v in vars(m).items() if not k.startswith("_")} for m in model.modules()],
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def refused(model, split, error, match):
    """Ask for masks, a slim model and an evolution: each must raise, and leave model and random state as they were."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    next(model.parameters()).requires_grad_(requires_grad=False)
    before, random = state_of(model), torch.get_rng_state()
    for ask in (split, split.slim, split.compare, lambda m: KnowledgeEvolution(m, split)):
        with pytest.raises(error, match=match):
            ask(model)
        assert same(state_of(model), before)
        assert torch.equal(torch.get_rng_state(), random)


AT3 = torch.zeros(2, 3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("inner", "match"),
    [
        (DependsOnData, r"submodule '2'.*_local_scalar_dense.*depends on data"),
        (ReadsValues, r"submodule '2'.*_local_scalar_dense.*depends on data"),
        (PicksByValue, r"submodule '2'.*aten.index.*depends on data"),
        (OwnError, r"submodule '2': KeyError: 'mine'"),
    ],
)
def test_a_module_that_cannot_be_traced(inner, match, training):
    refused(small(inner).train(training), KELS(0.5, example_input=AT3), TracingError, match)


@pytest.mark.parametrize("inner", [Repeats, AsksForLength, LooksUp])
def test_a_slim_network_that_goes_another_way(inner):
    """A width decides what is computed, by a plain integer that nobody sees."""
    with pytest.raises(TracingError, match=r"another way.*test_slim_errors.py:\d+.*not range\(\), len\(\)"):
        KELS(0.5, example_input=AT3).slim(small(inner))


class SplitsAtAPlace(nn.Linear):
    def forward(self, x):
        first, rest = x.tensor_split([3], -1)
        return super().forward(torch.cat([rest, first], -1))


def test_a_slim_network_with_tensors_of_other_sizes(monkeypatch):
    """A number of the code decides on a size, in an operation whose numbers are not looked at."""
    assert KELS(0.5, example_input=AT3).slim(small(SplitsAtAPlace))[2].in_features == 6
    monkeypatch.delitem(size_rules.USES, "tensor_split")
    with pytest.raises(TracingError, match=r"another way.*a tensor of \[2, 2\] instead of \[2, 3\] in aten.cat"):
        KELS(0.5, example_input=AT3).slim(small(SplitsAtAPlace))


@lru_cache
def positions(width):
    return torch.arange(1.0, width + 1).mul(2).sum()


class AddsCached(nn.Linear):
    def forward(self, x):
        return super().forward(x + positions(8))


def test_a_cache_beside_the_model_is_no_other_way():
    split, model = KELS(0.5, example_input=AT3), small(AddsCached)
    assert [split.slim(model)[2].in_features for _ in range(2)] == [4, 4]


class DividesEvenly(nn.Linear):
    def forward(self, x):
        return super().forward(x) if self.in_features % 8 == 0 else super().forward(x) * 2


def test_an_integer_of_a_layer_that_decides_is_that_of_its_weight():
    assert KELS(0.5, example_input=AT3).slim(small(DividesEvenly))[2].in_features == 8


def test_an_example_of_the_wrong_shape():
    refused(small(), KELS(0.5, example_input=torch.zeros(2, 5)), TracingError, r"could not be traced in submodule '0'")
    refused(small(), KELS(0.5), TracingError, "example_input is needed")


@pytest.mark.filterwarnings("ignore")  # torch would rather have torchao quantise
def test_a_quantised_model():
    model = small()
    model[0] = torch.ao.nn.quantized.dynamic.Linear(3, 8)
    with pytest.raises(ValueError, match="must not be quantised"):
        KELS(0.5, example_input=AT3).slim(model)


class Bare(nn.Module):
    """A matrix without a layer, and a part that is compiled."""

    def __init__(self, inner):
        super().__init__()
        self.matrix, self.inner = nn.Parameter(torch.randn(2, 3)), inner

    def forward(self, x):
        return self.inner(x @ self.matrix)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_compiled_or_scripted_model():
    for wrapped in (torch.compile(small()), torch.jit.trace(small().eval(), AT3)):
        with pytest.raises(TypeError, match=r"must not be compiled.*compile it afterwards"):
            KELS(0.5, example_input=AT3).slim(wrapped)
        with pytest.raises(TypeError, match=r"must not be compiled, got \w+ in '1.0'; split the original"):
            KELS(0.5, example_input=AT3).slim(nn.Sequential(nn.Linear(3, 3), nn.Sequential(wrapped)))
        KnowledgeEvolution(nn.Sequential(small(), Bare(wrapped)), WELS(0.5, example_input=AT3[:, :2])).reset()


@pytest.mark.parametrize("rate", [0, -0.5, 1.01, float("nan")])
def test_a_rate_at_which_a_width_would_become_zero(rate):
    with pytest.raises(ValueError, match=r"rate must lie in \(0, 1\]"):
        KELS(rate)


def test_the_smallest_rate_keeps_one_channel():
    slim = KELS(1e-9, example_input=AT3).slim(small())
    assert (slim[0].out_features, slim[1].num_features, slim[2].out_features) == (1, 1, 1)
    assert slim.eval()(torch.randn(4, 3)).shape == (4, 2)


def test_a_rate_of_one_keeps_everything():
    model = small().eval()
    slim = KELS(1, example_input=AT3).slim(model)
    x = torch.randn(4, 3)
    assert torch.equal(slim(x), model(x))


def test_a_split_without_a_slim_network():
    model = small()
    evolution = KnowledgeEvolution(model, WELS(0.5))
    before = state_of(model)
    with pytest.raises(TypeError, match=r"has no slim network.*use KELS"):
        evolution.slim()
    assert same(state_of(model), before)


def test_unsolved_equations_are_an_error_and_wels_still_works(monkeypatch):
    monkeypatch.setattr(analysis, "solve", lambda conditions, targets: Solution(dict(targets)))  # without attributes
    model = small(Reshaped)
    refused(model, KELS(0.5, example_input=AT3), TracingError, r"no solution.*test_slim_errors.py.*\(WELS\) work")
    assert KnowledgeEvolution(model, WELS(0.5)).masks


def test_a_slim_network_that_would_not_run_is_not_handed_out(monkeypatch):
    monkeypatch.setattr(cutting, "derived_integers", lambda module: {"normalized_shape": (3,)})
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    before = state_of(model)
    with pytest.raises(TracingError, match="does not run, so none is returned"):
        KELS(0.5, example_input=AT3).slim(model)
    assert same(state_of(model), before)


def test_no_architecture_of_timm_is_known_by_name():
    classes = {n for where in (timm.layers, timm.models) for n, c in vars(where).items() if inspect.isclass(c)}
    names = (set(timm.list_models()) | set(_model_to_module.values()) | classes) - set(dir(nn)) - set(dir(torch))
    package = Path(pml_extensions.__file__).parent
    for path in (
        package / "_declared_input.py",
        *(package / "_slimming").rglob("*.py"),
        *(package / "evolution").rglob("*.py"),
    ):
        assert not names & words(ast.parse(path.read_text())), path


def words(tree):
    """Return the names and strings of a source text, without its docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, documented)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
            found.update(node.value.split())
    return found


def test_slim_models_pickle_without_traces_of_the_analysis():
    slim = KELS(0.5).slim(timm.create_model("test_vit"))
    for module in pickle.loads(pickle.dumps(slim)).modules():  # noqa: S301
        for value in vars(module).values():
            assert not type(value).__module__.startswith("pml_extensions")
