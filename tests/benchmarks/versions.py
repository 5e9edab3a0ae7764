"""Run the tests with the lowest versions that pyproject.toml names and with the newest, and print the table.

Run from the root: python tests/benchmarks/versions.py FOLDER [--tests tests/regularizers ...] [--pml VERSION]. The last
adds a column: the newest versions, but for pytorch-metric-learning. FOLDER keeps the virtual environments and one line
a finished part in results.txt, so that a second run goes on where the first ended.
Needs Python 3.11 or newer (tomllib), and one for which the lowest torch was built: 3.11 or 3.12 for torch 2.4.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[2]
PML = "pytorch-metric-learning"
SHOWN = ("torch", "timm", "pytorch-metric-learning", "captum", "numpy", "tqdm", "safetensors")


def requirements(which: str) -> list[str]:
    """Return the dependencies as they stand, pinned to the lowest version that is allowed, or with a given host."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed, extras = project["dependencies"], project["optional-dependencies"]
    if which == "lowest":
        needed = [re.sub(r">=([^,]+).*", r"==\1", name) for name in needed]
    if which.startswith(PML):
        needed = [which if name.startswith(PML) else name for name in needed]
    others = [name for name in (*extras["test"], *extras["loops"]) if not name.startswith("pml_extensions[")]
    return [*needed, *others, "torchvision"]


def environment(which: str, folder: Path) -> Path:
    """Return the interpreter of a virtual environment with those versions, made if it is not there."""
    python = folder / which / "bin" / "python"
    if not (folder / which / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / which)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements(which)], check=True)
        (folder / which / "made").touch()
    return python


def versions(python: Path) -> str:
    code = f"from importlib.metadata import version\nprint(*(n + ' ' + version(n) for n in {SHOWN}), sep=', ')"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def outcome(python: Path, part: str) -> str:
    """Return pytest's last line, such as '161 passed'."""
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [str(python), "-m", "pytest", part, "-q", "-p", "no:cacheprovider", "--tb=line"]
    done = subprocess.run(run, cwd=ROOT, env=paths, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing"]
    return re.sub(r" in [\d.]+s.*", "", lines[-1]).strip("= ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folders = [f"tests/{path.name}" for path in sorted((ROOT / "tests").iterdir()) if list(path.rglob("test_*.py"))]
    parser.add_argument("--tests", nargs="*", default=[*folders, "tests/test_docs.py", "pml_extensions"])
    parser.add_argument("--only", choices=["lowest", "newest"])
    parser.add_argument("--pml", metavar="VERSION", help="a column with this version of pytorch-metric-learning")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    results = args.folder / "results.txt"
    results.touch()
    which = [args.only] if args.only else ["lowest", "newest"]
    which += [f"{PML}=={args.pml}"] if args.pml else []
    pythons = {name: environment(name, args.folder) for name in which}
    found = dict(line.split("\t") for line in results.read_text().splitlines())
    for name, python in pythons.items():
        for part in args.tests:
            if f"{name} {part}" not in found:
                found[f"{name} {part}"] = outcome(python, part)
                with results.open("a") as file:
                    file.write(f"{name} {part}\t{found[f'{name} {part}']}\n")
    for name, python in pythons.items():
        print(f"{name}: {versions(python)}")
    print("\n| tests | " + " | ".join(pythons) + " |\n" + "|---" * (len(pythons) + 1) + "|")
    for part in args.tests:
        print(f"| {part} | " + " | ".join(found[f"{name} {part}"] for name in pythons) + " |")


if __name__ == "__main__":
    main()
