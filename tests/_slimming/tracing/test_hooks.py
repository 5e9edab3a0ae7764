"""Hooks of the model's own: those that carry data take part in the analysis, and in the slim network, as its own."""

import copy
import functools
import queue
import threading
import weakref
from contextvars import ContextVar

import pytest
import torch
from torch import nn

from pml_extensions.evolution import KELS, TracingError

X = torch.randn(2, 4)
KEPT, CALLS = {}, []
ACTIVE = ContextVar("active", default=None)
MODEL = LAST = None
BESIDE = nn.Identity()


class Skip(nn.Module):
    """The output of the first layer reaches the last one by a hook alone; ``read`` says where the hook left it."""

    def __init__(self, read=lambda model: model.kept):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 16), nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 8)), nn.Linear(24, 2)
        self.features, self.box, self.calls, self.read = [], {}, 0, read

    def keep(self, module, args, out):
        self.kept = out

    def keep_first(self, module, args):
        self.kept = args[0]

    def append(self, module, args, out):
        self.features.append(out)

    def forward(self, x):
        self.features.clear()
        hidden = self.b(self.a(x))
        return self.c(torch.cat([hidden, self.read(self)], 1))


class Recorder:
    """An object beside the model that refers to it."""

    def __init__(self, model):
        self.model, self.outputs = model, []

    def record(self, module, args, out):
        self.outputs.append(out.shape)
        self.model.kept = out

    def __call__(self, module, args, out):
        self.record(module, args, out)


def bound():
    model = Skip()
    model.a.register_forward_hook(model.keep)
    return model


def function():
    model = Skip()
    model.a.register_forward_hook(lambda module, args, out: setattr(model, "kept", out))
    return model


def default():
    model = Skip()

    def keep(module, args, out, kept_by=model):
        kept_by.kept = out

    model.a.register_forward_hook(keep)
    return model


def with_keywords():
    model = Skip()
    model.a.register_forward_hook(lambda module, args, kwargs, out: setattr(model, "kept", out), with_kwargs=True)
    return model


def before():
    model = Skip()
    model.b.register_forward_pre_hook(model.keep_first)
    return model


def before_with_keywords():
    model = Skip()

    def keep(module, args, kwargs):
        model.kept = args[0]

    model.b.register_forward_pre_hook(keep, with_kwargs=True)
    return model


def in_a_list():
    model = Skip(lambda model: model.features[-1])
    model.a.register_forward_hook(lambda module, args, out: model.features.append(out))
    return model


def in_a_list_by_itself():
    model = Skip(lambda model: model.features[-1])
    features = model.features
    model.a.register_forward_hook(lambda module, args, out: features.append(out))
    return model


def in_a_dict():
    model = Skip(lambda model: model.box["a"])
    model.a.register_forward_hook(lambda module, args, out, box=model.box: box.update(a=out))
    return model


def in_a_partial():
    model = Skip(lambda model: model.box["a"])

    def keep(box, module, args, out, *, key):
        box[key] = out

    model.a.register_forward_hook(functools.partial(keep, model.box, key="a"))
    return model


def on_a_container():
    model = Skip()
    model.c = nn.Linear(16, 2)
    model.b.register_forward_hook(lambda module, args, out: setattr(model, "kept", out.relu()))
    return model


def of_another_module():
    model = Skip(lambda model: model.b.kept)
    model.b.keep = functools.partial(Skip.keep, model.b)
    model.a.register_forward_hook(model.b.keep)
    return model


def of_another_object():
    model = Skip()
    model.a.register_forward_hook(Recorder(model).record)
    return model


def an_object():
    model = Skip()
    model.a.register_forward_hook(Recorder(model))
    return model


def by_a_weak_reference():
    model = Skip()
    to = weakref.ref(model)
    model.a.register_forward_hook(lambda module, args, out: setattr(to(), "kept", out))
    return model


def through_functions():
    model = Skip()

    def write(out):
        model.kept = out

    def keep(module, args, out):
        write(out)
        return keep and None

    model.a.register_forward_hook(keep)
    return model


def beside_a_lock():
    model = Skip()
    lock = threading.Lock()

    def keep(module, args, out):
        with lock:
            model.kept = out

    model.a.register_forward_hook(keep)
    return model


def keep_in_the_model_of_this_file(module, args, out):
    MODEL.kept = out


def by_a_global():
    global MODEL  # noqa: PLW0603  # as in a script
    MODEL = Skip()
    MODEL.a.register_forward_hook(keep_in_the_model_of_this_file)
    return MODEL


def in_a_dict_of_this_file():
    model = Skip(lambda model: KEPT["a"])
    model.a.register_forward_hook(lambda module, args, out: KEPT.update(a=out))
    return model


