"""Which parameters count as weights."""

import warnings

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pml_extensions._slimming.tracing.operands import NOT_MULTIPLIED, PLACES
from pml_extensions.evolution import find_weights
from pml_extensions.evolution.weights import NO_INPUT


@pytest.mark.parametrize(
    ("layer", "weights"),
    [
        (nn.Conv1d(4, 6, 3), {"weight"}),
        (nn.Conv2d(4, 6, 3, groups=2), {"weight"}),
        (nn.Conv3d(1, 2, 3), {"weight"}),
        (nn.ConvTranspose2d(4, 6, 3), {"weight"}),
        (nn.Linear(4, 6), {"weight"}),
        (nn.Bilinear(2, 3, 4), {"weight"}),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), {"in_proj_weight", "out_proj.weight"}),
        (
            nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
            {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"},
        ),
        (
            nn.LSTM(4, 6, bidirectional=True, proj_size=2),
            {f"weight_{kind}_l0{end}" for kind in ("ih", "hh", "hr") for end in ("", "_reverse")},
        ),
        (nn.GRUCell(4, 6), {"weight_ih", "weight_hh"}),
        (nn.Embedding(4, 6), set()),
        (nn.BatchNorm2d(4), set()),
        (nn.LayerNorm((4, 5)), set()),
        (nn.GroupNorm(2, 4), set()),
        (nn.PReLU(4), set()),
        (timm.layers.StdConv2d(4, 6, 3), {"weight"}),
        (timm.layers.ScaledStdConv2d(4, 6, 3), {"weight"}),
        (timm.layers.Conv2dSame(4, 6, 3), {"weight"}),
        (parametrizations.spectral_norm(nn.Linear(4, 6)), {"parametrizations.weight.original"}),
        (parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), {"parametrizations.weight.original1"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers(layer, weights):
    found = find_weights(layer)
    assert set(found.weights) == weights
    assert set(found.weights) | set(found.reasons) == {name for name, _ in layer.named_parameters()}
    assert all(layer.get_parameter(name) is parameter for name, parameter in found.weights.items())


def test_a_parametrised_layer_is_not_run():
    layer = parametrizations.spectral_norm(nn.Linear(4, 6)).train()
    u = layer.parametrizations.weight[0]._u.clone()
    find_weights(layer)
    assert torch.equal(layer.parametrizations.weight[0]._u, u)


class Bare(nn.Module):
    """Parameters without a layer, each used in its own way; the names say what find_weights should make of them."""

    def __init__(self):
        super().__init__()
        shapes = {
            "weight_in_out": (6, 5),
            "weight_out_in": (6, 6),
            "weight_kernel": (6, 1, 3),
            "weight_standardised": (6, 6),
            "weight_sliced": (3, 6, 6),
            "weight_einsum": (6, 2, 3),
            "weight_one_output": (6, 1),
            "weight_batched": (1, 6, 6),
            "table_positions": (1, 7, 6),
            "token": (1, 1, 6),
            "scale": (1, 6),
            "table_indexed": (9, 6),
            "table_one_hot": (7, 6),
            "table_relative": (13, 6),
            "table_bias": (7, 7),
            "query": (1, 1, 6),
            "unused": (4, 4),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.to_query = nn.Linear(6, 6)

    def forward(self, x):  # (b, 7, 6)
        x = torch.cat([self.token.expand(len(x), -1, -1), x[:, 1:] + self.table_positions[:, 1:]], dim=1) * self.scale
        x = F.linear(x, self.weight_out_in.to(x.dtype))
        x = F.conv1d(x.mT, self.weight_kernel, padding=1, groups=6).mT
        w = self.weight_standardised
        x = x @ ((w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True)).t()
        q, k, v = (x @ matrix for matrix in self.weight_sliced)
        relative = (q @ self.table_relative.t()).reshape(-1, 7, 13)
        relative = F.pad(F.pad(relative, (0, 1)).flatten(1), (0, 6)).reshape(-1, 8, 13)[:, :7, 6:]
        steps = torch.arange(7)
        absolute = q @ self.table_indexed[(steps[None] - steps[:, None]).clamp(-4, 4) + 4].mean(0).t()
        x = (q @ k.mT + relative + absolute + self.table_bias).softmax(-1) @ v
        x = x + F.one_hot(steps, 7).to(x.dtype) @ self.table_one_hot
        x = torch.einsum("bnc,chd->bnhd", x, self.weight_einsum).flatten(2)
        x = x + x @ self.weight_batched.expand(len(x), -1, -1)
        x = x * (x @ self.weight_one_output)
        pooled = self.to_query(self.query) @ x.mT @ x
        return pooled @ self.weight_in_out


def test_bare_parameters_by_their_use():
    model = Bare()
    model(torch.randn(2, 7, 6)).sum().backward()
    model.zero_grad()
    weights, reasons = find_weights(model, torch.randn(2, 7, 6))
    assert set(weights) == {
        name for name, _ in model.named_parameters() if name.startswith("weight") or name == "to_query.weight"
    }
    assert reasons["table_relative"] == PLACES
    assert reasons["to_query.bias"] == "bias, norm or scale"
    for name in (
        "table_positions",
        "token",
        "scale",
        "table_indexed",
        "table_one_hot",
        "table_bias",
        "query",
        "unused",
    ):
        assert reasons[name] == NOT_MULTIPLIED


def test_several_inputs():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(3, 4))

        def forward(self, x, y):
            return x @ self.matrix @ y.mT

    assert set(find_weights(Pair(), (torch.randn(2, 3), torch.randn(5, 4))).weights) == {"matrix"}


def test_a_position_gathered_from_a_product_is_no_weight():
    class Relative(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.table = nn.Parameter(torch.randn(9, 4))
            self.how = how

        def forward(self, q):
            scores = 2 * (q @ self.table.t())
            index = torch.arange(5)
            if self.how == "index":
                return scores[..., index]
            if self.how == "select":
                return scores.index_select(-1, index)
            return scores.gather(-1, index.expand(*scores.shape[:-1], 5))

    for how in ("index", "select", "gather"):
        assert find_weights(Relative(how), torch.randn(2, 6, 4)).reasons == {"table": PLACES}


def test_features_indexed_along_another_axis_do_not_matter():
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return F.pad((x @ self.matrix)[:, torch.tensor([1, 0])], (0, 0, 1, 1))

    assert set(find_weights(Shuffled(), torch.randn(2, 2, 4)).weights) == {"matrix"}


def test_old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch recommends its successor
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)))
    weights, reasons = find_weights(model, torch.randn(2, 4))
    assert set(weights) == {"0.weight_v"}
    assert reasons["0.weight_g"] == NOT_MULTIPLIED


