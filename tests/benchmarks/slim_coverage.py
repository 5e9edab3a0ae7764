"""Cut slim networks of timm's architectures, check them, and tabulate what holds; resumable, memory-limited.

    export PYTHONPATH=tests/evolution                                 # where the check of exactness is
    python tests/benchmarks/slim_coverage.py run                      # the whole plan, the most telling first (hours)
    python tests/benchmarks/slim_coverage.py run --models resnet18,vgg11 --rates 0.3 0.9 --checks exact
    python tests/benchmarks/slim_coverage.py run --models smallest --size default --checks tells fuses saves
    python tests/benchmarks/slim_coverage.py table > docs/coverage.md

Every model runs in a process of its own, forked from one that has imported torch and timm; its lines go to --rows
(tests/benchmarks/rows/kels.jsonl), and what stands there is not run again: a line gets the checks that it lacks.
``--models`` is ``smallest`` or ``middle`` (one model of each of timm's modules), ``all``, or names. ``--size small`` is
the first of some small sizes that the dense model takes, and the default size where it takes none. Without checks, or
for what a model tells alone, the weights are left uninitialised, for no values are needed: the slim network is cut and
run once for its shapes, as always before it is handed out. From 4 G parameters on they are in bfloat16.
"""

import argparse
import contextlib
import copy
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import timm
import torch
from resumable import ROWS, Lines, add_limits, go_on
from slim_checks import amplification, exactness, new_layers_in
from timm.utils import reparameterize_model
from timm_names import LISTED, chosen, module_of
from told import stale
from torch.overrides import TorchFunctionMode

from pml_extensions._declared_input import stand_in_inputs
from pml_extensions._slim_files import mark
from pml_extensions._slimming import cut, shapes_of_output, stand_in, with_unread_integers
from pml_extensions._slimming.tracing.later_uses import can_be_fused
from pml_extensions.evolution import KELS, load_slim, save_slim
from pml_extensions.models import TwoHead

LARGE = 4_000_000_000
SMALL = (64, 96, 128, 160, 192, 224, 256)
CHECKS = ("runs", "trains", "exports", "exact", "tells", "fuses", "saves")
VALUES = CHECKS[:4]
FILLS = {"normal_", "uniform_", "erfinv_", "trunc_normal_", "fill_", "zero_"}
PLAN = (  # models, rates, size, checks
    ("smallest", (0.5,), "default", ("tells", "fuses", "saves")),
    ("smallest", (0.5,), "small", VALUES),
    ("smallest", (0.3,), "small", VALUES),
    ("smallest", (0.75, 0.25), "small", VALUES),
    ("all", (0.5,), "default", ()),
    ("middle", (0.5,), "small", VALUES),
    ("middle", (0.3, 0.75, 0.25), "small", ("runs",)),
    ("smallest", (0.3, 0.75, 0.25), "default", ()),
    ("middle", (0.3, 0.75, 0.25), "default", ()),
    ("middle", (0.3, 0.75, 0.25), "small", VALUES),
    ("smallest", (0.5, 0.3, 0.75, 0.25), "default", VALUES),
    ("middle", (0.5, 0.3, 0.75, 0.25), "default", VALUES),
)
HEAD = """# Coverage of timm by KELS

Written by `tests/benchmarks/slim_coverage.py` from the rows in `tests/benchmarks/rows/kels.jsonl`.
Smallest and middle: one model of each of timm's modules, by number of parameters; all: every name of
`timm.list_models()`, as far as run. Small: the
first of 64, 96, 128, 160, 192, 224 and 256 pixels that the dense model takes; default: the size that timm names, at
which a model that takes no smaller input is checked. A row counts models; "k of n" where a check was made for n of
them only, empty where for none. No slim network is handed out, or counted, that has not run once for its shapes.
Runs, trains, exports: with values. Exact: slim equals the dense network with its reset-hypothesis set to zero, norms
over channels taken over the kept ones, relative error below 1e-9 in float64. Tells right: `num_features`,
`head_hidden_size`, `embed_dim`, `feature_info` and the classifier, of the slim model and of a slim `TwoHead` of the
dense one, agree with what is returned wherever the dense model's do. Fuses: of models with branches that
`timm.utils.reparameterize_model` fuses, the fused slim network equals the slim one, relative error below 1e-5. Saves:
what `load_slim` makes of a file of `save_slim` answers alike, to the bit. These three were checked at rate 0.5 for the
smallest models at their default size; where a row says "k of n", the n are those that were run. They are the latest,
with the cut of all names at 0.5 and the smallest models' row at 0.3 on small inputs. All others were measured before
what a slim model tells and fuses by was narrowed too, and before every step of its pass was compared with the dense
one's: the first changes no tensor of it, the second can only refuse one.

| models | rate | input | number | same class | every width cut | runs | trains | exports | exact | tells right | fuses | saves | slim / dense |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""  # noqa: E501  # a table


def small_input(model):
    """Return the first of some small input sizes that the dense model takes, or None if none below its default."""
    default = stand_in_inputs(model, None)[0]
    for side in SMALL:
        if side < default.shape[-1]:
            smaller = stand_in((2, default.shape[1], side, side), default.dtype)
            with contextlib.suppress(Exception):
                shapes_of_output(model, (smaller,))
                return smaller
    return None


class Uninitialised(TorchFunctionMode):
    """Leave out what fills weights: memory that nobody writes is not taken."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.numel() > 10**5:
                return tensor
        return func(*args, **kwargs)


