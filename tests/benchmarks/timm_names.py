"""The names of timm: what they are of, how large they are, and the choice of one a module.

python tests/benchmarks/timm_names.py     # go on with tests/benchmarks/rows/models.jsonl, one line a name
"""

import timm
import torch
from resumable import ROWS, Lines
from timm.models import model_entrypoint

LISTED = Lines(ROWS / "models.jsonl")


def module_of(name: str) -> str:
    """Return the module of timm that a name is defined in."""
    return model_entrypoint(name).__module__.rpartition(".")[2]


def chosen(which: str) -> list[str]:
    """Return ``smallest`` or ``middle`` (one name a module, by number of parameters), ``all``, or the names given."""
    if which not in {"smallest", "middle", "all"}:
        return which.split(",")
    rows = sorted(LISTED.read().values(), key=lambda row: row["params"])
    if which == "all":
        return [row["name"] for row in rows]
    modules: dict[str, list[str]] = {}
    for row in rows:
        modules.setdefault(row["module"], []).append(row["name"])
    return [names[0 if which == "smallest" else len(names) // 2] for names in modules.values()]


def main() -> None:
    known = LISTED.read()
    for name in timm.list_models():
        if name not in known:
            with torch.device("meta"):
                params = sum(p.numel() for p in timm.create_model(name).parameters())
            LISTED.append({"name": name, "module": module_of(name), "params": params})


if __name__ == "__main__":
    main()
