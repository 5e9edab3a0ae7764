"""Resets of a model that several processes share, against the same resets of the model in one process."""

import pytest
import torch
from problems import FSDP2, RULES, mlp, normed_mlp, randn

from pml_extensions._sharding import reshard
from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution, Magnitude

needs_fsdp2 = pytest.mark.skipif(not FSDP2, reason="fully_shard is public since torch 2.6")


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0)


def states_alone(rule):
    model = mlp()
    ke = KnowledgeEvolution(model, WELS(0.5), rule=rule, seed=3)
    for move in (ke.reset, ke.reset, lambda: ke.start(rule)):
        move()
        yield {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("rule", RULES)
def test_resets_are_those_of_one_process_to_the_bit(found, rule):
    for rank in found["resets"]:
        ways = [states for (name, *_), states in rank.items() if name == rule]
        assert len(ways) == (4 if FSDP2 else 2)
        for states in ways:
            for state, expected in zip(states, states_alone(RULES[rule]), strict=True):
                assert_equal(state, expected)


@pytest.mark.parametrize("rule", [RULES["uniform"], RULES["shrink"]], ids=str)
def test_resets_of_computed_weights_are_those_of_one_process(found, rule):
    for rank in found["resets_of_computed_weights"]:
        ways = [state for (_, name), state in rank.items() if name == str(rule)]
        assert len(ways) == (2 if FSDP2 else 1)
        for state in ways:
            model = normed_mlp()
            KnowledgeEvolution(model, WELS(0.5), rule=rule, seed=3).reset()
            assert_equal(state, model.state_dict())


@needs_fsdp2
def test_a_rule_that_raises_leaves_every_part_as_it_was(found):
    for generation, state in found["failing_reset"]:
        assert generation == 0
        assert_equal(state, mlp().state_dict())


@needs_fsdp2
def test_generations_go_on_after_a_crash(found):
    ranks = found["training_goes_on"]
    for undisturbed, resumed, generation in ranks:
        assert generation == 1
        assert_equal(resumed, undisturbed)
        assert_equal(undisturbed, ranks[0][0])
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in KnowledgeEvolution(model, WELS(0.5)).generations(3, optimizer=optimizer):
        for step in range(3):
            optimizer.zero_grad()
            model(randn(4, 7, seed=step)).square().mean().backward()
            optimizer.step()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(ranks[0][0][name], weight, rtol=1e-5, atol=1e-7)


@needs_fsdp2
def test_slim_of_the_gathered_weights(found):
    dense = mlp()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.mul_(2)
    expected = KELS(0.5, example_input=torch.zeros(2, 7)).slim(dense).state_dict()
    for state in found["slim_of_a_sharded_model"]:
        assert_equal(state, expected)


@needs_fsdp2
def test_magnitudes_are_those_of_the_whole_weight(found):
    expected = KnowledgeEvolution(mlp(), Magnitude(0.3)).masks
    for masks in found["magnitude_of_a_sharded_model"]:
        assert_equal(masks, expected)


@needs_fsdp2
def test_what_needs_the_whole_model_says_so(found):
    for kels, wels, default in found["refusals"]:
        assert "must not be sharded yet; make the KnowledgeEvolution before fully_shard" in kels
        assert "must not be sharded yet: the use of 'cls_token' shows in a forward pass" in wels
        assert "shard what holds the FSDPLinear with 'weight' instead" in default


def test_a_model_that_is_not_sharded_is_left_alone():
    reshard(mlp())
