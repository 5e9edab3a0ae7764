"""Slim models of every module of timm in files: what comes back answers alike and tells alike."""

import pytest
import timm
import torch
from timm_modules import SMALLEST
from told import told_and_returned

from pml_extensions._slimming import tensors_in
from pml_extensions.evolution import KELS, load_slim, save_slim

QUICK = {"test_efficientnet", "test_convnext", "test_nfnet"}


@pytest.mark.timm_model("name")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in SMALLEST])
def test_what_is_saved_comes_back(name, tmp_path):
    torch.manual_seed(0)
    slim = KELS(0.5).slim(timm.create_model(name)).eval()
    save_slim(slim, tmp_path / "slim")
    again = load_slim(tmp_path / "slim")
    images = torch.randn(1, *slim.slim_recipe["input_shapes"][0][1:])
    with torch.no_grad():
        for ours, theirs in zip(tensors_in(again(images)), tensors_in(slim(images)), strict=True):
            assert torch.equal(ours, theirs)
    assert told_and_returned(again) == told_and_returned(slim)
