"""One small network an operation: its slim network is exactly the dense one without its reset-hypothesis."""

import math

import pytest
import torch
import torch.nn.functional as F
from slim_checks import exactness
from torch import nn

from pml_extensions.evolution import KELS, TracingError


class Between(nn.Module):
    """Two convolutions and a classifier, with an operation on the 8 channels between the convolutions."""

    def __init__(self, operation, channels, extra=()):
        super().__init__()
        self.operation = operation
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.extra = nn.ModuleList(extra)
        self.second = nn.Conv2d(channels, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, images):
        between = self.operation(self.first(images), *self.extra)
        return self.head(self.second(between).relu().mean((2, 3)))


def unbound(x):
    first, second = x.unflatten(1, (2, 4)).unbind(1)
    return first * second


def im2col(x):
    return F.unfold(x, 3, padding=1).unflatten(2, x.shape[2:])


def col2im(x):
    return F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1)


def windows(x):
    return x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3).flatten(3).permute(0, 1, 2, 3)


def sampled(x):
    grid = F.affine_grid(torch.eye(2, 3, dtype=x.dtype).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def matrix_vector(x):
    return x * (x.mean((2, 3)) @ x.mean((0, 2, 3)))[:, None, None, None]


def dotted(x):
    return x * torch.dot(x.mean((0, 2, 3)), x.amax((0, 2, 3)))


def attended(x, *_):
    tokens = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens, tokens, scale=0.5).transpose(1, 2).unflatten(2, x.shape[2:])


def normalised_by_group(x, norm):
    return norm(x)


def spectrum(x):
    return torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[2:])


def written(x):
    out = x.clone()
    out[:, :, 0] = 0
    return out.index_add(3, torch.tensor([0, 1]), x[..., :2])


def reshaped_in_place(x):
    y = x + 0
    y.transpose_(1, 3).swapaxes_(3, 1).unsqueeze_(1).swapdims_(0, 1).squeeze_(0).unsqueeze_(-1).squeeze_()
    rows = y.flatten(1)
    rows.t_()
    rows.t_()
    return rows.unflatten(1, x.shape[1:])


def table_reshaped_in_place(x):
    return x * torch.arange(1.0, 9.0, dtype=x.dtype).unsqueeze_(0).t_().unsqueeze_(-1)


def picked(x):
    return x.index_select(2, torch.tensor([1, 0, 3])).gather(3, torch.zeros_like(x[:, :, :3, :2], dtype=torch.long))


def complex_product(x):
    pairs = torch.view_as_complex(torch.stack([x, x.flip(3)], -1))
    return torch.view_as_real(pairs * pairs).sum(-1)


def made(x):
    zeros, ones = torch.zeros(x.shape[0], x.shape[1], 1, 1, dtype=x.dtype), x.new_ones(1, x.shape[1], 1, 1)
    return x * torch.full((1, x.shape[1], 1, 1), 2.0, dtype=x.dtype) + zeros + ones


def cut_in_three(x):
    a, b, c = x.split([2, 2, 4], 1)
    return torch.cat([a * b, c], 1)


def chunked(x):
    a, b = x.chunk(2, 1)
    return a.sigmoid() * b.narrow(1, 0, b.shape[1])


def two_cats(x):
    return torch.cat([x, x[:, :4]], 1) + torch.cat([x[:, :4], x], 1)


def squeezed(x):
    return (x.unsqueeze(1) * x.mean((2, 3), keepdim=True).unsqueeze(1)).squeeze(1)


def sorted_places(x):
    return x.sort(dim=3).values + x.topk(1, dim=2).values


def root_mean_square(x):
    return F.rms_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1)


def masked_attention(x):
    tokens = x.flatten(2).transpose(1, 2).unsqueeze(1)
    mask = torch.ones(tokens.shape[2], tokens.shape[2], dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(tokens, tokens, tokens, mask)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])