def set_the_global(module, args, out):
    global LAST  # noqa: PLW0603  # as in a script
    LAST = out


def in_a_global():
    model = Skip(lambda model: LAST)
    model.a.register_forward_hook(set_the_global)
    return model


def in_a_variable_of_both():
    kept = None

    def keep(module, args, out):
        nonlocal kept
        kept = out

    model = Skip(lambda model: kept)
    model.a.register_forward_hook(keep)
    return model


def in_a_variable_of_both_and_the_model():
    kept = None

    def keep(module, args, out):
        nonlocal kept
        kept, model.calls = out, model.calls + 1

    model = Skip(lambda model: kept)
    model.a.register_forward_hook(keep)
    return model


def in_a_variable_of_its_class():
    box = {}

    class Closed(Skip):
        def forward(self, x):
            hidden = self.b(self.a(x))
            return self.c(torch.cat([hidden, box["a"]], 1))

    model = Closed()
    model.a.register_forward_hook(lambda module, args, out: box.update(a=out))
    return model


def on_a_module_beside():
    model = Skip(lambda model: BESIDE.kept)
    model.a.register_forward_hook(lambda module, args, out: setattr(BESIDE, "kept", out))
    return model


def on_the_function_itself():
    def keep(module, args, out):
        keep.kept = out

    model = Skip(lambda model: keep.kept)
    model.a.register_forward_hook(keep)
    return model


def by_a_weak_method():
    model = Skip()
    keep = weakref.WeakMethod(model.keep)

    def through(module, args, out):
        keep()(module, args, out)

    model.a.register_forward_hook(through)
    return model


def after_a_look():
    model, largest = Skip(), []

    def keep(module, args, out):
        largest.append(out.abs().max().item())
        model.kept = out

    model.a.register_forward_hook(keep)
    return model


def changing_the_output_by_what_it_sees():
    model = Skip(lambda model: model.a.kept)
    model.a.register_forward_hook(lambda module, args, out: torch.cat([out, -out], 1) * (1 + float(out.norm() > 1e9)))
    model.a.register_forward_hook(functools.partial(Skip.keep, model.a))
    model.a.register_forward_hook(lambda module, args, out: setattr(module, "kept", out.chunk(2, 1)[0]))
    model.b[0] = nn.Linear(32, 12)
    return model


def changing_the_output():
    model = Skip(lambda model: model.more(model.features[-1]))
    model.more = nn.Linear(16, 16)
    model.a.register_forward_hook(model.append)
    model.a.register_forward_hook(lambda module, args, out: out * 2)
    return model


CARRYING = [
    bound, function, default, with_keywords, before, before_with_keywords, in_a_list, in_a_list_by_itself, in_a_dict,
    in_a_partial, on_a_container, of_another_module, of_another_object, an_object, by_a_weak_reference,
    through_functions, beside_a_lock, by_a_global, changing_the_output, in_a_dict_of_this_file, in_a_global,
    in_a_variable_of_both, in_a_variable_of_both_and_the_model, in_a_variable_of_its_class, on_a_module_beside,
    on_the_function_itself, by_a_weak_method, after_a_look, changing_the_output_by_what_it_sees,
]  # fmt: skip


def state(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = {name: value for name, value in vars(model).items() if name in {"kept", "calls"}}
    hooks = [tuple(m._forward_hooks.items()) + tuple(m._forward_pre_hooks.items()) for m in model.modules()]
    return tensors, kept, list(model.features), dict(model.box), hooks


def same(a, b):
    tensors = all(torch.equal(a[0][name], b[0][name]) for name in a[0] | b[0])
    return tensors and a[1].keys() == b[1].keys() and all(a[1][k] is b[1][k] for k in a[1]) and a[2:] == b[2:]


def masked(model, split):
    masks = split(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(masks.get(name, torch.ones(())))
    return model


@pytest.mark.parametrize("called", ["fresh", "called", "called without gradients"])
@pytest.mark.parametrize("make", CARRYING)
def test_hooks_that_carry_data_take_part(make, called):
    model, split = make(), KELS(0.5, example_input=X)
    if called != "fresh":
        with torch.set_grad_enabled(called == "called"):
            model(torch.randn(5, 4))
    before = state(model)
    slim = split.slim(model)
    assert same(state(model), before)
    assert (slim.a.out_features, slim.b[0].out_features, slim.b[1].out_features) == (8, 6, 4)
    assert slim.c.in_features == model.c.in_features // 2
    x = torch.randn(3, 4)
    out = slim(x)
    assert same(state(model), before)
    torch.testing.assert_close(out, masked(model, split)(x))
    assert KELS(0.5, example_input=X).slim(slim)(x).shape == (3, 2)  # a slim network is one like any other


@pytest.mark.parametrize("make", CARRYING)
def test_after_an_exception_the_model_is_as_before(make):
    model = make()
    model(X)
    before = state(model)
    for error, ask in ((TracingError, KELS(0.5, example_input=torch.randn(2, 5))),):
        for what in (ask, ask.slim, ask.compare):
            with pytest.raises(error, match="could not be traced"):
                what(model)
            assert same(state(model), before)
    assert model(X).shape == (2, 2)


def plain():
    return nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 2))


