"""The default layer of timm's networks: every family gets a finite map that is not constant."""

import warnings

import pytest
import torch
from networks import images, pooled
from torch import nn

from pml_extensions.attr import L2CAF, LBFGS, last_feature_layer

timm = pytest.importorskip("timm")

QUICK = {
    "resnet10t": "layer4",
    "test_vit": "blocks.5.norm1",
    "test_vit2": "blocks.6",
    "test_efficientnet": "bn2",
    "test_convnext": "stages.3.blocks.1.shortcut",
    "test_mambaout": "stages.3.blocks.0.drop_path",
    "test_nfnet": "final_act",
    "mobilenetv3_small_050": "blocks",
    "deit_tiny_distilled_patch16_224": "blocks.11.norm1",
    "swin_tiny_patch4_window7_224": "norm",
    "levit_128s": "stages",
    "ghostnet_050": "blocks",
    "edgenext_xx_small": "stages.3.blocks.0",
}


def network(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for module in model.modules():  # some families start with zeros in classifiers and branches, which then say nothing
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and not weight.any():
            nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.02)
    for parameter in model.parameters():  # and others scale their branches by 1e-6 or so, which hides them
        least, most = parameter.detach().aminmax()
        if 0 < least == most < 1e-2:
            nn.init.constant_(parameter, 0.5)
    measure_statistics(model)
    return model


def measure_statistics(model):
    """Give batch norms the statistics of noise: with none, an untrained network's activations fade with its depth."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, *model.pretrained_cfg["input_size"]))
    model.eval()


def check_map(name, layer_name=None, solver=None):
    model = network(name)
    layer = last_feature_layer(model)
    path = next(path for path, module in model.named_modules() if module is layer)
    assert layer_name is None or path == layer_name
    x = torch.randn(1, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "what follows the layer cannot be played back")
        maps, report = L2CAF(model, layer).attribute(x, solver=solver, return_report=True)
    assert maps.isfinite().all()
    assert maps.std() > 1e-4
    return path, tuple(maps.shape[2:]), report


@pytest.mark.parametrize(("name", "layer"), QUICK.items())
def test_families(name, layer):
    check_map(name, layer)


def smallest_model_of(module):
    def cost(name):
        with torch.device("meta"):
            model = timm.create_model(name)
        return sum(p.numel() for p in model.parameters()) * model.pretrained_cfg["input_size"][-1] ** 2

    return min(timm.list_models(module=module)[:40], key=cost)


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_every_family(module):
    check_map(smallest_model_of(module), solver=LBFGS(steps=20))  # not to the end: it takes minutes at 768 pixels


def test_a_network_of_ones_own():
    model = pooled().train()
    model.act.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert last_feature_layer(model, images()) is model.act
    assert model.training
    assert not model.act.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(1, 8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.branch(self.norm(x))


class Twice(nn.Module):
    def forward(self, x):
        return x, x


class UnitLength(nn.Module):
    def forward(self, x):
        return nn.functional.normalize(x)


def residual(*tail):
    torch.manual_seed(0)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 3), Residual(), Residual(), pool, *tail).eval()


@pytest.mark.parametrize(
    "tail", [lambda: (nn.LayerNorm(8, eps=1e-9), nn.Linear(8, 4)), lambda: (nn.Linear(8, 4, bias=False), UnitLength())]
)
def test_a_norm_after_the_pooling(tail):
    """Of the last layers an even map would explain the output best; a branch holds a part of the places' values."""
    torch.manual_seed(0)
    model = residual(*tail())
    layer = last_feature_layer(model, images())
    assert layer is model[1]
    assert L2CAF(model, layer).attribute(images()).std() > 1e-2


def test_nowhere_felt():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), UnitLength())
    assert last_feature_layer(model, images()) is model[0]


def test_errors():
    with pytest.raises(ValueError, match="inputs must be given"):
        last_feature_layer(pooled())
    with pytest.raises(TypeError, match="model must return a tensor, got tuple"):
        last_feature_layer(nn.Sequential(pooled(), Twice()), images())
    flat = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))
    with pytest.raises(ValueError, match="no layer of Sequential has places"):
        last_feature_layer(flat, images())


class Aside(nn.Module):
    """A branch that is computed and thrown away."""

    def __init__(self):
        super().__init__()
        self.features, self.aside, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        x = self.features(x)
        self.aside(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("settings", [{}, {"target": 1}, {"solver": LBFGS()}])
def test_a_layer_that_leads_nowhere_is_refused(dtype, frozen, settings):
    model = Aside().to(dtype).eval().requires_grad_(not frozen)
    with pytest.raises(
        ValueError, match="do not reach the output; the nearest earlier layer that will do is 'features'"
    ):
        L2CAF(model, model.aside).attribute(images().to(dtype), **settings)
