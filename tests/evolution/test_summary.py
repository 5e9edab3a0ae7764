"""The table of what a split does."""

import pytest
import timm
import torch
from torch import nn

from pml_extensions.evolution import WELS, KnowledgeEvolution, LaterLayers


def test_rows_and_totals(net):
    ke = KnowledgeEvolution(net, WELS(0.5))
    summary = ke.summary()
    assert [row.name for row in summary.rows] == [name for name, _ in net.named_parameters()]
    for row in summary.rows:
        parameter = net.get_parameter(row.name)
        assert row.shape == tuple(parameter.shape)
        assert row.size == parameter.numel()
        if row.name in ke.masks:
            assert (row.fit, row.reason) == (int(ke.masks[row.name].sum()), "")
        else:
            assert (row.reset, row.reason) == (0, "bias, norm or scale")
    assert [row.name for row in summary.split] == ["0.weight", "4.weight"]
    assert summary.total.size == sum(parameter.numel() for parameter in net.parameters())
    assert summary.total.reset == sum(int((~mask).sum()) for mask in ke.masks.values())


def test_prints_as_a_table():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 50), nn.LayerNorm(50))
    lines = str(KnowledgeEvolution(model, LaterLayers("0")).summary()).splitlines()
    assert lines[0].split() == ["parameter", "shape", "fit", "reset", "not", "split"]
    assert lines[1].split() == ["0.weight", "50x40", "0", "2,000"]
    assert lines[2].split() == ["0.bias", "50", "50", "0", "bias,", "norm", "or", "scale"]
    assert lines[-1].split() == ["total", "150", "2,000"]
    assert len({line.index("bias,") for line in lines[2:4]}) == 1


def test_reasons_of_a_timm_model():
    rows = {row.name: row for row in KnowledgeEvolution(timm.create_model("test_vit"), WELS(0.5)).summary().rows}
    assert rows["cls_token"].reason == rows["pos_embed"].reason == "table, token or scale: not multiplied with features"


def test_what_a_split_leaves_out_and_its_own_reasons(net):
    def second_half(model):
        return {"4.weight": torch.zeros(5, 8, dtype=torch.bool)}

    rows = {row.name: row for row in KnowledgeEvolution(net, second_half).summary().rows}
    assert rows["0.weight"].reason == "left out by the split"

    class Explained:
        def __call__(self, model):
            return second_half(model)

        def reasons(self, model):
            return {"0.weight": "the first layer stays whole"}

    rows = {row.name: row for row in KnowledgeEvolution(net, Explained()).summary().rows}
    assert rows["0.weight"].reason == "the first layer stays whole"


def test_the_splits_example_input_is_used():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix, self.table = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))

        def forward(self, x):
            return x @ self.matrix + self.table

    with pytest.raises(ValueError, match="it found no weight to split"):
        KnowledgeEvolution(Bare(), WELS(0.5))
    rows = KnowledgeEvolution(Bare(), WELS(0.5, example_input=torch.ones(2, 2))).summary().rows
    assert [row.reason for row in rows] == ["", "table, token or scale: not multiplied with features"]
