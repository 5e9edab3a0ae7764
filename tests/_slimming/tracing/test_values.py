"""Integer and boolean inputs: masks, lengths and identifiers are used with the values that they were given."""

import pytest
import torch
from torch import nn

from pml_extensions.evolution import KELS, TracingError, find_weights

X, MASK, LENGTHS = torch.randn(2, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool(), torch.tensor([3, 5])


class Masked(nn.Module):
    """Two layers, and between them what a second input decides on."""

    def __init__(self, use):
        super().__init__()
        self.first, self.last, self.use = nn.Linear(4, 16), nn.Linear(16, 2), use

    def forward(self, x, given):
        return self.last(self.use(self.first(x), given))


def written(hidden, mask):
    hidden = hidden.clone()
    hidden[mask] = 0
    hidden[~mask] += 1
    return hidden


def changed(hidden, mask):
    mask.logical_not_()  # the input itself
    return hidden[~mask]


USES = {
    "all": (lambda h, mask: h if mask.all() else h * mask[..., None], MASK),
    "index": (lambda h, mask: h[mask], MASK),
    "integers for a mask": (lambda h, mask: h[mask.bool(), :], MASK.long()),
    "written": (written, MASK),
    "changed": (changed, MASK),
    "masked_select": (lambda h, mask: torch.masked_select(h, mask[..., None]).view(-1, h.shape[-1]), MASK),
    "nonzero": (lambda h, mask: h[mask.nonzero(as_tuple=True)], MASK),
    "where": (lambda h, mask: h[torch.where(mask)], MASK),
    "slices": (lambda h, lengths: torch.stack([h[i, : int(n)].mean(0) for i, n in enumerate(lengths)]), LENGTHS),
    "list": (lambda h, lengths: torch.stack([h[i, :n].mean(0) for i, n in enumerate(lengths.tolist())]), LENGTHS),
    "split": (lambda h, lengths: torch.stack([p.mean(0) for p in h[0].split(lengths.tolist())]), torch.tensor([2, 3])),
    "repeat": (lambda h, lengths: h.repeat_interleave(lengths, 0), LENGTHS),
    "last step": (lambda h, lengths: h[torch.arange(len(h)), lengths - 1], LENGTHS),
    "one of many": (lambda h, ids: h * nn.functional.one_hot(ids, int(ids.max()) + 1).sum(), LENGTHS),
    "unique": (lambda h, ids: h * len(ids.unique()), LENGTHS),
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_given_values_are_used(name):
    use, given = USES[name]
    model, split, before = Masked(use), KELS(0.5, example_input=(X, given)), given.clone()
    slim, masks = split.slim(model), split(model)
    assert torch.equal(given, before)
    assert slim.first.out_features == 8
    assert split.widths(model).whole == []
    with torch.no_grad():
        for key, mask in masks.items():
            model.get_parameter(key).mul_(mask)
    x = torch.randn_like(X)
    torch.testing.assert_close(slim(x, given.clone()), model(x, given.clone()))


def test_a_whole_mask_leaves_widths_whole_if_entries_are_picked_from_them():
    pick = torch.arange(16) % 2 == 0
    model = Masked(lambda h, mask: nn.functional.pad(h[..., mask], (0, 8)))
    (whole,) = KELS(0.5, example_input=(X, pick)).widths(model).whole
    assert str(whole.reason).startswith("it is indexed (test_values.py:")


UNKNOWN = {
    "a mask of activations": (lambda h, _: h[h[..., 0] > 0], MASK),
    "a condition on activations": (lambda h, _: h if h.sum() > 0 else -h, MASK),
    "a floating-point mask": (lambda h, mask: h if mask.bool().all() else -h, MASK.float()),
    "a list of activations": (lambda h, _: h * max(h.flatten().tolist()), MASK),
    "an array of activations": (lambda h, _: h * float(h.numpy().max()), MASK),
    "a mask of a mask and activations": (lambda h, mask: torch.masked_select(h, mask[..., None] & (h > 0)), MASK),
    "lengths of activations": (
        lambda h, _: nn.utils.rnn.pack_padded_sequence(h, (h[:, 0, 0] > 0).long() + 1, batch_first=True).data, MASK,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_depends_on_activations_is_refused_with_the_line(name):
    use, given = UNKNOWN[name]
    match = r"needs the values of .* at .*test_values.py:\d+: control flow that depends on data. Integer and boolean"
    with pytest.raises(TracingError, match=match):
        KELS(0.5, example_input=(X, given)).slim(Masked(use))


def test_weights_are_found_with_the_values_too():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(4, 4))

        def forward(self, x, mask):
            return x[mask] @ self.matrix

    assert find_weights(Bare(), (X, MASK)).weights.keys() == {"matrix"}


class Text(nn.Module):
    """torch's own encoder with padding."""

    def __init__(self, **settings):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.embedding, self.head = nn.Embedding(20, 32), nn.Linear(32, 3)
        self.encoder = nn.TransformerEncoder(layer, 2, **settings)

    def forward(self, tokens, padding):
        return self.head(self.encoder(self.embedding(tokens), src_key_padding_mask=padding)[:, 0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("nested", [True, False])
def test_torchs_encoder_with_padding(nested):
    model, tokens = Text(enable_nested_tensor=nested).eval(), torch.randint(20, (2, 6))
    padding = torch.arange(6) >= torch.tensor([[4], [6]])
    split = KELS(0.5, example_input=(tokens, padding))
    slim = split.slim(model)
    assert split.widths(model).whole == []
    assert slim.encoder.layers[1].linear1.weight.shape == (32, 16)
    with torch.no_grad():
        fused = slim(tokens, padding)  # on nested tensors, where that is asked for
    torch.testing.assert_close(fused, slim(tokens, padding), rtol=1e-4, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("padded", [False, True])
def test_distilbert_with_a_mask(padded):
    transformers = pytest.importorskip("transformers")
    config = transformers.DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    model = transformers.DistilBertForSequenceClassification(config).eval()
    tokens, mask = torch.randint(50, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    mask[0, 4:] = not padded
    split = KELS(0.5, example_input=(tokens, mask))
    slim = split.slim(model)
    assert split.widths(model).whole == []
    assert slim.distilbert.embeddings.word_embeddings.embedding_dim == 16
    for other in (mask, torch.ones_like(mask)):
        assert slim(tokens, other).logits.shape == (2, 2)


class Attending(nn.Module):
    """torch's attention, of queries to keys that may be others, with a mask for each head."""

    def __init__(self, **settings):
        super().__init__()
        self.first, self.last = nn.Linear(4, 32), nn.Linear(32, 2)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, **settings)

    def forward(self, x, of):
        queries, keys = (self.first(x), self.first(x.flip(1)), self.first(x) + 1), (0, 1, 2)
        query, key, value = (queries[keys[int(place)]] for place in of)
        mask = x.new_zeros(len(x) * self.attention.num_heads, x.shape[1], x.shape[1])
        return self.last(self.attention(query, key, value, attn_mask=mask)[0])


@pytest.mark.parametrize("settings", [{}, {"kdim": 32, "vdim": 32}, {"bias": False}], ids=str)
@pytest.mark.parametrize("of", [(0, 0, 0), (0, 1, 1), (0, 1, 2)], ids=["self", "cross", "all others"])
def test_torchs_attention_keeps_its_heads(of, settings):
    model = Attending(**settings)
    split = KELS(0.5, example_input=(X, torch.tensor(of)))
    slim = split.slim(model)
    assert split.widths(model).whole == []
    assert (slim.attention.num_heads, slim.attention.head_dim, slim.attention.embed_dim) == (4, 4, 16)
    assert slim(X, torch.tensor(of)).shape == (2, 5, 2)


TABLE = torch.randn(16)


def test_a_width_that_meets_a_tensor_from_outside_the_model_stays_whole():
    model, split = Masked(lambda hidden, _: hidden * TABLE), KELS(0.5, example_input=(X, MASK))
    (whole,) = split.widths(model).whole
    assert str(whole.reason).startswith("it meets a tensor that the model does not hold (test_values.py:")
    with pytest.warns(UserWarning, match="as wide as the dense one"):
        assert split.slim(model)(X, MASK).shape == (2, 5, 2)