def test_a_use_that_is_not_known_is_no_weight_and_says_why():
    assert find_weights(Bare()).reasons["weight_in_out"] == NO_INPUT

    class Stubborn(Bare):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    reason = find_weights(Stubborn(), torch.randn(2, 7, 6)).reasons["weight_in_out"]
    assert reason.startswith("use unknown: the forward pass could not be traced in submodule ''")
    assert "test_weights.py:192: control flow that depends on data" in reason


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_precision_than_the_example(dtype):
    example = torch.randn(2, 7, 6)
    assert set(find_weights(Bare().to(dtype), example).weights) == set(find_weights(Bare(), example).weights)


def test_the_model_is_neither_run_nor_changed():
    ran = []

    class Counting(Bare):
        def forward(self, x):
            ran.append(self)
            self.cache = x
            return super().forward(x)

    model = Counting().train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    attributes = set(vars(model))
    find_weights(model, torch.randn(2, 7, 6))
    assert ran
    assert model not in ran
    assert model.training
    assert set(vars(model)) == attributes
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.requires("timm>=1.0.22")  # the first whose models are all made without data
def test_models_on_the_meta_device_can_be_surveyed():
    with torch.device("meta"):
        model = timm.create_model("test_vit")
    assert set(find_weights(model).weights) == set(find_weights(timm.create_model("test_vit")).weights)


def test_a_timm_model_of_another_image_size():
    model = timm.create_model("test_vit", img_size=64)
    assert find_weights(model).reasons["pos_embed"] == NOT_MULTIPLIED


@pytest.mark.requires("timm>=1.0.22")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda trunk: nn.Sequential(trunk, nn.Linear(1000, 8)),
        lambda trunk: nn.DataParallel(torch.compile(trunk, backend="eager")),
    ],
    ids=["parallel", "trunk and embedder", "parallel and compiled"],
)
def test_a_timm_model_inside_another(wrap):
    with torch.device("meta"):
        trunk = timm.create_model("swiftformer_xs")
        model = wrap(trunk)
    found = {id(weight) for weight in find_weights(model).weights.values()}
    assert found >= {id(weight) for weight in find_weights(trunk).weights.values()}
    assert any(name.endswith("attn.w_g") for name in find_weights(model).weights)


def test_a_compiled_model():
    model = torch.compile(timm.create_model("test_vit"), backend="eager")
    weights, reasons = find_weights(model)
    assert all(name.startswith("_orig_mod.") for name in weights)
    assert reasons["_orig_mod.pos_embed"] == NOT_MULTIPLIED