def log_in_this_file(module, args, out):
    CALLS.append(out)


def looking_hooks():
    """Hooks that look only; each with what it writes to."""
    seen = []
    yield "closure", lambda module, args, out: seen.append(out.shape), seen
    yield "method of a list", functools.partial(_hand_over, seen.append), seen
    yield "global", log_in_this_file, CALLS
    yield "dict", lambda module, args, out: KEPT.update(a=out), KEPT
    yield "module", lambda module, args, out: setattr(BESIDE, "kept", out), vars(BESIDE)
    yield "values", lambda module, args, out: seen.append(out.mean().item()), seen
    yield "array", lambda module, args, out: seen.append(out.detach().numpy()), seen

    class Unwilling(list):
        def __deepcopy__(self, memo):
            raise TypeError("no copy")

    unwilling = Unwilling()
    yield "not to be copied", lambda module, args, out: unwilling.append(out), unwilling


def _hand_over(write, module, args, out):
    write(out)


@pytest.mark.parametrize("hook", [pytest.param(hook, id=hook[0]) for hook in looking_hooks()])
def test_hooks_of_the_original_are_not_called(hook):
    _, function, seen = hook
    for key in ("a", "kept") if isinstance(seen, dict) else ():
        seen.pop(key, None)
    if isinstance(seen, list):
        seen.clear()
    model, before = plain(), len(seen)
    model[0].register_forward_hook(function)
    slim = KELS(0.5, example_input=X).slim(model)
    assert len(seen) == before
    slim(X)
    assert len(seen) == before + 1  # as in any deep copy: what is beside the model is shared


def records(module, args, out):
    """Look, and then do what would tie the width down in the network."""
    CALLS.append(out.mean().item())
    CALLS.append(
        (out.sort(1).values[:, :3].tolist(), torch.histc(out, 4), out[0, 1].item(), out.flip(1).topk(2), repr(out))
    )


def test_what_a_hook_does_for_its_records_ties_no_width():
    model = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 12), nn.Linear(12, 2))
    for layer in model:
        layer.register_forward_hook(records)
    slim = KELS(0.5, example_input=X).slim(model)
    assert [layer.out_features for layer in slim] == [8, 6, 2]
    slim(X)


@pytest.mark.parametrize(
    "make",
    [
        lambda out: out.flip(1),
        lambda out: torch.cat([out, out], 1)[:, :16],
        lambda out: out.sort(1).values + 1,
        lambda out: out.view(-1, 2, 8).flatten(1),
    ],
)
@pytest.mark.parametrize("replaced", [True, False])
def test_what_a_hook_makes_after_a_look_is_refused(make, replaced):
    model = Skip()

    def hook(module, args, out):
        if out.abs().max() > 3:
            CALLS.append(out)
        model.kept = out if replaced else make(out)
        return make(out) if replaced else None

    model.a.register_forward_hook(hook)
    with pytest.raises(TracingError, match=r"a hook hands on what it has made.*look at values last"):
        KELS(0.5, example_input=X).slim(model)


def test_an_object_that_cannot_be_copied_is_named():
    model = plain()
    model[1].jobs = queue.SimpleQueue()
    with pytest.raises(TracingError, match=r"copy.deepcopy takes, but it fails on '1.jobs': TypeError: cannot pickle"):
        KELS(0.5, example_input=X).slim(model)


def test_a_counter_of_the_original_does_not_count():
    model, count = plain(), 0

    def hook(module, args, out):
        nonlocal count
        count += 1

    model[0].register_forward_hook(hook)
    KELS(0.5, example_input=X).slim(model)
    assert count == 0
    model(X)
    assert count == 1


