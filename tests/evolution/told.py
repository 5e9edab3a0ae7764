"""What a timm model tells of itself beside what it returns, on shapes alone; for tests and tables."""

from contextlib import suppress

from torch import Tensor, nn

from pml_extensions._declared_input import stand_in_inputs
from pml_extensions._slimming import ShapesOnly, tensors_in, undisturbed, weightless

LISTS = ("embed_dim", "embed_dims", "num_features")
TAKEN = ("in_features", "in_channels", "in_chs")
RETURNED = ("num_features", "hidden_size", "out_features", "out_channels", "out_chs")


def told_and_returned(model, inputs=None):
    """Return, for each thing that a model tells and that can be looked at, what it tells and what it returns."""
    inputs = inputs or stand_in_inputs(model, None)
    lean, found = weightless(model), {}
    entries = getattr(getattr(lean, "feature_info", ()), "info", getattr(lean, "feature_info", ()))
    channels = [entry["num_chs"] for entry in entries]
    with undisturbed(), ShapesOnly([*inputs, *lean.parameters()]):
        taps = taps_of(lean, entries, inputs)
        found |= {f"feature_info[{place}], tapped": (channels[place], width) for place, width in taps.items()}
        if hasattr(getattr(lean, "feature_info", None), "out_indices"):
            outputs = tensors_in(lean(*inputs))
            found["features_only"] = (lean.feature_info.channels(), [channels_of(lean, t) for t in outputs])
        else:
            parts, handles = parts_told(lean)
            features = lean.forward_features(*inputs)
            stages = []
            with suppress(Exception):  # not every model has them
                maps = lean.forward_intermediates(*inputs, intermediates_only=True)
                stages = [t.shape[1] if t.ndim == 4 else t.shape[-1] for t in tensors_in(maps)]
                found["feature_info"] = (channels, stages)
            with suppress(Exception):  # nor a head that can stop
                found |= told_of_head(lean, lean.forward_head(features, pre_logits=True))
            found |= parts
            for handle in handles:
                handle.remove()
            maps = [channels_of(lean, t) for t in tensors_in(features)]
            for name in LISTS:
                value = getattr(lean, name, None)
                if isinstance(value, int) and len(maps) == 1:
                    found[name] = (value, maps[0])
                    found[f"{name} of a stage"] = (value, value if value in stages else stages)
                elif isinstance(value, list | tuple):
                    found |= {f"{name} of maps": (list(value), maps), f"{name} of stages": (list(value), stages)}
            if lean.num_classes:
                found["num_classes"] = (lean.num_classes, lean.forward_head(features).shape[-1])
    return found


def told_of_head(model, pooled):
    """Return what a model tells of its pre-logits."""
    width = pooled.shape[-1] if pooled.ndim < 4 else channels_of(model, pooled)
    classifier = model.get_classifier()
    found = {"head_hidden_size": (model.head_hidden_size, width), "num_features of head": (model.num_features, width)}
    if isinstance(classifier, nn.Linear):
        found["classifier"] = (classifier.in_features, width)
    return found


def parts_told(model):
    """Return what parts of a model tell of the channels that they take and return, to be filled by a pass."""
    found, handles = {}, []

    def note(path, module, given, out):
        for names, tensors in ((TAKEN, tensors_in(given)), (RETURNED, tensors_in(out))):
            for name in names:
                told = getattr(module, name, None)
                if isinstance(told, int) and tensors and tensors[0].ndim > 1:
                    shape = tensors[0].shape
                    found[f"{path}.{name}"] = (told, told if told in {shape[1], shape[-1]} else shape)

    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_hook(lambda m, i, out, path=path: note(path, m, i, out)))
    return found, handles


def taps_of(model, entries, inputs):
    """Return the widths of what the modules return that feature_info names, by the places of its entries."""
    found, modules, handles = {}, dict(model.named_modules()), []

    def note(place, out):
        first = out[0] if isinstance(out, list | tuple) else out
        if isinstance(first, Tensor) and first.ndim > 1:
            found.setdefault(place, channels_of(model, first))

    for place, entry in enumerate(entries):
        module = modules.get(entry.get("module") or "nothing")
        if module is not None and entry.get("hook_type", "forward") == "forward":
            handles.append(module.register_forward_hook(lambda _m, _i, out, place=place: note(place, out)))
    model(*inputs)
    for handle in handles:
        handle.remove()
    return found


def channels_of(model, features):
    """Return the channels of features: the last axis of tokens and of maps that a model hands out channels last."""
    last = features.ndim < 4 or str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
    return features.shape[-1 if last else 1]


def stale(dense, slim, inputs=None):
    """Return what a slim model tells wrongly of what its dense model tells rightly, with what it returns."""
    right = {name for name, (told, returned) in told_and_returned(dense, inputs).items() if told == returned}
    now = told_and_returned(slim, inputs)
    return {name: now.get(name, "gone") for name in right if name not in now or now[name][0] != now[name][1]}
