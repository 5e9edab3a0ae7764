"""Resets of weights that a layer computes from stored parameters."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from pml_extensions.evolution import WELS, KaimingUniform, KnowledgeEvolution, LaterLayers, LayerDefault, ShrinkPerturb
from pml_extensions.evolution.draws import generator_for

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")


class Upper(nn.Module):
    """Symmetric, stored as its upper half."""

    def forward(self, x):
        return x.triu() + x.triu(1).mT

    def right_inverse(self, weight):
        return weight.triu()


class Exponential(nn.Module):
    def forward(self, x):
        return x.exp()

    def right_inverse(self, weight):
        return weight.log()


class Halved(nn.Module):
    """Without a right inverse."""

    def forward(self, x):
        return x / 2


class Sum(nn.Module):
    """Of two stored tensors."""

    def forward(self, x, y):
        return x + y

    def right_inverse(self, weight):
        return 0.75 * weight, 0.25 * weight


class Root(nn.Module):
    """Of unit Frobenius norm, by a running norm of its own; counts its steps."""

    def __init__(self):
        super().__init__()
        self.register_buffer("norm", torch.ones(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.norm = 0.7 * self.norm + 0.3 * x.detach().norm()
            self.steps += 1
        return x / self.norm

    def right_inverse(self, weight):
        return weight


class Noise(nn.Module):
    """Changes its buffer in every training step, and never comes to rest."""

    def __init__(self):
        super().__init__()
        self.register_buffer("noise", torch.ones(()))

    def forward(self, x):
        if self.training:
            self.noise = torch.rand(())
        return x * self.noise


def own(*modules, size=12):
    layer = nn.Linear(size, size)
    layer.weight.data.abs_()
    for module in modules:
        parametrize.register_parametrization(layer, "weight", module)
    return layer


def pruned(layer):
    """Prune half of a weight, the same half each time."""
    mask = torch.arange(layer.weight.numel()).view_as(layer.weight) % 3 > 0
    return prune.custom_from_mask(layer, "weight", mask)


def orthogonal(name, rows, columns):
    kind, _, rest = name.partition(" ")
    return lambda: parametrizations.orthogonal(nn.Linear(columns, rows), "weight", kind, use_trivialization=not rest)


LAYERS = {
    "spectral": lambda: parametrizations.spectral_norm(nn.Linear(30, 20)),
    "spectral conv": lambda: parametrizations.spectral_norm(nn.Conv2d(6, 8, 3), n_power_iterations=3),
    "spectral transposed": lambda: parametrizations.spectral_norm(nn.ConvTranspose2d(6, 8, 3)),
    "old spectral": lambda: nn.utils.spectral_norm(nn.Linear(30, 20)),
    "old spectral transposed": lambda: nn.utils.spectral_norm(nn.ConvTranspose2d(6, 8, 3)),
    "weight": lambda: parametrizations.weight_norm(nn.Linear(30, 20)),
    "weight conv": lambda: parametrizations.weight_norm(nn.Conv2d(6, 8, 3), dim=1),
    "weight all": lambda: parametrizations.weight_norm(nn.Conv1d(6, 8, 3), dim=None),
    "old weight": lambda: nn.utils.weight_norm(nn.Linear(30, 20)),
    "old weight all": lambda: nn.utils.weight_norm(nn.Linear(30, 20), dim=None),
    **{
        f"orthogonal {name}, {rows} x {columns}": orthogonal(name, rows, columns)
        for name in ("matrix_exp", "cayley", "householder", "householder without base")
        for rows, columns in [(12, 12), (20, 8), (8, 20)]
    },
    "orthogonal, no inverse": lambda: parametrizations.orthogonal(
        nn.Linear(8, 12), orthogonal_map="cayley", use_trivialization=False
    ),
    "symmetric": lambda: own(Upper()),
    "no inverse": lambda: own(Halved()),
    "two tensors": lambda: own(Sum()),
    "own norm": lambda: own(Root()),
    "noise": lambda: own(Noise()),
    "pruned": lambda: pruned(nn.Linear(30, 20)),
    "pruned conv": lambda: pruned(pruned(nn.Conv2d(6, 8, 3))),
    "weight, halved": lambda: parametrize.register_parametrization(
        parametrizations.weight_norm(nn.Linear(30, 20)), "weight", Halved()
    ),
    "symmetric, spectral": lambda: parametrizations.spectral_norm(own(Upper())),
}


def trained(make):
    """Return a network of one layer whose stored tensors have moved on from where they were made."""
    layer = make()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name != "bias":
                diagonal = parameter.diagonal(dim1=-2, dim2=-1).clone() if parameter.ndim > 1 else None
                parameter.mul_(2).add_(0.01 * torch.randn_like(parameter))
                if parametrize.is_parametrized(layer) and isinstance(
                    layer.parametrizations.weight[0], parametrizations._Orthogonal
                ):
                    parameter.diagonal(dim1=-2, dim2=-1).copy_(diagonal)  # signs, which do not train
    layer.train()
    for _ in range(100):  # the power method comes near
        run(layer)
    return nn.Sequential(layer).eval()


def run(layer):
    shape = {nn.Linear: (2, layer.weight.shape[1]), nn.Conv1d: (2, 6, 9)}
    kind = parametrize.type_before_parametrizations(layer)
    return layer(torch.randn(shape.get(kind, (2, 6, 9, 9))))


def weight_of(model):
    run(model[0])
    return model[0].weight.detach().clone()


def example(model):
    return torch.randn(2, model[0].weight.shape[1]) if isinstance(model[0], nn.Linear) else torch.randn(2, 6, 9, 9)


def evolution(model, split, rule=None):
    return KnowledgeEvolution(model, split, rule=rule or KaimingUniform())


def whole(model):
    return LaterLayers("0", example_input=example(model))


def part(model):
    return WELS(0.5, example_input=example(model))


def expected_draw(model, ke):
    """Return what the rule draws for the weight, by the place of the first stored parameter that is split."""
    names = [name for name, _ in model.named_parameters()]
    place = next(names.index(name) for name in ke.masks)
    values = torch.empty(model[0].weight.shape)
    return nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator_for(0, 1, place))


@pytest.mark.parametrize("name", LAYERS)
def test_a_whole_reset_is_a_fresh_layer(name):
    model = trained(LAYERS[name])
    ke = evolution(model, whole(model))
    drawn = expected_draw(model, ke)
    state = torch.get_rng_state()
    ke.reset()
    assert torch.equal(torch.get_rng_state(), state)
    found, fresh = weight_of(model), LAYERS[name]()
    assert not model[0].training
    if "spectral" in name:
        dim = 1 if "transposed" in name else 0
        matrix = drawn.triu() + drawn.triu(1).mT if "symmetric" in name else drawn
        norm = torch.linalg.matrix_norm(matrix.movedim(dim, 0).flatten(1), 2)
        torch.testing.assert_close(found, matrix / norm, rtol=1e-3, atol=1e-4)
    elif "pruned" in name:
        torch.testing.assert_close(found, drawn * fresh.weight_mask)
    elif "8" in name:  # completed at random
        short = found if found.shape[0] < found.shape[1] else found.T
        torch.testing.assert_close(short @ short.T, torch.eye(len(short)), rtol=0, atol=1e-5)
    elif name == "own norm":
        torch.testing.assert_close(found, drawn / drawn.norm(), rtol=1e-3, atol=1e-4)
    elif name == "noise":
        torch.testing.assert_close(found, drawn * model[0].parametrizations.weight[0].noise)
    elif name == "no inverse":
        torch.testing.assert_close(found, drawn / 2)
    elif "weight" in name or name == "two tensors":
        torch.testing.assert_close(found, drawn / (2 if "halved" in name else 1), rtol=1e-5, atol=1e-6)
    else:  # as torch registers it
        with torch.no_grad():
            layer = nn.Linear(*drawn.shape[::-1])
            layer.weight.copy_(drawn)
            chain = [copy.deepcopy(module) for module in fresh.parametrizations.weight]
            for module in chain:
                parametrize.register_parametrization(layer, "weight", module)
            torch.testing.assert_close(found, layer.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_a_partial_reset_keeps_what_is_stored_of_the_fit_hypothesis(name):
    model = trained(LAYERS[name])
    before = weight_of(model)
    ke = evolution(model, part(model))
    stored = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    ke.reset()
    for key, mask in ke.masks.items():
        assert torch.equal(model.get_parameter(key)[mask], stored[key][mask])
        assert not torch.equal(model.get_parameter(key)[~mask], stored[key][~mask])
    after = weight_of(model)
    assert after.isfinite().all()
    assert not torch.allclose(after, before, atol=1e-3)
    if "orthogonal" in name:
        short = after if after.shape[0] < after.shape[1] else after.T
        torch.testing.assert_close(short @ short.T, torch.eye(len(short)), rtol=0, atol=1e-5)
    if "spectral" in name:
        matrix = after.movedim(1 if "transposed" in name else 0, 0).flatten(1)
        assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1, abs=2e-3)
    if "symmetric" in name:
        torch.testing.assert_close(after, after.T)
    if "weight" in name and "halved" not in name:  # the formula of Knowledge Evolution, for the weight itself
        (mask,) = ke.masks.values()
        torch.testing.assert_close(after, torch.where(mask, before, expected_draw(model, ke)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("split", [whole, part])
@pytest.mark.parametrize("name", LAYERS)
def test_drawing_the_current_weight_changes_nothing(name, split):
    model = trained(LAYERS[name])
    before = weight_of(model)
    evolution(model, split(model), ShrinkPerturb(1, 0)).reset()
    torch.testing.assert_close(weight_of(model), before, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["spectral", "weight", "old weight", "old spectral", "orthogonal matrix_exp, 12 x 12", "pruned"]
)
def test_layer_default_draws_as_the_layer_was_made(name):
    model, seen = trained(LAYERS[name]), []

    def rule(values, generator, owner):
        seen.append((type(owner.layer), owner.attribute))
        return LayerDefault()(values, generator, owner)

    evolution(model, whole(model), rule).reset()
    default = weight_of(model)
    evolution(model, whole(model)).reset()
    torch.testing.assert_close(weight_of(model), default, rtol=1e-3, atol=1e-4)  # of these layers it is the same rule
    assert seen == [(type(model[0]), "weight")]
    assert "NaN" not in str(model.state_dict())


@pytest.mark.parametrize("name", ["old spectral", "old weight", "pruned", "pruned conv"])
def test_what_hooks_compute_is_known_without_an_input_and_follows_at_once(name):
    model = trained(LAYERS[name])
    evolution(model, LaterLayers("0")).reset()
    at_once = model[0].weight.detach().clone()
    torch.testing.assert_close(weight_of(model), at_once)


def test_layer_default_of_attention_with_a_pruned_projection():
    model = nn.MultiheadAttention(8, 2)
    prune.l1_unstructured(model.out_proj, "weight", 0.5)
    evolution(model, WELS(0.5, example_input=(torch.randn(3, 2, 8),) * 3), LayerDefault()).reset()
    expected = model.out_proj.weight_orig * model.out_proj.weight_mask
    torch.testing.assert_close(model.out_proj.weight, expected)


def test_spectral_norm_of_a_large_matrix_in_evaluation():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(200, 200))).eval()
    evolution(model, LaterLayers("0")).reset()
    assert torch.linalg.matrix_norm(model[0].weight, 2).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["spectral", "weight", "own norm"])
def test_precisions(name, dtype):
    model = trained(LAYERS[name]).to(dtype)
    evolution(model, part(model)).reset()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model[0].weight.isfinite().all()
    if name == "spectral":
        assert torch.linalg.matrix_norm(model[0].weight.float(), 2).item() == pytest.approx(1, abs=0.02)


def test_weight_norm_without_a_direction_or_a_length():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4)))
    stored = model[0].parametrizations.weight
    with torch.no_grad():
        stored.original0[0], stored.original0[1], stored.original1[2] = 0, -1, 0
    before = model[0].weight.detach().clone()
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:, :3] = True
    mask[3] = True
    ke = KnowledgeEvolution(model, lambda _: {"0.parametrizations.weight.original1": mask})
    drawn, row = expected_draw(model, ke), stored.original0[3].clone()
    ke.reset()
    after = model[0].weight.detach()
    assert after.isfinite().all()
    torch.testing.assert_close(after[1], torch.where(mask[1], before[1], drawn[1]))
    torch.testing.assert_close(after[2], torch.where(mask[2], 0, drawn[2]))
    assert torch.equal(after[3], before[3])
    assert torch.equal(stored.original0[3], row)


def test_a_frozen_length_stays():
    model = trained(LAYERS["weight"])
    length = model[0].parametrizations.weight.original0.requires_grad_(requires_grad=False)
    before = length.clone()
    evolution(model, part(model)).reset()
    assert torch.equal(length, before)


def test_noise_and_counters_stay_and_running_state_follows():
    noise, norm = trained(LAYERS["noise"]), trained(LAYERS["own norm"])
    before, steps = noise[0].parametrizations.weight[0].noise.clone(), norm[0].parametrizations.weight[0].steps.clone()
    for model in (noise, norm):
        evolution(model, part(model)).reset()
    assert torch.equal(noise[0].parametrizations.weight[0].noise, before)
    state = norm[0].parametrizations.weight[0]
    assert torch.equal(state.steps, steps)
    torch.testing.assert_close(state.norm, norm[0].parametrizations.weight.original.norm(), rtol=1e-3, atol=0)


def test_what_the_parametrization_cannot_take_is_refused_and_nothing_is_written():
    model = nn.Sequential(nn.Linear(12, 12), own(Exponential()))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="right_inverse of Exponential gives values that are not finite"):
        evolution(model, LaterLayers("0")).reset()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    evolution(model, LaterLayers("0"), lambda values, *_: values.uniform_(1, 2)).reset()
    assert 1 <= model[1].weight.min() <= model[1].weight.max() <= 2


def test_a_part_that_refers_to_what_the_inverse_writes_is_refused():
    class Codes(nn.Module):
        """Each element is the nearest of two values, which the right inverse sets."""

        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(()))

        def forward(self, x):
            return self.scale * x.sign()

        def right_inverse(self, weight):
            self.scale = weight.abs().mean() + 1
            return weight / self.scale

    model = nn.Sequential(own(Codes()))
    with pytest.raises(ValueError, match="a part of a weight under Codes cannot be drawn anew"):
        evolution(model, WELS(0.5)).reset()
    evolution(model, LaterLayers("0")).reset()


def test_one_parametrization_of_two_layers_is_written_once():
    shared = Root()
    model = nn.Sequential(own(shared), own(shared))
    evolution(model, LaterLayers("0")).reset()
    assert shared.norm.item() == pytest.approx(model[1].parametrizations.weight.original.norm().item(), rel=1e-2)


def test_resets_repeat_whatever_was_drawn_before():
    results = []
    for salt in (1, 2):
        torch.manual_seed(0)
        model = trained(LAYERS["orthogonal householder, 20 x 8"])
        torch.manual_seed(salt)
        evolution(model, whole(model)).reset()
        results.append(weight_of(model))
    assert torch.equal(*results)