def counted(x):
    _, channels, height, width = x.shape
    return x.reshape(x.numel() // (channels * height * width), channels, height, width)


def both(x):
    """Return channels of two parts, split each by itself, and zeros of their shape, whose channels are one."""
    parts = torch.cat([x, x[:, :4]], 1)
    return parts, x.new_zeros(parts.shape)


def put_at_places(x):
    parts, out = both(x)
    out[:, :, torch.tensor([1, 3])] = parts[:, :, :2]
    out[0, :, 0] = parts[0, :, 0]
    out[torch.tensor([0, 1]), :, torch.tensor([5, 6])] = parts[:2, :, 3]
    return out


def put_by_mask(x):
    parts, out = both(x)
    tokens, rows = out.movedim(1, -1), parts.movedim(1, -1)
    mask = torch.zeros(tokens.shape[1:3], dtype=torch.bool)
    mask[0, 3] = mask[4, 4] = True
    tokens[:, mask] = rows[:, mask]
    return tokens.movedim(-1, 1)


def scattered(x):
    parts, out = both(x)
    index = torch.zeros_like(parts[:, :, :2], dtype=torch.long)
    return out.scatter(2, index, parts[:, :, :2]).scatter_reduce(2, index, parts[:, :, :2], "sum")


def added_at_places(x):
    parts, out = both(x)
    return out.index_add(3, torch.tensor([0, 1]), parts[..., :2]).index_copy(2, torch.tensor([7]), parts[:, :, :1])


def written_to_memory(x):
    _, out = both(x)
    torch.cat([x.detach(), x.detach()[:, :4]], 1, out=out)
    return out


def tokens_of(x):
    return x.flatten(2).transpose(1, 2)


def padded_with_channels(x):
    return F.pad(tokens_of(x), (2, 2), mode="reflect").transpose(1, 2).unflatten(2, x.shape[2:])


def resampled_channels(x):
    return F.interpolate(tokens_of(x), size=8, mode="linear").transpose(1, 2).unflatten(2, x.shape[2:])


def padded_rows(x):
    rows = F.pad(x.flatten(2), (1, 1), mode="replicate")[..., 1:-1]
    return F.interpolate(rows, size=64, mode="nearest-exact").unflatten(2, x.shape[2:])


def distances(x):
    return torch.cdist(tokens_of(x), tokens_of(x)[:, :4]).transpose(1, 2).unflatten(2, x.shape[2:])


def turned(parts, dim=1):
    return torch.cat(parts[::-1], dim)


OPERATIONS = {
    "split at places": (lambda x: turned(x.tensor_split([3], 1)), 8),
    "split at places of a tensor": (lambda x: turned(torch.tensor_split(x, torch.tensor([2, 5]), dim=1)), 8),
    "split in uneven parts": (lambda x: turned(x.tensor_split(3, dim=1)), 8),
    "split at half its size": (lambda x: turned(x.tensor_split((x.shape[1] // 2,), 1)), 8),
    "horizontally": (lambda x: turned(torch.hsplit(x, [3])), 8),
    "vertically": (lambda x: turned(torch.vsplit(x.transpose(0, 1), (2, 3)), 0).transpose(0, 1), 8),
    "in depth": (lambda x: turned(x.transpose(1, 2).dsplit([3]), 2).transpose(1, 2), 8),
    "unsafe split": (lambda x: turned(torch.unsafe_split_with_sizes(x, [3, 5], 1)), 8),
    "put at places": (put_at_places, 12),
    "put by mask": (put_by_mask, 12),
    "scatter": (scattered, 12),
    "added at places": (added_at_places, 12),
    "out": (written_to_memory, 12),
    "padded with channels": (padded_with_channels, 12),
    "resampled channels": (resampled_channels, 8),
    "padded rows": (padded_rows, 8),
    "distances": (distances, 4),
    "gated": (lambda x: F.glu(x, 1), 4),
    "vdot": (lambda x: x * torch.vdot(x.mean((0, 2, 3)), x.amax((0, 2, 3))), 8),
    "unpooled": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), 8),
    "random slope": (F.rrelu, 8),
    "cumulative": (lambda x: x.logcumsumexp(2) + x.cummax(3).values, 8),
    "RMS norm": (root_mean_square, 8),
    "masked attention": (masked_attention, 8),
    "number of elements": (counted, 8),
    "bytes": (lambda x: x.view(torch.int64).view(x.dtype), 8),
    "diagonal": (lambda x: x + x.diagonal(dim1=2, dim2=3).unsqueeze(-1), 8),
    "larger of two": (lambda x: torch.max(x, x.flip(3)), 8),
    "no rule": (lambda x: x.renorm(2, 0, 5.0), 8),
    "split by length": (lambda x: torch.cat(x.split(4, 1)[::-1], 1), 8),
    "split and multiply": (unbound, 4),
    "im2col": (im2col, 72),
    "col2im": (col2im, 8),
    "unfold": (windows, 8),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), 2),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 32),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 2), 8),
    "grid sample": (sampled, 8),
    "matrix vector": (matrix_vector, 8),
    "dot": (dotted, 8),
    "attention": (attended, 8),
    "group norm": (normalised_by_group, 8, nn.GroupNorm(2, 8)),
    "Fourier": (spectrum, 8),
    "in place": (written, 8),
    "shape in place": (reshaped_in_place, 8),
    "shape of a table in place": (table_reshaped_in_place, 8),
    "index": (picked, 8),
    "complex": (complex_product, 8),
    "factories": (made, 8),
    "split sizes": (cut_in_three, 6),
    "chunk and narrow": (chunked, 4),
    "squeeze": (squeezed, 8),
    "sort": (sorted_places, 8),
    "two concatenations": (two_cats, 12),
    "transposed": (lambda x, up: up(x), 6, nn.ConvTranspose2d(8, 6, 2, 2)),
    "transposed, groups": (lambda x, up: up(x), 6, nn.ConvTranspose2d(8, 6, 2, 2, groups=2)),
    "grouped": (lambda x, conv: conv(x), 12, nn.Conv2d(8, 12, 3, padding=1, groups=4)),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 8),
    "einsum": (lambda x: torch.einsum("bchw,bdhw->bcd", x, x).unsqueeze(-1), 8),
    "pad channels": (lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), 12),
    "swap and roll": (lambda x: x.transpose(2, 3).roll(1, 2).flip(3), 8),
    "norm": (lambda x: x / x.norm(dim=1, keepdim=True), 8),
    "statistics": (lambda x: (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1), 8),
}


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.75])
def test_the_multiplier_of_a_depthwise_convolution_stays(rate):
    multiply = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Conv2d(16, 32, 3, padding=1, groups=16))
    model = Between(lambda x, more: more(x), 32, [multiply])
    split = KELS(rate, example_input=torch.randn(2, 3, 8, 8))
    slim = split.slim(model)
    channels = math.ceil(rate * 8)
    assert [conv.groups for conv in slim.extra[0]] == [channels, 2 * channels]
    assert (slim.first.out_channels, slim.second.in_channels) == (channels, 4 * channels)
    assert exactness(model, split)[1] < 1e-9


