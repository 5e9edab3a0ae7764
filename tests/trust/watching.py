"""What must be as before: everything about a network that a user could notice."""

import torch


def fingerprint(model):
    """Return weights and buffers to the bit, gradients, modes, what requires gradients, hooks, classes, attributes."""
    return {
        "tensors": {
            name: (id(tensor), tensor.detach().clone(), tensor.requires_grad, tensor.grad, tensor.dtype)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        },
        "modules": {
            name: (
                id(module),
                type(module),
                module.training,
                sorted(vars(module)),
                {
                    key: len(hooks)
                    for key, hooks in vars(module).items()
                    if key.endswith(("_hooks", "_hooks_with_kwargs"))
                },
            )
            for name, module in model.named_modules()
        },
    }


def assert_untouched(model, before):
    after = fingerprint(model)
    assert after["modules"] == before["modules"]
    assert after["tensors"].keys() == before["tensors"].keys()
    for name, (place, value, *rest) in before["tensors"].items():
        now_place, now, *now_rest = after["tensors"][name]
        assert now_place == place, name
        assert bits(now).equal(bits(value)), name
        assert all(one is other or one == other for one, other in zip(now_rest, rest, strict=True)), name


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)