def examine(head, checks, params):
    """Return what holds for the slim network of one model at one rate and input size."""
    torch.manual_seed(0)
    if params >= LARGE:
        torch.set_default_dtype(torch.bfloat16)
    values = set(checks) - {"tells"}
    with contextlib.nullcontext() if values else torch.device("meta") if params >= LARGE else Uninitialised():
        model = timm.create_model(head["name"]).eval()
    example = stand_in_inputs(model, None)[0] if head["size"] == "default" else small_input(model)
    if example is None:
        return {"skipped": "no smaller input"}
    row = {"side": example.shape[-1]}
    split = KELS(head["rate"], example_input=example)
    start = time.process_time()
    widths = split.widths(model)
    row["seconds"] = round(time.process_time() - start, 2)
    row["whole"] = sorted({(w.size, str(w.reason), w.where) for w in widths.whole})
    slim = cut(model, with_unread_integers(model, widths))
    mark(slim, head["rate"], 1, (example,))
    row["same_class"] = type(slim) is type(model)
    dense_params, slim_params = (sum(p.numel() for p in m.parameters()) for m in (model, slim))
    row |= {"params": dense_params, "ratio": round(slim_params / dense_params, 4)}
    batch = torch.randn(example.shape) if checks else example
    for check in checks:
        row |= outcome(check, model, slim, split, batch)
    return row | {"gibibytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)}


def outcome(check, *what):
    try:
        return {check: globals()[f"check_{check}"](*what)}
    except Exception as error:  # noqa: BLE001  # a line of the table
        first = next(iter(str(error).splitlines()), "")[:200]
        return {check: False, f"{check}_error": f"{type(error).__name__}: {first}"}


def check_runs(model, slim, split, batch):
    with torch.no_grad():
        out = slim(batch)
    return [t.shape for t in _tensors(out)] == shapes_of_output(model, (batch,))


def _tensors(out):
    return list(out) if isinstance(out, (tuple, list)) else [out]


def check_trains(model, slim, split, batch):
    slim.train()
    loss = sum(t.float().square().mean() for t in _tensors(slim(batch)))
    loss.backward()
    used = [n for n, p in slim.named_parameters() if p.requires_grad and p.grad is not None]
    slim.zero_grad()
    slim.eval()
    return len(used) > 0


def check_exports(model, slim, split, batch):
    exported = torch.export.export(slim, (batch,), strict=False).module()
    with torch.no_grad():
        return bool(torch.allclose(_tensors(exported(batch))[0], _tensors(slim(batch))[0], atol=1e-4, rtol=1e-4))


def check_tells(model, slim, split, batch):
    wrong = stale(model, slim, (batch,))
    with contextlib.suppress(TypeError, ValueError):  # one without a head to stand beside
        two = TwoHead(model, 8, input_size=tuple(batch.shape[1:]))
        wrong |= stale(model, split.slim(two).model, (batch,))
    if wrong:
        raise ValueError(f"told and returned: {wrong}")
    return True


def check_fuses(model, slim, split, batch):
    if not can_be_fused(model):
        return None
    slim = copy.deepcopy(slim).double()
    for name, buffer in slim.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    with torch.no_grad():
        expected = slim(batch.double())
        with new_layers_in(torch.float64):
            fused = reparameterize_model(slim, inplace=True)
        found = fused(batch.double())
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


def check_saves(model, slim, split, batch):
    with tempfile.TemporaryDirectory() as folder:
        save_slim(slim, Path(folder) / "slim")
        again = load_slim(Path(folder) / "slim")
    with torch.no_grad():
        return all(map(torch.equal, _tensors(again(batch)), _tensors(slim(batch))))


def check_exact(model, slim, split, batch):
    kind, error = exactness(model, split)
    return [kind, error] if error < 1e-9 else [kind, error, amplification(model, split)]


def left(arguments, lines):
    """Yield what is not done yet: what the arguments name, or the whole plan, the most telling first."""
    params = {row["name"]: row["params"] for row in LISTED.read().values()}
    given = (arguments.models, arguments.rates, arguments.size, arguments.checks)
    for models, rates, size, checks in [given] if arguments.models else PLAN:
        for name in chosen(models):
            for rate in rates:
                yield from left_of_one(lines, {"name": name, "rate": rate, "size": size}, checks, params.get(name, 0))


def left_of_one(lines, head, checks, params) -> Iterator:
    """Yield one model, if it is not done, and that at its default size if it turns out to take no smaller input."""
    row = lines.read().get(lines.key(head), {})
    left = [check for check in checks if check not in row]
    if not row or (left and "error" not in row and "skipped" not in row):
        yield {**head, "module": module_of(head["name"]), **row}, partial(examine, head, left, params)
    if "skipped" in lines.read().get(lines.key(head), {}):
        yield from left_of_one(lines, {**head, "size": "default"}, checks, params)


def holds(row, check):
    """Return whether a check held; for exactness, an error below 1e-9."""
    value = row.get(check)
    return value[1] < 1e-9 if isinstance(value, list) else bool(value)


def table(lines):
    """Print docs/coverage.md from the lines so far."""
    rows = [row for row in lines.read().values() if "skipped" not in row]
    names = chosen("all")
    print(HEAD)
    for which in ("smallest", "middle", "all"):
        among = set(chosen(which))
        for rate, size in sorted({(row["rate"], row["size"]) for row in rows}):
            group = [r for r in rows if (r["rate"], r["size"]) == (rate, size) and r["name"] in among]
            if group and (which != "all" or len(group) > len(among) / 5):
                print(line(which, rate, size, group))
    ran = {row["name"] for row in rows if row["rate"] == 0.5 and "error" not in row}
    print(f"\nOf the {len(names):,} names, {len(ran):,} were cut and run at rate 0.5; what was not is listed below.")
    seconds = sorted(row["seconds"] for row in rows if "seconds" in row)
    median, most = seconds[len(seconds) // 2], seconds[len(seconds) * 95 // 100]
    print(f"The analysis took {median:.1f} s of one core in the median, {most:.1f} s at the 95th percentile and")
    print(f"{seconds[-1]:.1f} s at most.\n\n## What does not hold\n")
    print("| what | module | models | rates | input |")
    print("|---|---|---|---|---|")
    found = {}
    for row in rows:
        for what in shortcomings(row):
            found.setdefault((what.replace("|", "/"), row["module"], row["size"]), []).append(
                (row["name"], row["rate"])
            )
    for (what, module, size), where in found.items():
        names, rates = (", ".join(dict.fromkeys(map(str, them))) for them in zip(*where, strict=True))
        print(f"| {what} | {module} | {names} | {rates} | {size} |")
    short = {row["name"]: check for row in rows for check in ("error", *CHECKS) if out_of_memory(row, check)}
    if short:
        print("\n## What was not checked for want of memory\n")
        print("Each had 11 to 22 GiB: " + "; ".join(f"{name} ({what})" for name, what in short.items()) + ".")


def line(which, rate, size, group):
    """Return one line of the table."""
    counts = []
    for check in CHECKS:
        tried = [row for row in group if row.get(check) is not None and not out_of_memory(row, check)]
        held = sum(holds(row, check) for row in tried)
        counts.append("" if not tried else held if len(tried) == len(group) else f"{held} of {len(tried)}")
    same = sum(row.get("same_class", False) for row in group)
    full = sum(row.get("whole") == [] for row in group)
    ratios = [row["ratio"] for row in group if "ratio" in row]
    cells = [which, rate, size, len(group), same, full, *counts, f"{sum(ratios) / len(ratios):.3f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def out_of_memory(row, check):
    """Return whether a check of a row, or its whole examination, came to no result for want of memory."""
    said = str(row.get("error" if check == "error" else f"{check}_error", ""))
    return "allocate memory" in said or "MemoryError" in said


def shortcomings(row):
    """Return what of a row does not hold, in words."""
    what = [row["error"]] if "error" in row and not out_of_memory(row, "error") else []
    what += [f"a width stays whole at {w}: {r}" for r, w in dict.fromkeys((r, w) for _, r, w in row.get("whole", []))]
    for check in CHECKS:
        if row.get(check) is not None and not holds(row, check) and not out_of_memory(row, check):
            what.append(f"not {check}: {row.get(f'{check}_error') or other_result(row[check])}")
    return what


def other_result(found):
    """Return in words what a check found, where it ran through but does not hold."""
    if not isinstance(found, list):
        return "another result"
    kind, error, rounding = found
    return f"{error:.0e} ({kind}); moving the input by 1e-14 moves the dense network's output by {rounding:.0e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--rows", type=Path, default=ROWS / "kels.jsonl")
    parser.add_argument("--models", help="by default the whole plan, whatever the next three say")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5])
    parser.add_argument("--size", choices=["small", "default"], default="small")
    parser.add_argument("--checks", nargs="*", choices=CHECKS, default=list(CHECKS))
    add_limits(parser)
    arguments = parser.parse_args()
    lines = Lines(arguments.rows, itemgetter("name", "rate", "size"))
    if arguments.command == "run":
        go_on(lines, left(arguments, lines), arguments)
    else:
        table(lines)


if __name__ == "__main__":
    main()
