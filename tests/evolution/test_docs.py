"""The code of the documentation page runs as it stands."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "knowledge_evolution.md"


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # PML 2.9 prints the loss with torch 2.14
def test_the_blocks_of_the_page_run_in_order(tmp_path, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) > 5
    names = {"folder": tmp_path}
    for block in blocks:
        exec(block, names)  # noqa: S102 (the page is ours)
    assert "fc.weight" in capsys.readouterr().out
    assert names["generation"].index == 1
