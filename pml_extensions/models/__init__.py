"""Models on top of timm."""

from pml_extensions.models.two_head import TwoHead, TwoHeadOutput

__all__ = ["TwoHead", "TwoHeadOutput"]
