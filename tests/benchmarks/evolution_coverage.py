"""Split every architecture of timm by WELS and reset it, and tabulate what happened; resumable, memory-limited.

    python tests/benchmarks/evolution_coverage.py run --seconds 600   # again and again, until nothing is left
    python tests/benchmarks/evolution_coverage.py table > docs/coverage_wels.md

Each name is a line of --rows (tests/benchmarks/rows/wels.jsonl). Every model is constructed on the meta device, where
its weights are told from its other parameters. Up to --max-parameters it is then given memory (zeros; bfloat16 beyond
400 million parameters, 8-bit floats beyond 4 billion), split by WELS(0.5) and reset, and every element is checked: the
fit-hypothesis and whatever is not split are still zero, the reset-hypothesis is not. The largest take three bytes a
parameter; MALLOC_MMAP_THRESHOLD_=1000000 keeps glibc from taking more.
"""

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import timm
import torch
from resumable import ROWS, Lines, add_limits, go_on
from timm_names import chosen, module_of
from torch import nn

from pml_extensions.evolution import WELS, KnowledgeEvolution, find_weights

RATE = 0.5
DTYPES = {4_000_000_000: torch.float8_e5m2, 400_000_000: torch.bfloat16, 0: torch.float32}  # from so many parameters on
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes; 8-bit floats cannot be compared


def meta_model(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def survey(name: str) -> dict:
    """Construct a model without memory, and tell its weights from its other parameters of two and more axes."""
    model = meta_model(name)
    weights, reasons = find_weights(model)
    parameters, layers = dict(model.named_parameters()), dict(model.named_modules())

    def kind(parameter: str) -> str:
        layer, _, attribute = parameter.rpartition(".")
        return f"{type(layers[layer]).__name__}.{attribute}"

    return {
        "name": name,
        "module": module_of(name),
        "parameters": sum(parameter.numel() for parameter in parameters.values()),
        "weights": len(weights),
        "weight_elements": sum(weight.numel() for weight in weights.values()),
        "weight_kinds": Counter(map(kind, weights)),
        "other_kinds": Counter(f"{kind(p)}: {reason}" for p, reason in reasons.items() if parameters[p].ndim > 1),
    }


def reset(name: str, parameters: int, weights: int) -> dict:
    """Split and reset a model of zeros; return the share of the fit-hypothesis, or raise if an element is wrong."""
    dtype = next(dtype for least, dtype in DTYPES.items() if parameters >= least)
    model = meta_model(name).to(dtype).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            bits(tensor).zero_()
    start = time.perf_counter()
    ke = KnowledgeEvolution(model, WELS(RATE))
    split = time.perf_counter()
    ke.reset()
    done = time.perf_counter()
    check(len(ke.masks) == weights, f"{len(ke.masks)} parameters split, expected {weights}")
    kept = total = 0
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        written = int(bits(tensor).count_nonzero())
        if key not in ke.masks:
            check(written == 0, f"{key} is not split but was written")
            continue
        fit = int(ke.masks[key].sum())
        check(int((bits(tensor) != 0).logical_and_(ke.masks[key]).sum()) == 0, f"{key}: fit-hypothesis was written")
        check(written >= 0.999 * (tensor.numel() - fit), f"{key}: reset-hypothesis was not drawn")  # a draw may be zero
        kept, total = kept + fit, total + tensor.numel()
    check(
        abs(kept - RATE * total) < 5 * (total * RATE * (1 - RATE)) ** 0.5, f"share of the fit-hypothesis {kept / total}"
    )
    return {"fit": kept / total, "split_seconds": split - start, "reset_seconds": done - split}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(INTEGERS[tensor.element_size()])


def check(condition: bool, what: str) -> None:
    if not condition:
        raise RuntimeError(what)


def step(name: str, known: dict, limit: int) -> dict:
    """Return what is known of a name after one more step."""
    row = known or survey(name)
    return row | reset(name, row["parameters"], row["weights"]) if row["parameters"] <= limit else row


def left(lines: Lines, limit: int) -> Iterator[tuple[dict, Callable[[], dict]]]:
    """Yield the names that are not done, small ones first; one whose last try failed is tried again."""
    known = {name: {k: v for k, v in row.items() if k != "error"} for name, row in lines.read().items()}
    for name in chosen("all"):
        row = known.get(name, {})
        if "parameters" not in row or (row["parameters"] <= limit and "fit" not in row):
            yield {"name": name}, partial(step, name, row, limit)


def table(known: dict[str, dict]) -> str:
    """Return the page: totals, one row a module, what else was split or left alone, and every exception."""
    rows = [known[name] for name in timm.list_models() if name in known]
    failed = [row for row in rows if "error" in row]
    good = [row for row in rows if "error" not in row]
    real = [row for row in good if "fit" in row]
    largest = max((row["parameters"] for row in real), default=0)
    lines = [
        "# Coverage: WELS on every architecture of timm",
        "",
        "Printed by `python tests/benchmarks/evolution_coverage.py table`, after runs of that script, which says at",
        f"its beginning what is checked. timm {timm.__version__}, torch {torch.__version__}, CPU.",
        "",
        f"- timm has {len(timm.list_models())} names; {len(good)} were constructed and surveyed, {len(failed)} failed.",
        f"- {len(real)} (up to {largest / 1e6:,.0f} M parameters) were split, reset and checked element by element.",
        f"- {len(good) - len(real)} more were constructed and surveyed on the meta device alone.",
        "",
        "## By module",
        "",
        "| module | names | largest (M parameters) | weights (% of parameters) | split and reset | fit-hypothesis |",
        "|---|---|---|---|---|---|",
    ]
    by_module = defaultdict(list)
    for row in good:
        by_module[row["module"]].append(row)
    for module, group in sorted(by_module.items()):
        shares = [100 * row["weight_elements"] / row["parameters"] for row in group]
        fits = [row["fit"] for row in group if "fit" in row]
        fit = f"{min(fits):.4f} to {max(fits):.4f}" if fits else ""
        lines.append(
            f"| {module} | {len(group)} | {max(row['parameters'] for row in group) / 1e6:,.1f} "
            f"| {min(shares):.1f} to {max(shares):.1f} | {len(fits)} | {fit} |"
        )
    lines += ["", "## What counts as a weight", "", *kinds(good, "weight_kinds")]
    lines += ["", "## What does not, of the parameters with two and more axes", "", *kinds(good, "other_kinds")]
    lines += ["", "## Failures", "", *([f"- {row['name']}: {row['error']}" for row in failed] or ["None."])]
    return "\n".join(lines) + "\n"


def kinds(rows: list[dict], column: str) -> list[str]:
    models, parameters = Counter(), Counter()
    for row in rows:
        models.update(row[column].keys())
        parameters.update(row[column])
    return [
        "| layer and attribute | names | parameters |",
        "|---|---|---|",
        *(f"| {kind} | {models[kind]} | {parameters[kind]} |" for kind in sorted(models)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--rows", type=Path, default=ROWS / "wels.jsonl")
    parser.add_argument("--max-parameters", type=float, default=100e6)
    add_limits(parser)
    arguments = parser.parse_args()
    lines = Lines(arguments.rows)
    if arguments.command == "table":
        print(table(lines.read()), end="")
    elif go_on(lines, left(lines, int(arguments.max_parameters)), arguments):
        print("nothing is left")


if __name__ == "__main__":
    main()
