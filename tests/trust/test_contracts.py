"""What every public class promises: the same few things for all of them."""

import copy
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from classes import CASES, NO_OBJECTS, SUBPACKAGES
from torch import nn

MODULES = {name: case for name, case in CASES.items() if isinstance(case.make(), nn.Module)}
IN_BATCHES = {name: case for name, case in CASES.items() if case.rows is not None}


def same(one, other, **tolerance):
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    torch.testing.assert_close(one, other, **tolerance, equal_nan=True)


def same_values(one, other):
    if isinstance(one, dict | tuple | list | torch.Tensor | float):
        try:
            same(one, other)
        except ValueError:  # values that are no numbers, such as names
            assert one == other
        except TypeError:
            assert one == other
    else:
        assert one == other


def random_states():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002 (read only)


def test_the_table_covers_every_public_class():
    public = {
        name for package in SUBPACKAGES for name in package.__all__ if isinstance(getattr(package, name), type)
    } - NO_OBJECTS
    assert public == set(CASES)


def pickled(one):
    return pickle.loads(pickle.dumps(one))  # noqa: S301 (made here)


PICKLED = [name for name, case in CASES.items() if not case.holds_lambdas]


@pytest.mark.parametrize(
    ("twin_of", "name"),
    [*((copy.deepcopy, name) for name in CASES), *((pickled, name) for name in PICKLED)],
)
@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")  # torch 2.4 unpickles tensors so
def test_copies_do_the_same(name, twin_of):
    case = CASES[name]
    original = case.make()
    twin = twin_of(original)
    assert type(twin) is type(original)
    same_values(case.use(twin), case.use(original))


@pytest.mark.parametrize("name", CASES)
def test_repr_shows_the_settings(name):
    text = repr(CASES[name].make())
    for part in CASES[name].shows:
        assert part in text


@pytest.mark.parametrize("name", CASES)
def test_the_global_random_states_are_not_consumed(name):
    case = CASES[name]
    one = case.make()
    before = random_states()
    case.use(one)
    assert random_states() == before


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.changes])
def test_using_it_twice_gives_the_same(name):
    case = CASES[name]
    one = case.make()
    same_values(case.use(one), case.use(one))


@pytest.mark.parametrize("name", CASES)
def test_two_threads_with_two_objects(name):
    case = CASES[name]
    expected = case.use(case.make())
    objects = [case.make() for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(case.use, objects):
            same_values(found, expected)


@pytest.mark.parametrize("name", MODULES)
def test_state_dict_goes_round(name):
    case = MODULES[name]
    original, other = case.make(), case.make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not other.load_state_dict(original.state_dict()).missing_keys
    same_values(case.use(other), case.use(original))


@pytest.mark.parametrize("name", MODULES)
def test_to_and_modes(name):
    case = MODULES[name]
    one = case.make()
    wide = one.to(torch.float64)
    assert wide is one
    assert all(parameter.dtype == torch.float64 for parameter in one.parameters())
    assert one.eval() is one
    assert not any(module.training for module in one.modules())
    assert all(module.training for module in one.train().modules())


@pytest.mark.parametrize("name", [name for name, case in MODULES.items() if not case.modes_differ])
def test_train_and_eval_are_alike_without_weights(name):
    case = MODULES[name]
    same_values(case.use(case.make().eval()), case.use(case.make().train()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", IN_BATCHES)
def test_half_precision_comes_close(name, dtype):
    case = IN_BATCHES[name]
    one = case.make()
    expected = case.rows(one, 6, torch.float32)
    if case.network is not None:
        case.network(one).to(dtype)
    found = case.rows(one, 6, dtype)
    for half, single in zip(leaves(found), leaves(expected), strict=True):
        assert half.dtype in {single.dtype, dtype}  # half precision: a gradient has its leaf's, logits the model's
        if half.is_floating_point():
            assert half.isfinite().all()
            size = float(single.abs().max())
            torch.testing.assert_close(half.float(), single.float(), rtol=0, atol=case.precision * size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", IN_BATCHES)
def test_autocast(name, dtype):
    case = IN_BATCHES[name]
    expected = case.rows(case.make(), 6, torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        found = case.rows(case.make(), 6, torch.float32)
    for half, single in zip(leaves(found), leaves(expected), strict=True):
        if half.is_floating_point():
            size = float(single.abs().max())
            torch.testing.assert_close(half.float(), single.float(), rtol=0, atol=case.autocast * size)


@pytest.mark.parametrize("name", IN_BATCHES)
def test_one_row(name):
    for leaf in leaves(IN_BATCHES[name].rows(IN_BATCHES[name].make(), 1, torch.float32)):
        assert leaf.isfinite().all()


@pytest.mark.parametrize("name", IN_BATCHES)
def test_no_rows(name):
    case = IN_BATCHES[name]
    if case.refuses_no_rows is not None:
        with pytest.raises(ValueError, match=case.refuses_no_rows):
            case.rows(case.make(), 0, torch.float32)
    else:
        found = case.rows(case.make(), 0, torch.float32)
        assert all(leaf.numel() == 0 or leaf.item() == 0 for leaf in leaves(found))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.without_data is not None])
def test_shapes_without_data(name):
    """On the meta device, what can be told from shapes alone."""
    batch, results = CASES[name].without_data
    one = CASES[name].make().to("meta")
    assert [tuple(leaf.shape) for leaf in leaves(one(torch.empty(batch, device="meta")))] == results


def leaves(found):
    return list(found) if isinstance(found, tuple) else [found]
