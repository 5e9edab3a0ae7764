"""What the host's own tests ask of every miner, asked of ours and of the host's nearest class side by side."""

import copy
import pickle

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance, SNRDistance

from pml_extensions.miners import SemiHardMiner

MINERS = {
    "ours": SemiHardMiner,
    "without fallback": lambda **k: SemiHardMiner(fallback=None, **k),
    "the host's": lambda **k: miners.TripletMarginMiner(margin=0.3, type_of_triplets="semihard", **k),
    "the host's hard": miners.BatchHardMiner,
}
LABELS = {"few": torch.arange(40) // 4, "many": torch.arange(80) % 2}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("make", MINERS.values(), ids=MINERS)
class TestEveryMiner:
    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
    def test_returns_triplets_of_its_classes(self, make, labels, dtype):
        anchors, positives, negatives = make()(torch.randn(len(labels), 8), labels.to(dtype))
        assert anchors.dtype == positives.dtype == negatives.dtype == torch.int64
        assert len(anchors) == len(positives) == len(negatives) > 0
        assert (labels[anchors] == labels[positives]).all()
        assert (labels[anchors] != labels[negatives]).all()
        assert (anchors != positives).all()

    @pytest.mark.parametrize(
        "distance", [LpDistance(p=1), CosineSimilarity(), SNRDistance()], ids=lambda d: type(d).__name__
    )
    def test_with_references_and_any_distance(self, make, labels, distance):
        ref_labels = torch.arange(60) % 7
        anchors, positives, negatives = make(distance=distance)(
            torch.randn(len(labels), 8), labels, torch.randn(60, 8), ref_labels
        )
        assert (labels[anchors] == ref_labels[positives]).all()
        assert (labels[anchors] != ref_labels[negatives]).all()

    def test_leaves_no_graph_and_the_embeddings_as_they_are(self, make, labels):
        embeddings = torch.randn(len(labels), 8, requires_grad=True)
        before = embeddings.detach().clone()
        assert not any(column.requires_grad for column in make()(embeddings, labels))
        assert torch.equal(embeddings, before)

    def test_copies_pickles_and_modes(self, make, labels):
        embeddings = torch.randn(len(labels), 8)
        expected = make()(embeddings, labels)
        for other in (copy.deepcopy(make()), pickle.loads(pickle.dumps(make())), make().eval()):  # noqa: S301
            assert all(map(torch.equal, other(embeddings, labels), expected))
        with torch.inference_mode():
            assert all(map(torch.equal, make()(embeddings, labels), expected))

    def test_counts_what_it_returns(self, make, labels):
        miner = make(collect_stats=True)
        assert len(miner(torch.randn(len(labels), 8), labels)[0]) == miner.num_triplets

    def test_in_front_of_several_losses(self, make, labels):
        embeddings = torch.randn(len(labels), 8, requires_grad=True)
        both = losses.MultipleLosses([losses.TripletMarginLoss(), losses.ContrastiveLoss()], miners=[make(), None])
        both(embeddings, labels).backward()
        assert embeddings.grad.isfinite().all()

    def test_triplets_can_be_stored(self, make, labels, tmp_path):
        triplets = make()(torch.randn(len(labels), 8), labels)
        torch.save(triplets, tmp_path / "triplets.pt")
        assert all(map(torch.equal, torch.load(tmp_path / "triplets.pt", weights_only=True), triplets))
