"""The host's wrappers around our miner and loss, against one process."""

import pytest
import torch
from problems import batches

from pml_extensions.losses import SemiHardTripletLoss
from pml_extensions.miners import SemiHardMiner

BATCH, LABELS = batches(torch.float64)["tall"][:24], torch.arange(24) % 5


def sorted_rows(triplets):
    return sorted(map(tuple, torch.stack(list(triplets)).T.tolist()))


def in_order_of(rank, world):
    """Where the rows lie that the host gathers: its own first, then the others by rank."""
    parts = torch.arange(24).chunk(world)
    return torch.cat([parts[rank], *(part for other, part in enumerate(parts) if other != rank)])


@pytest.mark.parametrize("efficient", [False, True])
def test_triplets(found, efficient):
    world = len(found["semi_hard"])
    expected = sorted_rows(SemiHardMiner()(BATCH, LABELS))
    mined = []
    for rank, one in enumerate(found["semi_hard"]):
        places = in_order_of(rank, world)
        triplets = sorted_rows(places[column] for column in one[efficient, "mined"])
        if not efficient:
            assert triplets == expected
        mined += triplets
    if efficient:
        assert sorted(mined) == expected


@pytest.mark.parametrize("key", [(False, "given"), "by itself"])
def test_loss_of_the_whole_batch(found, key):
    leaf = BATCH.clone().requires_grad_()
    expected = SemiHardTripletLoss()(leaf, LABELS)
    expected.backward()
    ranks = [one[key] for one in found["semi_hard"]]
    for value, _ in ranks:
        torch.testing.assert_close(value / len(ranks), expected.detach())
    torch.testing.assert_close(torch.cat([grad for _, grad in ranks]), leaf.grad)


def test_loss_of_each_part_of_the_anchors(found):
    """The host's efficient mode by its own definition: anchors at hand, other processes' embeddings held fixed."""
    world = len(found["semi_hard"])
    total, pairs = 0, 0
    for rank, one in enumerate(found["semi_hard"]):
        own = torch.arange(24).chunk(world)[rank]
        leaf = BATCH[own].clone().requires_grad_()
        whole = BATCH.index_copy(0, own, leaf)
        triplets = SemiHardMiner()(BATCH, LABELS)
        at_hand = torch.isin(triplets[0], own)
        expected = SemiHardTripletLoss()(whole, LABELS, tuple(column[at_hand] for column in triplets))
        expected.backward()
        value, gradient = one[True, "given"]
        torch.testing.assert_close(value / world, expected.detach())
        torch.testing.assert_close(gradient, leaf.grad)
        total, pairs = total + value / world * at_hand.sum(), pairs + at_hand.sum()
    torch.testing.assert_close(total / pairs, SemiHardTripletLoss()(BATCH, LABELS))