def test_a_librarys_state_that_cannot_be_copied_is_shared():
    """As transformers captures outputs: hooks on layers write to what a context variable holds during a call."""

    def capture(module, args, out):
        if ACTIVE.get() is not None:
            ACTIVE.get().append(out)

    class Capturing(Skip):
        def forward(self, x):
            captured = []
            token = ACTIVE.set(captured)
            try:
                hidden = self.b(self.a(x))
            finally:
                ACTIVE.reset(token)
            return self.c(torch.cat([hidden, captured[0]], 1))

    model = Capturing()
    model.a.register_forward_hook(capture)
    split, x = KELS(0.5, example_input=X), torch.randn(3, 4)
    slim = split.slim(model)
    torch.testing.assert_close(slim(x), masked(model, split)(x))


def test_backward_and_state_hooks_stay_and_are_the_slim_networks():
    model, seen = plain(), []
    model.tag = "dense"
    model[0].register_full_backward_hook(lambda module, *_: seen.append(model[0] is module))
    model[0].register_full_backward_pre_hook(lambda module, *_: seen.append(model[0] is module))
    model.register_state_dict_post_hook(lambda module, state, *_: state.update(same=torch.tensor(model is module)))
    model.register_load_state_dict_pre_hook(lambda module, state, *_: setattr(model, "loaded", state.pop("same")))
    slim = KELS(0.5, example_input=X).slim(model)
    assert seen == []
    slim(X.clone().requires_grad_()).sum().backward()
    assert seen == [True, True]
    assert slim.state_dict()["same"]
    slim.load_state_dict(slim.state_dict())
    assert slim.loaded
    assert not hasattr(model, "loaded")
    assert model.state_dict()["same"]


def test_functions_that_modules_hold_are_the_slim_networks():
    model = plain()
    model.first = lambda x: model[0](x) + 1
    model.forward = lambda x: model[1](model.first(x))
    model.parts = [lambda x: model[1](x) - 1]
    slim = KELS(0.5, example_input=X).slim(model)
    assert slim[0].out_features == 8
    assert slim(X).shape == slim.parts[0](slim.first(X)).shape == (2, 2)


def test_plain_hooks_stay_what_they_are_and_pickle():
    model = plain()
    model[0].register_forward_hook(log_in_this_file)
    slim = KELS(0.5, example_input=X).slim(model)
    assert [*slim[0]._forward_hooks.values()] == [log_in_this_file]


class Cached(nn.Module):
    """It computes a table from its weights once."""

    def __init__(self):
        super().__init__()
        self.a, self.t, self.b = nn.Linear(4, 16), nn.Linear(5, 16), nn.Linear(16, 2)
        self.cache = None

    def forward(self, x):
        if self.cache is None:
            self.cache = self.t(torch.ones(1, 5))
        return self.b(self.a(x) * self.cache)


class CachedInADict(Cached):
    def __init__(self):
        super().__init__()
        self.cache = {}

    def forward(self, x):
        if x.device not in self.cache:
            self.cache[x.device] = self.t(torch.ones(1, 5))
        return self.b(self.a(x) * self.cache[x.device])


@pytest.mark.parametrize("make", [Cached, CachedInADict])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode, torch.no_grad])
def test_what_an_earlier_call_computed_is_not_cut(mode, make):
    model, split = make(), KELS(0.5, example_input=X)
    assert split.slim(model).t.out_features == 8
    with mode():
        model(X)
    with pytest.raises(
        TracingError, match=r"'cache(\[0\])?' of the model holds a tensor that an earlier call computed"
    ):
        split.slim(model)
    model.cache = make().cache
    assert split.slim(model)(X).shape == (2, 2)


def test_tensors_in_a_list_are_told_apart():
    class Tables(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 6), nn.Linear(6, 2)
            self.tables = [torch.randn(16), torch.randn(6), torch.randn(2)]

        def forward(self, x):
            first, second, last = self.tables
            return self.c(self.b(self.a(x) * first) * second) + last

    model, split, x = Tables(), KELS(0.5, example_input=X), torch.randn(3, 4)
    slim = split.slim(model)
    assert [len(table) for table in slim.tables] == [8, 3, 2]
    torch.testing.assert_close(slim(x), masked(copy.deepcopy(model), split)(x))


@pytest.mark.parametrize("called", [False, True])
def test_segformer(called):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [16, 24], "num_attention_heads": [2, 4], "sr_ratios": [2, 1], "decoder_hidden_size": 32}
    stages = {"num_encoder_blocks": 2, "depths": [1, 1], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2]}
    config = transformers.SegformerConfig(**sizes, **stages, num_labels=5)
    model, images = transformers.SegformerForSemanticSegmentation(config).eval(), torch.randn(2, 3, 32, 32)
    if called:
        model(images)
    split = KELS(0.5, example_input=images)
    assert split.widths(model).whole == []
    assert split.slim(model).eval()(images).logits.shape == model(images).logits.shape
