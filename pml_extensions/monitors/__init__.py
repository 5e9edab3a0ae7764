"""Monitors for any training loop; ``monitors.lightning`` and ``monitors.transformers`` hold them as callbacks."""

from pml_extensions.monitors.collapse import CollapseMonitor

__all__ = ["CollapseMonitor"]
