"""The example runs."""

import os
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
    assert result.stdout.count("±") == 1 + 1 + 3 * 5
    assert figure.stat().st_size > 1000
