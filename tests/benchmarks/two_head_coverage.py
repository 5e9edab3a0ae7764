"""Put two heads on the smallest model of every module of timm, check what comes out, and tabulate it; resumable.

    python tests/benchmarks/two_head_coverage.py run                                        # about 10 minutes
    python tests/benchmarks/two_head_coverage.py run --models resnet18,vit_base_patch16_224
    python tests/benchmarks/two_head_coverage.py table > docs/two_head_coverage.md

The lines go to --rows (tests/benchmarks/rows/two_head.jsonl), and a model that stands there is not run again.
For each: the logits are those of the classifier alone, to the bit, in evaluation; the embeddings have unit length; the
gradient of either head reaches the first layer; and a training pass updates every running statistic as the classifier
alone would. A failure is printed in the table in place of the shapes.
"""

import argparse
import copy
from functools import partial
from operator import itemgetter
from pathlib import Path

import timm
import torch
from resumable import ROWS, Lines, add_limits, go_on
from timm.models import list_modules
from timm_names import chosen, module_of

from pml_extensions.models import TwoHead

SETTINGS = {  # three that take minutes at the size of their configuration
    "deepseek_vit_412m": {"img_size": 112},
    "gemma4_vit_167m": {"img_size": 192},
    "qwen3_vit_88m": {"img_size": 192},
}


def build(name):
    settings = SETTINGS.get(name, {})
    model = timm.create_model(name, num_classes=10, **settings)
    channels, height, width = model.pretrained_cfg["input_size"]
    size = settings.get("img_size")
    return model, (channels, size or height, size or width)


def shape(features):
    if isinstance(features, list | tuple):
        return ", ".join(map(shape, features))
    return " x ".join(map(str, features.shape[1:]))


def check_values(model, two, images):
    expected, outputs = model.eval()(images), two.eval()(images)
    assert torch.equal(outputs.logits, expected), "logits differ from the classifier's"
    assert (outputs.embeddings.norm(dim=1) - 1).abs().max() < 1e-5, "embeddings are not of unit length"


def check_training(model, two, images):
    classifier = model.get_classifier()
    for part in classifier if isinstance(classifier, tuple) else (classifier,):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.02)  # some start at zero, and let no gradient through
    alone = copy.deepcopy(model).train()
    with torch.random.fork_rng():
        alone.forward_head(alone.forward_features(images))
    outputs = two.train()(images)
    changed = [k for (k, b), other in zip(model.named_buffers(), alone.buffers(), strict=True) if not same(b, other)]
    assert not changed, f"statistics differ: {changed[0]}"
    first = next(parameter for parameter in model.parameters() if parameter.ndim > 1)
    for output in outputs:
        (output * torch.randn_like(output)).sum().backward(retain_graph=True)
        assert first.grad.any(), "no gradient reaches the trunk"
        model.zero_grad()


def same(one, other):
    return torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-5, equal_nan=True)


def examine(name):
    """Return the shape of the last feature map and how much of it the embedding reads; raise if a check fails."""
    torch.manual_seed(0)
    model, size = build(name)
    images = torch.randn(2, *size)
    two = TwoHead(model, 16)
    with torch.no_grad():
        check_values(model, two, images)
        map_shape = shape(model.forward_features(images))
    check_training(model, two, images)
    return {"features": map_shape, "reads": two.embedding.in_features}


def table(rows):
    """Print docs/two_head_coverage.md from the lines so far."""
    missing = set(list_modules()) - {row["module"] for row in rows}
    print("# Two heads on every module of timm\n")
    print(f"`python tests/benchmarks/two_head_coverage.py table`; timm {timm.__version__}, torch {torch.__version__}.")
    print(f"Modules of timm without a model here: {', '.join(sorted(missing)) or 'none'}.\n")
    print("| module | model | last feature map | embedding reads |")
    print("|---|---|---|---|")
    for row in sorted(rows, key=itemgetter("module", "name")):
        print(f"| {row['module']} | {row['name']} | {row.get('error') or row['features']} | {row.get('reads', '')} |")
    print(f"\n{sum('error' not in row for row in rows)} of {len(rows)} pass.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--rows", type=Path, default=ROWS / "two_head.jsonl")
    parser.add_argument("--models", default="smallest")
    add_limits(parser)
    arguments = parser.parse_args()
    lines = Lines(arguments.rows)
    if arguments.command == "table":
        table(lines.read().values())
    else:
        known = lines.read()
        names = [name for name in chosen(arguments.models) if name not in known]
        heads = [{"name": name, "module": module_of(name)} for name in names]
        go_on(lines, [(head, partial(examine, head["name"])) for head in heads], arguments)


if __name__ == "__main__":
    main()
