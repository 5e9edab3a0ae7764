"""The example runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "retrieval"])
def test_quick(task, tmp_path):
    figure = tmp_path / "figure.png"
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / "knowledge_evolution.py", "--quick", "--task", task, "--figure", figure],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    rows = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()[1:]]
    assert {name: len(scores) for name, *scores in rows} == {
        "one long training": 1,
        "restarts, no reset": 5,
        "WELS 0.5": 5,
        "later layers": 5,
        "KELS 0.5": 5,
        "KELS 0.5, slim, as published": 5,
        "KELS 0.5, slim, statistics anew": 5,
        "KELS 0.5, slim, then fine-tuned": 1,
        "slim size, alone": 1,
    }
    assert figure.stat().st_size > 1000
