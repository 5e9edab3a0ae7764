"""Latency, memory, operations and parameters of slim networks against the dense ones they were cut from.

    python tests/benchmarks/slim_latency.py --out latency.jsonl [--quick]

Each measurement is appended to the file, and what stands there is not taken again: an interrupted run goes on. In the
end the table of docs/benchmarks.md is printed. Inference in float32; dense and slim in turn, within one run.
"""

import argparse
import json
import statistics
from pathlib import Path

import timm
import torch
from interleaved import interleaved, machine, ratio
from svmax import peak_memory

from pml_extensions.evolution import KELS

MODELS = (
    "resnet18", "resnet50", "efficientnet_b0", "convnext_tiny", "vit_small_patch16_224", "swin_tiny_patch4_window7_224",
)  # fmt: skip
BATCHES = {1: 15, 32: 3}  # size: rounds
MODES = {"eager": lambda model: model, "compiled": torch.compile}
HEAD = """| model | M weights | slim / dense | G operations | slim / dense | batch | eager, ms | slim / dense \
| compiled, ms | slim / dense | memory, MiB | slim / dense |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def pair(name, rate):
    """Return the split, the dense and the slim model."""
    torch.manual_seed(0)
    dense, split = timm.create_model(name).eval(), KELS(rate)
    return split, dense, split.slim(dense).eval()


def run(model, images):
    def call():
        with torch.inference_mode():
            return model(images)

    return call


def latency(models, batch, mode, rounds):
    """Return the median milliseconds of the dense model, and the median ratio of slim to dense."""
    torch.compiler.reset()
    images = torch.randn(batch, 3, 224, 224)
    rivals = {name: run(MODES[mode](model), images) for name, model in models.items()}
    samples = interleaved(rivals, rounds=rounds, warmup=1 if batch > 1 else 3)
    return {"ms": 1e3 * statistics.median(samples["dense"]), "ratio": ratio(samples, "slim", "dense")}


def memory(models, batch):
    """Return the MiB of the dense model's weights and of the most that lives at once besides, and slim's part of it."""
    images = torch.randn(batch, 3, 224, 224)
    total = {
        name: 4 * sum(p.numel() for p in model.parameters()) + peak_memory(run(model, images))
        for name, model in models.items()
    }
    return {"mib": total["dense"] / 2**20, "ratio": total["slim"] / total["dense"]}


def size(split, dense):
    found = split.compare(dense)
    return {
        "parameters": found.dense_parameters,
        "parameter_ratio": found.slim_parameters / found.dense_parameters,
        "operations": found.dense_operations,
        "operation_ratio": found.slim_operations / found.dense_operations,
    }


def measure(name, rate, batches, done):
    """Yield (key, figures) of one model for what is not done yet."""
    split, dense, slim = pair(name, rate)
    models = {"dense": dense, "slim": slim}
    tasks = {"size": lambda: size(split, dense)}
    for batch in batches:
        tasks[f"memory {batch}"] = lambda batch=batch: memory(models, batch)
        for mode in MODES:
            tasks[f"{mode} {batch}"] = lambda batch=batch, mode=mode: latency(models, batch, mode, BATCHES[batch])
    for what, task in tasks.items():
        if (name, what) not in done:
            yield what, task()


def table(found, names, batches):
    print(f"{machine()}\n")
    print(HEAD)
    for name in names:
        sizes = found[name, "size"]
        for batch in batches:
            eager, compiled, held = (found[name, f"{what} {batch}"] for what in ("eager", "compiled", "memory"))
            cells = [
                name,
                f"{sizes['parameters'] / 1e6:.1f}",
                f"{sizes['parameter_ratio']:.2f}",
                f"{sizes['operations'] / 1e9:.1f}",
                f"{sizes['operation_ratio']:.2f}",
                batch,
                f"{eager['ms']:.0f}",
                f"{eager['ratio']:.2f}",
                f"{compiled['ms']:.0f}",
                f"{compiled['ratio']:.2f}",
                f"{held['mib']:.0f}",
                f"{held['ratio']:.2f}",
            ]
            print(f"| {' | '.join(map(str, cells))} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--quick", action="store_true", help="batch 1 of the first model alone")
    arguments = parser.parse_args()
    names, batches = (MODELS[:1], [1]) if arguments.quick else (MODELS, list(BATCHES))
    found = {}
    if arguments.out.exists():
        rows = map(json.loads, arguments.out.read_text().splitlines())
        found = {(row.pop("model"), row.pop("what")): row for row in rows}
    for name in names:
        for what, figures in measure(name, arguments.rate, batches, found):
            found[name, what] = figures
            with arguments.out.open("a") as file:
                print(json.dumps({"model": name, "what": what, **figures}), file=file)
    table(found, names, batches)


if __name__ == "__main__":
    main()
