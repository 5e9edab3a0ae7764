"""What the tests of Knowledge Evolution share."""

import pytest
import timm
import torch
from torch import nn


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5, bias=False))


@pytest.fixture
def timm_net():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5)