def test_the_multiplier_is_cut_where_the_channels_are_those_of_the_input():
    model = nn.Sequential(nn.Conv2d(3, 24, 3, groups=3), nn.Conv2d(24, 2, 3))
    slim = KELS(0.5, example_input=torch.randn(2, 3, 8, 8)).slim(model)
    assert (slim[0].groups, slim[0].out_channels) == (3, 12)


@pytest.mark.parametrize("rate", [0.5, 0.3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_slim_is_exact_and_narrower(name, rate):
    operation, channels, *extra = OPERATIONS[name]
    torch.manual_seed(0)
    model = Between(operation, channels, extra)
    split = KELS(rate, example_input=torch.randn(2, 3, 8, 8))
    _, error = exactness(model, split)
    assert error < 1e-9
    slim = split.slim(model)
    assert slim(torch.randn(3, 3, 8, 8)).shape == (3, 5)
    assert slim.second.out_channels < 12


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_bilinear_layers(rate):
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.pair = nn.Linear(4, 12), nn.Linear(4, 10), nn.Bilinear(12, 10, 14)
            self.head = nn.Linear(14, 3)

        def forward(self, x):
            return self.head(self.pair(self.left(x), self.right(x)))

    model, split = Pairs(), KELS(rate, example_input=torch.randn(2, 4))
    pair = split.slim(model).pair
    assert pair.weight.shape == tuple(math.ceil(rate * n) for n in (14, 12, 10))
    assert (pair.out_features, pair.in1_features, pair.in2_features) == pair.weight.shape
    assert exactness(model, split)[1] < 1e-9


def test_bags_of_embeddings():
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bags, self.head = nn.EmbeddingBag(10, 16), nn.Linear(16, 3)

        def forward(self, tokens):
            return self.head(self.bags(tokens))

    model, tokens = Bags(), torch.randint(0, 10, (4, 5))
    slim = KELS(0.5, example_input=tokens).slim(model)
    assert slim.bags.weight.shape == (10, 8)
    with torch.no_grad():
        model.head.weight[:, 8:] = 0
    assert torch.allclose(slim(tokens), model(tokens), atol=1e-6)


@pytest.mark.parametrize(
    "resize",
    [
        lambda x: x.resize_(len(x), 8, 64),
        lambda x: x.as_strided_((len(x), 8, 64), (512, 64, 1)),
        lambda x: x.as_strided((len(x), 8, 64), x.flatten(2).stride()),
        lambda x: x.set_(x),
    ],
    ids=["resize_", "as_strided_", "as_strided", "set_"],
)
def test_what_makes_something_else_of_an_activation_is_refused(resize):
    model = Between(lambda x: resize(x.relu()).unflatten(-1, (8, 8)), 8)
    with pytest.raises(
        TracingError, match=r"submodule ''.*aten\.(resize_|as_strided|set_).*test_rules.py:\d+.*use reshape, view"
    ):
        KELS(0.5, example_input=torch.randn(2, 3, 8, 8)).slim(model)
