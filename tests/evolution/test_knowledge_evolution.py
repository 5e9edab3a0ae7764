"""The generations and their resets, against the update W <- M * W + (1 - M) * W_random written out."""

import copy
import math

import pytest
import torch
from torch import nn

from pml_extensions.evolution import WELS, KaimingNormal, KnowledgeEvolution, LayerDefault


def snapshot(model):
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def assert_same(model, before):
    after = snapshot(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def halves(model):
    """Keep the first row of every matrix."""
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.ndim > 1}
    for mask in masks.values():
        mask[0] = True
    return masks


def test_reset_is_the_published_update(net):
    before = snapshot(net)
    drawn = {}

    def rule(values, generator, owner):
        drawn[owner] = torch.rand(values.shape, generator=generator)
        return drawn[owner].clone()

    ke = KnowledgeEvolution(net, halves, rule=rule)
    ke.reset()
    assert len(drawn) == 2
    for name in ("0.weight", "4.weight"):
        random = drawn[net.get_submodule(name[0]), "weight"]
        mask = ke.masks[name].double()
        expected = mask * before[name].double() + (1 - mask) * random.double()
        torch.testing.assert_close(net.get_parameter(name).double(), expected, rtol=0, atol=0)


def test_default_rule_is_kaiming_uniform_with_the_fan_in_of_the_whole_weight(net):
    before = snapshot(net)
    ke = KnowledgeEvolution(net, WELS(0.5))
    ke.reset()
    for name in ("0.weight", "4.weight"):
        weight, reset = net.get_parameter(name).detach(), ~ke.masks[name]
        bound = 1 / math.sqrt(weight[0].numel())
        values = weight[reset]
        assert values.abs().max() <= bound
        assert values.abs().max() > 0.9 * bound
        assert abs(values.mean()) < 0.2 * bound
        assert torch.equal(weight[~reset], before[name][~reset])
    for name in before.keys() - ke.masks.keys():
        assert torch.equal(net.state_dict()[name], before[name])


def test_the_model_and_its_tensors_stay_the_same_objects(net):
    kind, forward, keys = type(net), net.forward, list(net.state_dict())
    parameters = list(net.parameters())
    places = [parameter.data_ptr() for parameter in parameters]
    view = net[4].weight.view(-1)
    ke = KnowledgeEvolution(net, WELS(0.5))
    for _ in ke.generations(3):
        pass
    assert type(net) is kind
    assert net.forward == forward
    assert list(net.state_dict()) == keys
    assert [parameter.data_ptr() for parameter in net.parameters()] == places
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert torch.equal(view, net[4].weight.view(-1))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters)
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())


