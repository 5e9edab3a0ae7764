"""The table of rules on a release of torch that has not all operations."""

import torch

from pml_extensions._slimming.tracing.calls import aten


def test_an_operation_that_torch_lacks_is_a_name_that_matches_no_call():
    assert aten.view is torch.ops.aten.view
    assert aten.of_a_later_release == "of_a_later_release"
