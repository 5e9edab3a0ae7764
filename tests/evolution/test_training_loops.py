"""The loops of the hosts: PML's trainers, timm's EMA copy, torch.compile, optimisers."""

import copy

import pytest
import timm
import torch
from pytorch_metric_learning import losses, trainers
from timm.optim import Lookahead
from timm.utils import ModelEmaV3
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from pml_extensions.evolution import WELS, KnowledgeEvolution


def step(model, optimizer, images):
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()


def test_a_plain_loop_with_a_timm_model(timm_net):
    images = torch.randn(4, 3, 32, 32)
    ke = KnowledgeEvolution(timm_net, WELS(0.5))
    for generation in ke.generations(2):
        optimizer = torch.optim.SGD(timm_net.parameters(), lr=0.01)
        if generation.index == 1:
            reset = timm_net.get_classifier().weight.detach()[~ke.masks["fc.weight"]]
            assert reset.abs().max() <= timm_net.num_features**-0.5
        step(timm_net.train(), optimizer, images)
    assert timm_net(images).isfinite().all()


def test_the_optimizer_forgets_at_each_reset(net):
    images = torch.randn(4, 3, 3, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    groups = copy.deepcopy(optimizer.state_dict()["param_groups"])
    for generation in KnowledgeEvolution(net, WELS(0.5)).generations(3, optimizer=optimizer):
        assert len(optimizer.state) == 0, generation
        step(net, optimizer, images)
        assert len(optimizer.state) == len(list(net.parameters()))
    assert optimizer.state_dict()["param_groups"] == groups


def test_an_optimizer_with_a_cleared_state_steps_like_a_fresh_one(net):
    images = torch.randn(4, 3, 3, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    generations = KnowledgeEvolution(net, WELS(0.5)).generations(2, optimizer=optimizer)
    next(generations)
    step(net, optimizer, images)
    next(generations)
    twin = copy.deepcopy(net)
    step(net, optimizer, images)
    step(twin, torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9), images)
    assert torch.equal(net[4].weight, twin[4].weight)


def test_without_the_argument_the_optimizer_remembers(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    generations = KnowledgeEvolution(net, WELS(0.5)).generations(2)
    next(generations)
    step(net, optimizer, torch.randn(4, 3, 3, 3))
    next(generations)
    assert len(optimizer.state) > 0


def test_a_wrapped_optimizer_forgets_too(net):
    base = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer = Lookahead(base, k=1)
    generations = KnowledgeEvolution(net, WELS(0.5)).generations(2, optimizer=optimizer)
    next(generations)
    step(net, optimizer, torch.randn(4, 3, 3, 3))
    assert "lookahead_slow_buff" in base.state[net[4].weight]
    next(generations)
    assert len(base.state) == 0


def test_timms_ema_copy_follows_the_reset(net):
    images = torch.randn(4, 3, 3, 3)
    ema = ModelEmaV3(net, decay=0.9)
    for generation in KnowledgeEvolution(net, WELS(0.5)).generations(3):
        ema.set(net)
        assert torch.equal(ema.module[4].weight, net[4].weight), generation
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            step(net, optimizer, images)
            ema.update(net)
        assert not torch.equal(ema.module[4].weight, net[4].weight)


def test_an_ema_copy_of_its_own_is_reset_alike(net):
    """Same split and seed: the average of the fit-hypothesis is kept, the reset-hypothesis is the model's."""
    ema = ModelEmaV3(net, decay=0.9)
    ke, averaged = (KnowledgeEvolution(model, WELS(0.5), seed=4) for model in (net, ema.module))
    step(net, torch.optim.SGD(net.parameters(), lr=0.1), torch.randn(4, 3, 3, 3))
    ema.update(net)
    average = ema.module[4].weight.clone()
    ke.reset()
    averaged.reset()
    keep = ke.masks["4.weight"]
    assert torch.equal(ema.module[4].weight[~keep], net[4].weight[~keep])
    assert torch.equal(ema.module[4].weight[keep], average[keep])
    assert not torch.equal(average[keep], net[4].weight[keep])


def test_pmls_trainer_runs_each_generation():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(12, 8))
    data = [(torch.randn(3, 2, 2), label) for label in [0, 1] * 8]
    ke = KnowledgeEvolution(trunk, WELS(0.5))
    ran = []
    for generation in ke.generations(3):
        before = trunk[1].weight.detach().clone()
        trainers.MetricLossOnly(
            models={"trunk": trunk},
            optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
            batch_size=8,
            loss_funcs={"metric_loss": losses.ContrastiveLoss()},
            dataset=data,
            data_device="cpu",
            dataloader_num_workers=0,
        ).train(num_epochs=1)
        assert not torch.equal(trunk[1].weight, before)
        ran.append(generation.index)
    assert ran == [0, 1, 2]


@pytest.mark.parametrize("outer", [True, False], ids=["of the compiled model", "of the model before"])
def test_a_compiled_model_is_not_compiled_again(net, outer):
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(net, backend=counter)
    images = torch.randn(4, 3, 3, 3)
    ke = KnowledgeEvolution(compiled if outer else net, WELS(0.5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    outputs, frames = [], None
    for generation in ke.generations(3, optimizer=optimizer):
        step(compiled, optimizer, images)
        outputs.append(compiled(images).detach())
        torch.testing.assert_close(outputs[-1], net(images).detach())
        if generation.index == 0:
            frames = counter.frame_count
    assert counter.frame_count == frames
    assert not torch.equal(outputs[1], outputs[2])


def test_a_step_costs_nothing_extra(net):
    images = torch.randn(4, 3, 3, 3)
    plain = copy.deepcopy(net)
    KnowledgeEvolution(net, WELS(0.5))

    class Log(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.operations = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.operations.append(func)
            return func(*args, **(kwargs or {}))

    def operations(model):
        with Log() as log:
            model(images).sum().backward()
        return log.operations

    expected = operations(plain)
    assert len(expected) > 10
    assert operations(net) == expected


def test_ranks_draw_alike(net):
    """Two processes with other global generators end with the same weights: a reset needs no communication."""
    twin = copy.deepcopy(net)
    for rank, model in enumerate((net, twin)):
        torch.manual_seed(rank)
        KnowledgeEvolution(model, WELS(0.5)).reset()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_data_parallel_wrapper(net):
    wrapped = nn.DataParallel(net)
    ke = KnowledgeEvolution(wrapped, WELS(0.5))
    twin = copy.deepcopy(net)
    ke.reset()
    KnowledgeEvolution(twin, WELS(0.5)).reset()
    assert set(ke.masks) == {"module.0.weight", "module.4.weight"}
    assert torch.equal(net[4].weight, twin[4].weight)


def test_a_deep_copied_or_pickled_evolution_goes_on_by_itself(net):
    ke = KnowledgeEvolution(net, WELS(0.5))
    twin = copy.deepcopy(ke)
    ke.reset()
    assert not torch.equal(twin.model[4].weight, net[4].weight)
    twin.reset()
    assert torch.equal(twin.model[4].weight, net[4].weight)


def test_timm_models_stay_whole():
    model = timm.create_model("test_resnet", num_classes=0)
    KnowledgeEvolution(model, WELS(0.5)).reset()
    assert model.forward_features(torch.randn(2, 3, 32, 32)).isfinite().all()