def test_bits_of_the_fit_hypothesis_survive():
    layer = nn.Linear(4, 2, bias=False)
    odd = torch.tensor([[-0.0, float("nan"), float("inf"), 1e-45]] * 2)
    layer.weight.data.copy_(odd)
    ke = KnowledgeEvolution(layer, halves)
    ke.reset()
    kept = layer.weight.detach()[0].view(torch.int32)
    assert torch.equal(kept, odd[0].view(torch.int32))
    assert layer.weight[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_gets_the_same_draw(dtype):
    def reset(dtype):
        layer = nn.Linear(50, 20, bias=False).to(dtype)
        KnowledgeEvolution(layer, lambda m: {"weight": torch.zeros(20, 50, dtype=torch.bool)}).reset()
        return layer.weight.detach()

    if dtype == torch.float64:  # drawn with more bits
        assert (reset(dtype) * 1e9).frac().abs().min() > 0
    else:
        assert torch.equal(reset(dtype), reset(torch.float32).to(dtype))


def test_strides_are_kept(net):
    net.to(memory_format=torch.channels_last)
    twin = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    strides = net[0].weight.stride()
    for model in (net, twin):
        KnowledgeEvolution(model, WELS(0.5)).reset()
    assert net[0].weight.stride() == strides
    assert torch.equal(net[0].weight, twin[0].weight)


def test_draws_depend_on_seed_and_generation_alone(net):
    twin, other = copy.deepcopy(net), copy.deepcopy(net)
    first = KnowledgeEvolution(net, WELS(0.5), seed=3)
    first.reset()
    after_one = net[4].weight.detach().clone()
    first.reset()
    torch.manual_seed(99)
    torch.rand(1000)
    second = KnowledgeEvolution(twin, WELS(0.5), seed=3)
    second.reset()
    assert torch.equal(twin[4].weight, after_one)
    second.reset()
    assert torch.equal(twin[4].weight, net[4].weight)
    assert not torch.equal(net[4].weight, after_one)
    KnowledgeEvolution(other, WELS(0.5), seed=4).reset()
    assert not torch.equal(other[4].weight, after_one)


def test_the_global_generator_is_not_consumed(net):
    state = torch.get_rng_state()
    ke = KnowledgeEvolution(net, WELS(0.5))
    ke.start()
    for _ in ke.generations(2):
        pass
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_do_not_depend_on_what_else_is_reset(net):
    twin = copy.deepcopy(net)
    KnowledgeEvolution(
        net, lambda m: {n: torch.zeros_like(p, dtype=torch.bool) for n, p in m.named_parameters() if p.ndim > 1}
    ).reset()
    KnowledgeEvolution(twin, lambda m: {"4.weight": torch.zeros_like(m[4].weight, dtype=torch.bool)}).reset()
    assert torch.equal(net[4].weight, twin[4].weight)
    assert not torch.equal(net[0].weight, twin[0].weight)


def test_draws_do_not_depend_on_the_number_of_threads(net):
    twin, threads = copy.deepcopy(net), torch.get_num_threads()
    try:
        for count, model in ((1, net), (4, twin)):
            torch.set_num_threads(count)
            KnowledgeEvolution(model, WELS(0.5), rule=LayerDefault()).reset()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(net[0].weight, twin[0].weight)
    assert torch.equal(net[4].weight, twin[4].weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_draws_are_the_same_on_a_gpu(net):
    twin = copy.deepcopy(net).cuda()
    for model in (net, twin):
        KnowledgeEvolution(model, WELS(0.5)).reset()
    assert torch.equal(net[4].weight, twin[4].weight.cpu())


def test_a_reset_of_frozen_parameters_alone_is_told(net):
    net.requires_grad_(requires_grad=False)
    before = {name: p.clone() for name, p in net.named_parameters()}
    with pytest.warns(UserWarning, match=r"nothing was reset: no parameter.*reset_frozen=True"):
        KnowledgeEvolution(net, WELS(0.5)).reset()
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_a_frozen_parameter_is_reset_on_request_only(net):
    net[0].requires_grad_(requires_grad=False)
    frozen = net[0].weight.detach().clone()
    KnowledgeEvolution(net, WELS(0.5)).reset()
    assert torch.equal(net[0].weight, frozen)
    KnowledgeEvolution(net, WELS(0.5), reset_frozen=True).reset()
    assert not torch.equal(net[0].weight, frozen)
    assert not net[0].weight.requires_grad


def test_freezing_counts_at_the_time_of_the_reset(net):
    ke = KnowledgeEvolution(net, WELS(0.5))
    net[4].requires_grad_(requires_grad=False)
    frozen = net[4].weight.detach().clone()
    ke.reset()
    assert torch.equal(net[4].weight, frozen)
    net[4].requires_grad_(requires_grad=True)
    ke.reset()
    assert not torch.equal(net[4].weight, frozen)


def test_tied_weights_are_reset_once():
    model = nn.ModuleDict({"table": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False), "more": nn.Linear(4, 4)})
    model["head"].weight = model["table"].weight
    ke = KnowledgeEvolution(model, WELS(0.5))
    assert list(ke.masks) == ["table.weight", "more.weight"]
    before = model["head"].weight.detach().clone()
    ke.reset()
    assert model["head"].weight is model["table"].weight
    changed = model["head"].weight != before
    assert torch.equal(changed, ~ke.masks["table.weight"])


def test_masks_are_fixed_and_a_byte_a_weight(net):
    ke = KnowledgeEvolution(net, WELS(0.5))
    masks = {name: mask.clone() for name, mask in ke.masks.items()}
    for _ in ke.generations(4):
        assert all(torch.equal(ke.masks[name], mask) for name, mask in masks.items())
    for name, mask in ke.masks.items():
        assert (mask.dtype, mask.shape) == (torch.bool, net.get_parameter(name).shape)
        assert mask.untyped_storage().nbytes() == mask.numel()


def test_a_broadcast_mask_of_a_split_is_made_whole(net):
    ke = KnowledgeEvolution(net, lambda m: {"4.weight": torch.zeros(1, dtype=torch.bool).expand(m[4].weight.shape)})
    assert ke.masks["4.weight"].untyped_storage().nbytes() == net[4].weight.numel()


def test_generations_count_from_the_current_one(net):
    ke = KnowledgeEvolution(net, WELS(0.5))
    before = snapshot(net)
    seen = []
    for generation in ke.generations(3):
        if not seen:
            assert_same(net, before)  # the first one begins as it is
        seen.append((generation.index, net[4].weight.detach().clone()))
    assert [index for index, _ in seen] == [0, 1, 2]
    assert not torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(seen[1][1], seen[2][1])
    with pytest.raises(ValueError, match="at least 4: the trained one has index 2; got 3"):
        ke.generations(3)
    assert [generation.index for generation in ke.generations(5)] == [3, 4]


def test_a_loop_that_was_left_goes_on_in_its_generation(net):
    ke = KnowledgeEvolution(net, WELS(0.5))
    for generation in ke.generations(3):
        if generation.index == 1:
            break
    before = snapshot(net)
    generations = ke.generations(3)
    assert next(generations).index == 1
    assert_same(net, before)
    assert [generation.index for generation in generations] == [2]


def test_an_optimizer_of_another_model(net):
    ke = KnowledgeEvolution(net, WELS(0.5))
    stranger = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer must hold parameters of the model that evolves, got a SGD of oth"):
        ke.generations(2, optimizer=stranger)


def test_generations_after_manual_resets(net):
    ke = KnowledgeEvolution(net, WELS(0.5))
    assert ke.reset().index == 1
    assert ke.reset().index == 2
    assert [generation.index for generation in ke.generations(5)] == [2, 3, 4]
    assert ke.generation == 4


def test_nothing_happens_before_the_loop_begins(net):
    before = snapshot(net)
    KnowledgeEvolution(net, WELS(0.5)).generations(3)
    assert_same(net, before)


def test_a_progress_bar_on_request(net, capsys):
    ke = KnowledgeEvolution(net, WELS(0.5))
    assert [generation.index for generation in ke.generations(3, progress=True)] == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err


def test_start_draws_both_hypotheses(net):
    before = snapshot(net)
    ke = KnowledgeEvolution(net, WELS(0.5), seed=1)
    ke.reset()
    assert ke.start().index == ke.generation == 0
    weight = net[0].weight.detach()
    assert (weight != before["0.weight"]).all()
    assert weight.std().item() == pytest.approx(math.sqrt(2 / weight[0].numel()), rel=0.15)
    once = snapshot(net)
    ke.start(KaimingNormal())
    assert_same(net, once)


class TestErrors:
    def test_rule_that_raises_leaves_everything_as_it_was(self, net):
        calls = []

        def rule(values, generator, owner):
            values.fill_(7.0)
            calls.append(owner)
            if owner.layer is net[4]:
                raise RuntimeError("no more draws")
            return values

        ke = KnowledgeEvolution(net, WELS(0.5), rule=rule)
        before = snapshot(net)
        with pytest.raises(RuntimeError, match="no more draws"):
            ke.reset()
        assert ke.generation == 0
        assert_same(net, before)
        assert (net[4], "weight") in calls

    def test_parameter_that_cannot_be_written_leaves_everything_as_it_was(self, net):
        net[4].weight = nn.Parameter(torch.zeros(1, 1).expand(5, net[4].in_features))
        before = snapshot(net)
        ke = KnowledgeEvolution(net, WELS(0.5))
        with pytest.raises(RuntimeError, match="single memory location"):
            ke.reset()
        assert ke.generation == 0
        assert_same(net, before)

    @pytest.mark.parametrize(("values", "got"), [(torch.zeros(3), r"\(3,\)"), (None, "NoneType")])
    def test_rule_of_another_result(self, net, values, got):
        ke = KnowledgeEvolution(net, WELS(0.5), rule=lambda *_: values)
        with pytest.raises(ValueError, match=rf"rule must return .* shape \(8, 3, 3, 3\) for '0.weight', got {got}"):
            ke.reset()

    def test_no_module(self):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
            KnowledgeEvolution({}, WELS(0.5))

    def test_meta_device(self):
        with pytest.raises(ValueError, match="'weight' is on the meta device; materialise it first"):
            KnowledgeEvolution(nn.Linear(2, 2, device="meta"), WELS(0.5))

    def test_lazy_model(self):
        with pytest.raises(ValueError, match="'weight' has no shape yet; run a batch first"):
            KnowledgeEvolution(nn.LazyLinear(2), WELS(0.5))

    @pytest.mark.filterwarnings("ignore:.*deprecated")  # torch 2.14 announces the move of its quantisation to torchao
    def test_quantised_model(self):
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear})
        with pytest.raises(
            ValueError, match=r"model must not be quantised, but its layer '0' is a torch.ao.nn.quantized"
        ):
            KnowledgeEvolution(model, WELS(0.5))

    def test_nothing_to_split(self):
        with pytest.raises(ValueError, match="split must return at least one mask, got none"):
            KnowledgeEvolution(nn.LayerNorm(4), WELS(0.5))

    def test_nothing_to_reset(self, net):
        with pytest.warns(
            UserWarning, match=r"WELS\(rate=1, seed=0\) keeps every weight: a reset will change nothing"
        ) as w:
            ke = KnowledgeEvolution(net, WELS(1))
        assert w[0].filename == __file__
        before = snapshot(net)
        ke.reset()
        assert_same(net, before)

    @pytest.mark.parametrize(
        ("masks", "error", "message"),
        [
            (None, TypeError, "split must return a dict of masks by parameter name, got NoneType"),
            ({"5.weight": 0}, ValueError, r"split must name parameters as .* does, got '5.weight'"),
            ({"4.weight": [True]}, TypeError, "the mask of '4.weight' must be a tensor of torch.bool .*, got list"),
            ({"4.weight": torch.ones(5, 2)}, TypeError, "must be a tensor of torch.bool .*, got torch.float32"),
            ({"0.bias": torch.ones(7).bool()}, ValueError, r"must have the parameter's shape \(8,\), got \(7,\)"),
        ],
    )
    def test_split_of_another_form(self, net, masks, error, message):
        before = snapshot(net)
        with pytest.raises(error, match=message):
            KnowledgeEvolution(net, lambda _: masks)
        assert_same(net, before)

    def test_integer_parameter(self):
        layer = nn.Linear(2, 2)
        layer.codes = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
        with pytest.raises(ValueError, match=r"must be floating-point, but 'codes' is torch.int8"):
            KnowledgeEvolution(layer, lambda _: {"codes": torch.zeros(2, 2, dtype=torch.bool)})

    def test_too_few_generations(self, net):
        ke = KnowledgeEvolution(net, WELS(0.5))
        ke.reset()
        ke.reset()
        with pytest.raises(ValueError, match="at least 3: the current one has index 2; got 2"):
            ke.generations(2)

    @pytest.mark.parametrize("n", [2.0, True, "3"])
    def test_number_of_generations_of_another_type(self, net, n):
        with pytest.raises(TypeError, match="n must be an int"):
            KnowledgeEvolution(net, WELS(0.5)).generations(n)

    def test_optimizer_of_another_type(self, net):
        with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got list"):
            KnowledgeEvolution(net, WELS(0.5)).generations(2, optimizer=[])
